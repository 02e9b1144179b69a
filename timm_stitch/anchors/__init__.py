"""Pretrained models as stem, blocks and head: the only code that touches their internals."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
