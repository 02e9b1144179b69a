"""Dense prediction: networks with one head on a pyramid, for segmentation and depth."""

from ...lazy import submodules

__getattr__ = submodules(__name__)
