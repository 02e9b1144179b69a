"""The tiny models of transformers, by the names that scripts outside the tests know them by."""

from tiny import bert, llama
from tiny import hf_vit as vit

__all__ = ["bert", "llama", "vit"]
