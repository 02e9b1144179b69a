"""The former names of `config`'s classes."""

from .config import RequestOptions as Wishes
from .config import ServingConfig as Promise

__all__ = ["Promise", "Wishes"]
