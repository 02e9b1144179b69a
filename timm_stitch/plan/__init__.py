"""Plans, costs and results as plain values, with the standard library only."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
