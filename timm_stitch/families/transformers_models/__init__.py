"""Models of transformers as anchors, and the stitched networks of them, models of transformers themselves.

Importing this package does not import transformers; `networks` and what it needs do.
"""

from ...lazy import submodules

__getattr__ = submodules(__name__)
