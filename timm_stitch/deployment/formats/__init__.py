"""The formats of exported stitches, one per file; `job` is what they share."""

from ...lazy import submodules

__getattr__ = submodules(__name__)
