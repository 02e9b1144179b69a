"""Stitchable neural networks (SN-Net) for timm and the Hugging Face Hub.

Importing this package registers the `snnet_*` models with timm.
"""

from .checkpoints import convert_checkpoint
from .network import SNNet
from .plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan
from .snnet import create_snnet
from .stitching import stitch

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "LayerSpec",
    "SNNet",
    "Segment",
    "Stitch",
    "StitchPlan",
    "convert_checkpoint",
    "create_snnet",
    "stitch",
]
