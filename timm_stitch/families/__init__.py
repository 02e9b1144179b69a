"""The families of models that can be stitched: a folder each, which answers the protocol in `family`."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
