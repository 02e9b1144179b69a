"""From models at hand to a stitchable network, whatever their family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, overload

from torch import nn

from ..choices import Direction
from ..errors import WrongTypeError
from ..network.stitchable import StitchableNetwork
from ..plan.enumeration import PlanOptions
from ..plan.stitch_plan import Anchor, StitchPlan
from .registry import family_of_models
from .timm_models.network import SNNet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .transformers_models.network import StitchedModel

OwnPlan = StitchPlan | Callable[[Sequence[Anchor]], StitchPlan] | None


@overload
def stitch(  # type: ignore[overload-overlap] # a model of transformers is a module, too
    models: Sequence[PreTrainedModel],
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    *,
    rank: int = 0,
    plan: OwnPlan = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
) -> StitchedModel: ...


@overload
def stitch(
    models: Sequence[nn.Module],
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    *,
    rank: int = 0,
    plan: OwnPlan = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
) -> SNNet: ...


def stitch(
    models: Sequence[nn.Module],
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    *,
    rank: int = 0,
    plan: OwnPlan = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase] = (),
) -> StitchableNetwork:
    """Stitch models into one network (SN-Net, arXiv:2302.06586).

    The stitching layers start random: follow with `least_squares_init`.

    Args:
        models: timm models, or models of transformers of one task and one tokenizer, from the fastest to the slowest;
            used in place, not copied (the list of layers of a transformers model becomes one that can skip layers,
            under the same names). Another order is kept, with a warning.
        direction, nearest, kernel_size, stride, rank: the arguments of `enumerate_stitches`.
        plan: a plan of your own for these models instead of these five, or a function that makes one from the
            anchors' descriptions.
        stitched_norm: whether stitched paths run the back anchor's final norm; transformers' models always do.
        stitch_id: the stitch to begin with; default the last anchor alone.
        tokenizers: the anchors' tokenizers, for transformers' models; they must agree, and the last is saved with
            the network.

    Returns:
        The network, on the models' device: an `SNNet`, or for transformers' models one of `timm_stitch.text`, by
        their task.

    Raises:
        TypeError: if a model cannot be opened as an anchor, or there is no list of models or tokenizers.
        ValueError: if the models cannot meet, or there is no such plan.

    Examples:
        >>> from timm.models.vision_transformer import VisionTransformer
        >>> small, large = (VisionTransformer(img_size=32, embed_dim=d, depth=4, num_heads=2) for d in (16, 32))
        >>> network = timm_stitch.stitch([small, large])
        >>> network.num_stitches
        12
    """
    if isinstance(models, nn.Module) and not isinstance(models, (nn.ModuleList, nn.Sequential)):
        raise WrongTypeError(
            f"models must be a list, from the fastest to the slowest, got {type(models).__name__}: "
            "stitch([small, large])."
        )
    models = list(models)
    options = PlanOptions(direction, nearest, kernel_size, stride, rank, plan)
    return family_of_models(models).stitch(
        models, options, stitched_norm=stitched_norm, stitch_id=stitch_id, tokenizers=tokenizers
    )
