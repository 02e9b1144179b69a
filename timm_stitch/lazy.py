"""Modules that are imported when somebody names them, as if their folder had imported them all."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType


def submodules(package: str) -> Callable[[str], ModuleType]:
    """Make the `__getattr__` of a package, which imports its modules by name.

    Args:
        package: the package's name, `__name__` in its file.
    """

    def find(name: str) -> ModuleType:
        path = f"{package}.{name}"
        if not name.startswith("_"):
            try:
                return importlib.import_module(path)
            except ModuleNotFoundError as error:
                if error.name != path:
                    raise
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find
