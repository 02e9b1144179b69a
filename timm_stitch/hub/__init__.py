"""Networks in folders and on the Hugging Face Hub."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
