"""Accuracy, speed and memory of stitches, and the choice of one."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
