"""The stitchable network itself: anchors, stitching layers, and the paths through them."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
