"""timm's models as anchors, and the stitched network of them, a timm model itself."""

from ...lazy import submodules

__getattr__ = submodules(__name__)
