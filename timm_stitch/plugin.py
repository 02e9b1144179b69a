"""Registers the models with timm: at once if timm is imported, else as soon as it is.

timm and torch take seconds to import, which `timm-stitch --help` and scripts that only read rows need not wait for.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODELS = ("timm_stitch.models.snnet", "timm_stitch.models.dense")


class _Finder(MetaPathFinder):
    """Finds timm where the other finders do, and registers the models after its import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(self, spec.loader)
        return spec


class _Loader(Loader):
    """Runs timm by its own loader, which the module then has, and registers the models."""

    def __init__(self, finder: _Finder, loader: Loader) -> None:
        self.finder, self.loader = finder, loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        _import_models()


def register() -> None:
    """Register the models now or after timm's import. What this imports imports neither torch nor timm itself."""
    if "timm" in sys.modules:
        _import_models()
    else:
        sys.meta_path.insert(0, _Finder())


def _import_models() -> None:
    for name in _MODELS:
        importlib.import_module(name)
