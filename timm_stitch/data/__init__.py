"""Images, in an order and with an augmentation that the seed decides."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
