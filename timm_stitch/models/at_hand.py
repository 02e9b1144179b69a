"""From models at hand to a stitchable network: timm's or transformers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from ..families.timm_models import stitching
from ..families.transformers_models.opening import is_of_transformers
from ..plan.enumeration import GivenPlan


def stitch(
    models: Sequence[nn.Module],
    direction: str = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    *,
    rank: int = 0,
    plan: GivenPlan = None,
    stitched_norm: bool = True,
    stitch_id: int | None = None,
    tokenizers: Sequence[Any] = (),
) -> Any:
    """Stitch models into one network (SN-Net, arXiv:2302.06586).

    The stitching layers start random: follow with `least_squares_init`.

    Args:
        models: timm models, or models of transformers of one task and one tokenizer, from the fastest to the slowest;
            taken as they are, not copied, not changed (of transformers' the list of layers is put into one that can
            leave some of them out, under the same names).
        direction, nearest, kernel_size, stride, rank: as in `enumerate_stitches`.
        plan: instead of these five, a plan of one's own for the same models, or a function that makes
            one from their descriptions.
        stitched_norm: run the back anchor's final norm on stitched paths; of transformers' models always.
        stitch_id: the stitch to begin with; default the largest anchor alone.
        tokenizers: of transformers' models, the anchors' tokenizers; they must agree, and the last is saved with the
            network.

    Returns:
        The network, on the models' device: an `SNNet`, or of transformers' models one of `timm_stitch.text`, by their
        task.

    Raises:
        TypeError: if a model cannot be opened as an anchor.
        ValueError: if the models cannot meet, or the plan cannot be.
    """
    models = list(models)
    theirs = [is_of_transformers(model) for model in models]
    if not any(theirs):
        if tokenizers:
            raise ValueError("tokenizers are for models of transformers: leave them out.")
        return stitching.stitch(
            models, direction, nearest, kernel_size, stride,
            rank=rank, plan=plan, stitched_norm=stitched_norm, stitch_id=stitch_id,
        )  # fmt: skip
    if not all(theirs):
        raise TypeError("cannot stitch timm's models to transformers': give models of one of them.")
    if not stitched_norm:
        raise ValueError("stitched_norm=False is for timm's models: those of transformers always run their final norm.")
    from ..families.transformers_models.stitching import stitch_transformers

    return stitch_transformers(
        models, direction, nearest, kernel_size, stride,
        rank=rank, plan=plan, stitch_id=stitch_id, tokenizers=tokenizers,
    )  # fmt: skip
