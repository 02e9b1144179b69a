"""A cascade: a cheap stitch for every image, and an expensive one for images of which the cheap one is unsure.

If both begin with the same blocks, the expensive stitch continues from the cheap one's features.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.batches import Batch
from ..evaluation.scores import flatten_pairs, split_targets, to_class_numbers
from ..families.registry import require
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork, logits_of
from ..plan.prefix_sharing import common_steps, shared_macs
from ..progress import progress_bar


@dataclass(frozen=True)
class Cascade:
    """Two stitches and a threshold: `cascade(images)` returns logits, each image's from one of the two.

    Args:
        model: the network, in eval mode.
        cheap: the id of the cheap stitch.
        dear: the id of the expensive stitch.
        threshold: the largest probability of the cheap stitch below which an image goes on to the expensive one.
        top1: the accuracy in per cent, measured when the threshold was set.
        macs: the mean multiply-adds per image, measured when the threshold was set.

    Examples:
        >>> model = timm.create_model("snnet_levit_192_256").eval()
        >>> cascade = timm_stitch.Cascade(model, cheap=0, dear=1, threshold=0.7)
        >>> cascade(torch.randn(2, 3, 224, 224)).shape
        torch.Size([2, 1000])
    """

    model: StitchableNetwork
    cheap: int
    dear: int
    threshold: float
    top1: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        require(self.model, "cascade")

    def __call__(self, images: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Compute logits (B, num_classes) of images (B, C, H, W), or of a mapping of tensors with B rows."""
        return self.run(images)[0]

    def run(self, images: Tensor | Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Compute logits (B, num_classes), and a mask (B,) of the images that went on to the expensive stitch."""
        model = self.model
        first, second = model.plan[self.cheap], model.plan[self.dear]
        inputs, executor = model.prepare_inputs(images, (first, second)), model.executor
        shared = common_steps(first, second) if executor.shares_work(inputs) else 0
        if shared:
            h, kept = executor.advance(first, 0, len(first.steps), None, inputs, keep=(shared,))
        else:
            h = executor.run(first, inputs)
        logits = logits_of(h)
        unsure = logits.softmax(-1).amax(-1) < self.threshold
        if bool(unsure.any()):
            index = unsure.nonzero()[:, 0]
            if shared:
                features = kept[shared].index_select(0, index)
                output, _ = executor.advance(second, shared, len(second.steps), features, inputs.pick(index))
            else:
                output = executor.run(second, inputs.pick(index))
            logits = logits.index_put((index,), logits_of(output))
        return logits, unsure


@torch.inference_mode()
def find_cascade(
    model: StitchableNetwork,
    loader: Iterable[object],
    macs: float,
    *,
    stitch_ids: Sequence[int] | None = None,
    thresholds: int = 100,
    progress: bool = False,
) -> Cascade:
    """Find the most accurate cascade of two stitches within a mean cost, on a validation set.

    Args:
        model: the network.
        loader: batches of (images (B, C, H, W), labels (B,)), or mappings with `labels`, that were not trained on.
        macs: the largest mean number of multiply-adds per image.
        stitch_ids: the stitches to choose from; default all.
        thresholds: the number of thresholds to try for each pair, evenly spread over the images.
        progress: whether to show a bar.

    Returns:
        The best cascade, with its accuracy and mean cost on these images. Measure it on others: choosing on these
        flatters it a little.

    Raises:
        ValueError: if no stitch is within `macs`, or there are no images.

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors).eval()
        >>> batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)]
        >>> cascade = timm_stitch.find_cascade(model, batches, macs=1e9)
        >>> cascade(batches[0][0]).shape
        torch.Size([8, 4])
    """
    require(model, "cascade")
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
        raise ValueError(f"macs must be at least {min(alone.values()):,}, the cheapest stitch's, got {macs:,.0f}.")
    return best


def _answers(
    model: StitchableNetwork, loader: Iterable[object], ids: Sequence[int], progress: bool
) -> tuple[Tensor, Tensor]:
    """Compute each stitch's largest probability for each image, and 1 if it is right; both (stitches, images)."""
    device = next(model.parameters()).device
    place = {stitch_id: i for i, stitch_id in enumerate(ids)}
    sure: list[list[Tensor]] = [[] for _ in ids]
    right: list[list[Tensor]] = [[] for _ in ids]
    with evaluating(model):
        for batch in progress_bar(loader, desc="cascade", unit="batch", progress=progress):
            inputs, targets = split_targets(model, Batch.of(batch).to(device))
            for stitch_id, out in model.forward_each(inputs, ids):
                if targets.are_spans or logits_of(out).ndim > 2:
                    raise ValueError("a cascade needs one label per input, and these are labels of tokens.")
                logits, labels = flatten_pairs(out, targets)
                top = logits.softmax(-1).max(-1)
                sure[place[stitch_id]].append(top.values.float().cpu())
                right[place[stitch_id]].append(
                    (top.indices == to_class_numbers(labels, logits.shape[-1])).float().cpu()
                )
    if not sure[0]:
        raise ValueError("the loader must give images to choose a cascade on, got none.")
    return torch.stack([torch.cat(s) for s in sure]), torch.stack([torch.cat(r) for r in right])
