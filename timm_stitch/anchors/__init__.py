"""Pretrained models as stem, blocks and head: the only code that touches their internals."""
