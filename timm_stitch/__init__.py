"""Stitchable neural networks (SN-Net) for timm and the Hugging Face Hub.

Stitching joins pretrained models of one task into one network. A stitch runs the first blocks of one model, crosses by
a small layer, and runs the last blocks of another: one set of weights serves many costs.

    >>> import timm, timm_stitch
    >>> model = timm.create_model("snnet_deit_tsb", pretrained=True)  # doctest: +SKIP
    >>> logits = model(images, stitch_id=24)  # doctest: +SKIP

Models of transformers are stitched in the same way, and give a model of transformers, of `timm_stitch.text`:

    >>> model = timm_stitch.stitch([small_bert, large_bert], tokenizers=[tokenizer] * 2)  # doctest: +SKIP
    >>> logits = model(**tokenizer("a fine film", return_tensors="pt"), stitch_id=3).logits  # doctest: +SKIP

- Create: `stitch` models at hand, `load` by name, folder or Hub id, `from_hub`, `create_snnet`, `convert_checkpoint`;
  `dense` puts one head for segmentation or depth on a network, a `DenseNetwork`.
  An `SNNet` is a timm model; importing this package registers the `snnet_*` models with timm.
- Plan: `enumerate_stitches`, `StitchPlan` of `Anchor`, `Stitch`, `Segment` and `LayerSpec`.
- Train: `least_squares_init`, `linear_probe`, `train` with a `TrainConfig`, `train_recipe`, `read_recipe`,
  `recalibrate`, `StitchSamplerCallback` for transformers' Trainer.
- Measure and choose: `evaluate`, `profile`, `select`, `pareto_frontier`, `plot_curve`, `read_rows`, `write_rows`;
  `set_stitch` inside a model of another library.
- Save and share: `save_pretrained`, `push_to_hub`.
- Deploy: `export`, `Cascade` and `find_cascade`, `LatencyController`, `make_page`.

On the command line: `timm-stitch --help`. Each name is imported at its first use.
"""

import importlib as _importlib
from typing import TYPE_CHECKING, Any

from . import lazy as _lazy
from . import moved as _moved  # noqa: F401 paths of earlier versions
from . import plugin as _plugin

if TYPE_CHECKING:
    from .deployment.cascade import Cascade, find_cascade
    from .deployment.demo import make_page
    from .deployment.exporting import export
    from .deployment.latency_controller import LatencyController
    from .evaluation.accuracy import evaluate
    from .evaluation.plotting import plot_curve
    from .evaluation.profiling import profile
    from .evaluation.selection import select
    from .families.dense.creating import dense
    from .families.dense.network import DenseNetwork
    from .families.stitching import stitch
    from .families.timm_models.network import SNNet
    from .hub.loading import from_hub, load
    from .hub.push import push_to_hub
    from .hub.saving import save_pretrained
    from .models.checkpoints import convert_checkpoint
    from .models.factory import create_snnet
    from .network.hosts import set_stitch
    from .plan.enumeration import enumerate_stitches
    from .plan.frontier import pareto_frontier
    from .plan.results import read_rows, write_rows
    from .plan.stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan
    from .training.config import TrainConfig
    from .training.least_squares import least_squares_init
    from .training.linear_probe import linear_probe
    from .training.recalibration import recalibrate
    from .training.recipe import train_recipe
    from .training.recipe_file import read_recipe
    from .training.trainer import train
    from .training.transformers_callback import StitchSamplerCallback

__version__ = "0.1.0"

__all__ = [
    "Anchor",
    "Cascade",
    "DenseNetwork",
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
    "dense",
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
    "read_recipe",
    "read_rows",
    "recalibrate",
    "save_pretrained",
    "select",
    "set_stitch",
    "stitch",
    "train",
    "train_recipe",
    "write_rows",
]

# Torch and timm take seconds to import, so each name is imported at its first use.
_MODULES = {
    "deployment.cascade": ("Cascade", "find_cascade"),
    "deployment.demo": ("make_page",),
    "deployment.exporting": ("export",),
    "deployment.latency_controller": ("LatencyController",),
    "evaluation.accuracy": ("evaluate",),
    "evaluation.plotting": ("plot_curve",),
    "evaluation.profiling": ("profile",),
    "evaluation.selection": ("select",),
    "families.dense.creating": ("dense",),
    "families.dense.network": ("DenseNetwork",),
    "families.stitching": ("stitch",),
    "families.timm_models.network": ("SNNet",),
    "hub.loading": ("from_hub", "load"),
    "hub.push": ("push_to_hub",),
    "hub.saving": ("save_pretrained",),
    "models.checkpoints": ("convert_checkpoint",),
    "models.factory": ("create_snnet",),
    "network.hosts": ("set_stitch",),
    "plan.enumeration": ("enumerate_stitches",),
    "plan.frontier": ("pareto_frontier",),
    "plan.results": ("read_rows", "write_rows"),
    "plan.stitch_plan": ("Anchor", "LayerSpec", "Segment", "Stitch", "StitchPlan"),
    "training.config": ("TrainConfig",),
    "training.least_squares": ("least_squares_init",),
    "training.linear_probe": ("linear_probe",),
    "training.recalibration": ("recalibrate",),
    "training.recipe": ("train_recipe",),
    "training.recipe_file": ("read_recipe",),
    "training.trainer": ("train",),
    "training.transformers_callback": ("StitchSamplerCallback",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
if not TYPE_CHECKING:  # with it, type checkers would take any name for one of this module

    def __getattr__(name: str) -> Any:
        """Import a public name, or a folder of the package, at its first use."""
        if name not in _PLACES:
            return _lazy.submodules(__name__)(name)
        value = getattr(_importlib.import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)


_plugin.register()
