"""The command line, `timm-stitch VERB`: a verb's arguments beside what it does."""

from .entry import main

__all__ = ["main"]
