"""Stitchable neural networks (SN-Net) for timm and the Hugging Face Hub.

Importing this package registers the `snnet_*` models with timm.
"""

from typing import TYPE_CHECKING, Any

from . import moved as _moved  # noqa: F401 paths of earlier versions
from .deployment.cascade import Cascade, find_cascade
from .deployment.demo import make_page
from .deployment.exporting import export
from .deployment.latency_controller import LatencyController
from .evaluation.accuracy import evaluate
from .evaluation.plotting import plot_curve
from .evaluation.profiling import profile
from .evaluation.selection import select
from .families.stitching import stitch
from .families.timm_models.network import SNNet
from .hub.loading import from_hub, load
from .hub.push import push_to_hub
from .hub.saving import save_pretrained
from .models import snnet as _registered  # noqa: F401 registers the models with timm
from .models.checkpoints import convert_checkpoint
from .models.factory import create_snnet
from .plan.enumeration import enumerate_stitches
from .plan.frontier import pareto_frontier
from .plan.results import read_rows, write_rows
from .plan.stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan
from .training.config import TrainConfig
from .training.least_squares import least_squares_init
from .training.linear_probe import linear_probe
from .training.recalibration import recalibrate
from .training.recipe import train_recipe
from .training.trainer import train

if TYPE_CHECKING:
    from .training.transformers_callback import StitchSamplerCallback

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
    "enumerate_stitches",
    "evaluate",
    "export",
    "find_cascade",
    "from_hub",
    "least_squares_init",
    "linear_probe",
    "load",
    "make_page",
    "pareto_frontier",
    "plot_curve",
    "profile",
    "push_to_hub",
    "read_rows",
    "recalibrate",
    "save_pretrained",
    "select",
    "stitch",
    "train",
    "train_recipe",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    """transformers takes seconds to import, so what needs it waits until it is asked for."""
    if name == "StitchSamplerCallback":
        from .training.transformers_callback import StitchSamplerCallback

        return StitchSamplerCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
