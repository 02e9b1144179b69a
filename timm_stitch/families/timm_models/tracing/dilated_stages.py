"""Where the stages of a dilated model begin, which its reductions do not tell (`output_stride` of timm)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def dilated_stage_starts(model: nn.Module, blocks: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """List the blocks that begin a stage at the reduction of the stage before.

    timm's `feature_info` names the module at the end of each stage, or one inside the first block of the next.

    Args:
        model: a model of timm.
        blocks: the names of the modules of each block.

    Returns:
        The numbers of these blocks; none for a model that is not dilated, whose stages differ in their reductions.
    """
    infos = [info for info in getattr(model, "feature_info", None) or () if info.get("module")]
    if len({info["reduction"] for info in infos}) < 2 or not _is_dilated(model):
        return ()
    starts = set()
    for end in [before["module"] for before, after in pairwise(infos) if before["reduction"] == after["reduction"]]:
        holders = [n for n, names in enumerate(blocks) if any(_is_in(name, end) or _is_in(end, name) for name in names)]
        if holders:  # else it ends in the stem
            starts.add(holders[-1] + _is_in(blocks[holders[-1]][-1], end))
    return tuple(sorted(starts - {0, len(blocks)}))


def _is_in(module: str, holder: str) -> bool:
    return f"{module}.".startswith(f"{holder}.")


def _is_dilated(model: nn.Module) -> bool:
    """Whether timm made a model with an `output_stride`; MobileOne and stages of one block are dilated by none."""
    made_so = "output_stride" in (getattr(model, "_model_args", None) or {})
    return made_so or any(isinstance(m, nn.Conv2d) and max(m.dilation) > 1 for m in model.modules())
