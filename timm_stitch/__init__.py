"""Stitchable neural networks (SN-Net) for timm and the Hugging Face Hub.

Importing this package registers the `snnet_*` models with timm.
"""

from .checkpoints import convert_checkpoint
from .choosing import select
from .config import TrainConfig
from .evaluation import evaluate
from .frontier import pareto_frontier
from .least_squares import least_squares_init
from .network import SNNet
from .plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan
from .recalibration import recalibrate
from .saving import save_pretrained
from .snnet import create_snnet
from .stitching import stitch
from .training import train

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "LayerSpec",
    "SNNet",
    "Segment",
    "Stitch",
    "StitchPlan",
    "TrainConfig",
    "convert_checkpoint",
    "create_snnet",
    "evaluate",
    "least_squares_init",
    "pareto_frontier",
    "recalibrate",
    "save_pretrained",
    "select",
    "stitch",
    "train",
]
