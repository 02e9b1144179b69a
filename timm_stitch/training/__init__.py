"""Stitching layers by least squares, and training over stitches."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
