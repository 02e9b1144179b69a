"""A cascade: a cheap stitch for every image, a more expensive one for those it is unsure of.

Where the two begin alike, the expensive one goes on from what the cheap one left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.batches import Batch
from ..evaluation.scores import split_targets
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork, logits_of
from ..plan.prefix_sharing import common_steps, shared_macs


@dataclass(frozen=True)
class Cascade:
    """Two stitches and a threshold: `cascade(images)` gives logits, each image's from one of the two.

    Args:
        model: the network, in eval mode.
        cheap, dear: ids of the cheap and of the more expensive stitch.
        threshold: an image goes on to the expensive stitch if the cheap one's largest probability is below.
        top1, macs: what was measured when the threshold was set: accuracy in per cent, and multiply-adds of an
            image on average.
    """

    model: StitchableNetwork
    cheap: int
    dear: int
    threshold: float
    top1: float | None = None
    macs: float | None = None

    def __call__(self, images: Any) -> Tensor:
        """Logits (B, num_classes) of images (B, C, H, W), or of a mapping of tensors with B rows."""
        return self.run(images)[0]

    def run(self, images: Any) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes), and which images went on to the expensive stitch, a (B,) of bool."""
        model = self.model
        first, second = model.plan[self.cheap], model.plan[self.dear]
        shared = common_steps(first, second)
        inputs = model.prepare_inputs(images, (first, second))
        h, kept = model.executor.advance(first, 0, len(first.steps), None, inputs, keep=(shared,))
        logits = logits_of(h)
        unsure = logits.softmax(-1).amax(-1) < self.threshold
        if bool(unsure.any()):
            index = unsure.nonzero()[:, 0]
            some = kept[shared].index_select(0, index) if shared else None
            rest = inputs.pick(index)
            some, _ = model.executor.advance(second, shared, len(second.steps), some, rest)
            logits = logits.index_put((index,), logits_of(some))
        return logits, unsure


@torch.inference_mode()
def find_cascade(
    model: StitchableNetwork,
    loader: Iterable[Any],
    macs: float,
    *,
    stitch_ids: Sequence[int] | None = None,
    thresholds: int = 100,
    progress: bool = False,
) -> Cascade:
    """The cascade of two stitches that is right most often at a cost, by a validation set.

    Args:
        model: the network.
        loader: batches of (images (B, C, H, W), labels (B,)), or mappings with `labels`, that were not trained on.
        macs: the most multiply-adds for an image on average.
        stitch_ids: between which to look; all by default.
        thresholds: how many to try for each pair, evenly spread over the images.
        progress: show a bar.

    Returns:
        The best cascade, with its accuracy and average cost on these images. Choosing on them flatters it a
        little: measure it on others.

    Raises:
        ValueError: if not even the cheapest stitch is within `macs`, or there are no images.
    """
    ids = [model.plan[i].stitch_id for i in (model.stitch_ids if stitch_ids is None else stitch_ids)]
    sure, right = _answers(model, loader, ids, progress)
    costs = model.costs()
    alone = {k: costs.cost(model.plan[k]).macs for k in ids}
    images = sure.shape[1]
    best: Cascade | None = None
    # How many images go on, from none to all.
    counts = sorted({round(i * images / thresholds) for i in range(thresholds + 1)})
    for i, cheap in enumerate(ids):
        if alone[cheap] > macs:
            continue
        order = sure[i].argsort()
        confidence = sure[i][order]
        for j, expensive in enumerate(ids):
            if alone[expensive] < alone[cheap] or (expensive == cheap and len(ids) > 1):
                continue
            more = shared_macs([model.plan[cheap], model.plan[expensive]], costs) - alone[cheap]
            gained = torch.cat([torch.zeros(1), (right[j] - right[i])[order].cumsum(0)]) + right[i].sum()
            for count in counts:
                # Images of equal confidence stay together.
                if 0 < count < images and confidence[count] == confidence[count - 1]:
                    continue
                spent, top1 = alone[cheap] + more * count / images, 100 * float(gained[count]) / images
                if spent <= macs and (best is None or (top1, -spent) > (best.top1, -(best.macs or 0.0))):
                    threshold = float(confidence[count]) if count < images else 2.0
                    best = Cascade(model, cheap, expensive, threshold, top1, spent)
    if best is None:
        raise ValueError(f"no stitch is within macs={macs:,.0f}: the cheapest takes {min(alone.values()):,}.")
    return best


def _answers(
    model: StitchableNetwork, loader: Iterable[Any], ids: Sequence[int], progress: bool
) -> tuple[Tensor, Tensor]:
    """Of each stitch and image: the largest probability, and 1 where it is right; both (stitches, images)."""
    device = next(model.parameters()).device
    place = {stitch_id: i for i, stitch_id in enumerate(ids)}
    sure: list[list[Tensor]] = [[] for _ in ids]
    right: list[list[Tensor]] = [[] for _ in ids]
    with evaluating(model):
        for batch in tqdm(loader, desc="cascade", unit="batch", disable=not progress):
            inputs, targets = split_targets(model, Batch.of(batch).to(device))
            if targets.labels.ndim > 1:
                raise ValueError(
                    "a cascade is of networks that say one thing of an input, and these labels are of tokens."
                )
            for stitch_id, out in model.forward_each(inputs, ids):
                top = logits_of(out).softmax(-1).max(-1)
                sure[place[stitch_id]].append(top.values.float().cpu())
                right[place[stitch_id]].append((top.indices.cpu() == targets.labels.cpu()).float())
    if not sure[0]:
        raise ValueError("there is nothing to choose by: the loader gave no images.")
    return torch.stack([torch.cat(s) for s in sure]), torch.stack([torch.cat(r) for r in right])
