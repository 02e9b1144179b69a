"""The networks that have a name: timm's registry, the authors' networks and weights."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
