"""Stitchable neural networks (SN-Net) for timm and the Hugging Face Hub.

Importing this package registers the `snnet_*` models with timm.
"""

from typing import TYPE_CHECKING, Any

from .cascading import Cascade, find_cascade
from .checkpoints import convert_checkpoint
from .choosing import select
from .config import TrainConfig
from .controlling import LatencyController
from .evaluation import evaluate
from .exporting import export
from .frontier import pareto_frontier
from .least_squares import least_squares_init
from .network import SNNet
from .plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan
from .profiling import profile
from .recalibration import recalibrate
from .saving import save_pretrained
from .sharing import from_hub, push_to_hub
from .snnet import create_snnet
from .stitching import stitch
from .training import train

if TYPE_CHECKING:
    from .trainer_callback import StitchSamplerCallback

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "Cascade",
    "LatencyController",
    "LayerSpec",
    "SNNet",
    "Segment",
    "Stitch",
    "StitchPlan",
    "StitchSamplerCallback",
    "TrainConfig",
    "convert_checkpoint",
    "create_snnet",
    "evaluate",
    "export",
    "find_cascade",
    "from_hub",
    "least_squares_init",
    "pareto_frontier",
    "profile",
    "push_to_hub",
    "recalibrate",
    "save_pretrained",
    "select",
    "stitch",
    "train",
]


def __getattr__(name: str) -> Any:
    """transformers takes seconds to import, so what needs it waits until it is asked for."""
    if name == "StitchSamplerCallback":
        from .trainer_callback import StitchSamplerCallback

        return StitchSamplerCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
