"""Heads: modules from the maps of a pyramid to one map of classes or depth.

A head's `forward` takes the maps (B, C, H, W), finest first, and returns (B, outputs, H', W'). It may have

- `uses_prefix_tokens = True`: then `forward` also takes the prefix tokens (B, P, C) of each level, or None;
- `levels_used(training)`: the numbers of the levels that it reads, the others are not computed;
- `auxiliary(maps)`: the outputs of auxiliary heads, for the loss in training;
- `without_auxiliary()`: a copy that shares its tensors and has no auxiliary heads, which an extracted stitch keeps.
"""

from ....lazy import submodules

__getattr__ = submodules(__name__)
