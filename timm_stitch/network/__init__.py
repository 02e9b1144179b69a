"""The stitchable network itself: anchors, stitching layers, and the paths through them."""

import importlib
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    """Modules that were here in earlier versions: see `timm_stitch.moved`."""
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
