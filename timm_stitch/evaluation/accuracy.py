"""Evaluate every stitch in one pass over the data, sharing the work of equal fronts.

Each stitch has a row of plain values, saved as a line of JSON. A row holds the fingerprint of its weights, so results
of other weights are never mistaken for these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, TypeGuard, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset

from ..data.batches import Batch
from ..data.processes import rank, summed, world_size
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..network.weights import fingerprint
from ..plan.prefix_sharing import schedule
from ..plan.results import Rows, read_rows, write_rows
from ..progress import progress_bar
from .scores import Scores, split_targets


@torch.inference_mode()
def evaluate(
    model: StitchableNetwork,
    loader: Iterable[object],
    stitch_ids: Sequence[int] | None = None,
    *,
    results: str | os.PathLike[str] | None = None,
    data: str | None = None,
    passes: int = 1,
    progress: bool = False,
) -> Rows:
    """Measure the accuracy, or the metrics of another task, and the loss of stitches on labelled images or texts.

    Several processes share the images, and each gets the rows of all images, with exact counts.

    Args:
        model: the network; it is evaluated in eval mode, on its own device.
        loader: batches of (images (B, C, H, W), labels (B,)), or mappings of tensors with `labels` from a tokenizer and
            a collator (causal language models need no labels: the text is the target). Labels are class numbers;
            one-hot labels (B, classes) of images count as such. Dense networks take masks of class numbers (B, H, W),
            where 255 does not count, or depths in metres (B, H, W), where 0 is none. Each of several processes passes
            the same loader. A `DataLoader` over a whole dataset, also one prepared by Accelerate, is shared image by
            image; any other is shared batch by batch and must have the same order everywhere.
        stitch_ids: the stitches; default all.
        results: a JSON-lines file that keeps the rows. Rows of these weights (by their fingerprint, with as many images
            and the same `data`) are read from it instead of measured, and each pass adds its rows.
        data: a name or fingerprint of these images, kept in the rows; needed if `results` may hold rows of other
            images.
        passes: the number of passes over which the stitches are spread; more passes share less work, and lose less
            if they are interrupted.
        progress: whether to show a bar.

    Returns:
        One row per stitch in id order: `stitch_id`, `name`, `top1` and `top5` in per cent, `loss` (mean
        cross-entropy), `images`, `macs`, `params`, `device`, `weights` (the fingerprint), and `data`. Rows of
        texts have `texts` instead of `images`, and `length`, the tokens for which macs are counted; token classifiers
        add `tokens`, language models `perplexity`. Padding and labels of -100 are left out. Instead of `top1` and
        `top5`, segmentation has `miou`, `aacc` and `macc`, and depth `abs_rel`, `delta1`, `rmse` and `silog`.

    Raises:
        ValueError: if an id is not in the plan, there are no images, passes is not positive, or the labels are not
            those of one class each (mixed, multi-label or regression targets).

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors)
        >>> rows = timm_stitch.evaluate(model, [(torch.randn(8, 3, 32, 32), torch.arange(8) % 4)])
        >>> rows[0]["name"], rows[0]["images"], rows[0]["macs"]
        ('vit_tiny_patch16_224#0', 8, 228512)
    """
    if passes < 1:
        raise ValueError(f"passes must be 1 or more, got {passes}.")
    ids = [model.plan[i].stitch_id for i in (model.stitch_ids if stitch_ids is None else stitch_ids)]
    weights_id = fingerprint(model)
    saved = read_rows(results) if results is not None and Path(results).exists() else []
    done = _select_current(saved, ids, weights_id, data, _count_images(loader))
    missing = [run.stitch.stitch_id for run in schedule(model.plan[i] for i in dict.fromkeys(ids) if i not in done)]
    batches = _take_share(loader)
    size = -(-len(missing) // passes)
    row_tags = {"weights": weights_id} | ({"data": data} if data is not None else {})
    for start in range(0, len(missing), size or 1):
        measured = _run_pass(model, batches, missing[start : start + size], row_tags, progress and rank() == 0)
        done.update({row["stitch_id"]: row for row in measured})
        saved += measured
        if results is not None and rank() == 0:
            write_rows(results, saved)
    return [done[i] for i in sorted(done)]


def _select_current(
    saved: Rows, ids: Sequence[int], weights_id: str, data: str | None, images: int | None
) -> dict[int, dict[str, Any]]:
    """Select the kept rows of these stitches, weights and images."""
    return {
        row["stitch_id"]: row
        for row in saved
        if row.get("weights") == weights_id
        and row.get("stitch_id") in ids
        and images in (None, row.get("images", row.get("texts")))
        and row.get("data") == data
    }


def _run_pass(
    model: StitchableNetwork, items: Iterable[object], ids: Sequence[int], row_tags: Mapping[str, str], progress: bool
) -> Rows:
    """Measure the rows of these stitches in one pass over the images."""
    device = next(model.parameters()).device
    scores = Scores(model)
    # One row of scores per stitch; the last row counts the inputs.
    sums = torch.zeros(len(ids) + 1, scores.size, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    number = {stitch_id: i for i, stitch_id in enumerate(ids)}
    with evaluating(model):
        for item in progress_bar(items, desc="evaluate", unit="batch", progress=progress):
            inputs, targets = split_targets(model, Batch.of(item).to(device))
            sums[-1] += len(targets.labels)
            for stitch_id, output in model.predict_each(inputs, ids):
                sums[number[stitch_id]] += scores.sum(output, targets).to(sums)
    *totals, last = summed(sums).cpu()
    costs = model.costs()
    rows = []
    for stitch_id, total in zip(ids, totals, strict=True):
        metrics = scores.row(total, int(last[0]))
        if metrics is None:
            raise ValueError("there is nothing to evaluate on: the loader gave no images with labels that count.")
        cost = costs.cost(model.plan[stitch_id])
        rows.append(
            {
                "stitch_id": stitch_id,
                "name": model.plan[stitch_id].name,
                **metrics,
                "macs": cost.macs,
                "params": cost.params,
                "device": device.type,
                **row_tags,
            }
        )
    return rows


def _covers_dataset(loader: Iterable[object]) -> TypeGuard[DataLoader[object]]:
    """Whether a loader goes through a dataset with a length, each image once, over all processes together."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # Accelerate wraps it to share the batches
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", loader.sampler)
    visits_each = isinstance(sampler, SequentialSampler) or (
        isinstance(sampler, RandomSampler) and not sampler.replacement
    )
    drops_last = getattr(loader.batch_sampler, "drop_last", loader.drop_last)
    return visits_each and not drops_last and len(sampler) == _length(loader)


def _length(loader: DataLoader[object]) -> int:
    return len(cast("Sized", loader.dataset))


def _count_images(loader: Iterable[object]) -> int | None:
    """Count the images of a loader; None if its length does not tell."""
    return _length(loader) if _covers_dataset(loader) else None


def _take_share(loader: Iterable[object]) -> Iterable[object]:
    """Take this process's share of the images."""
    world, number = world_size(), rank()
    if world == 1:
        return loader
    if not _covers_dataset(loader):
        return _EveryNth(loader, number, world)
    share = Subset(loader.dataset, range(number, _length(loader), world))
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        share,
        size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        worker_init_fn=loader.worker_init_fn,
    )


class _EveryNth:
    """Every `step`-th batch, from batch `start` on."""

    def __init__(self, batches: Iterable[object], start: int, step: int) -> None:
        self.batches, self.start, self.step = batches, start, step

    def __iter__(self) -> Iterator[object]:
        return islice(iter(self.batches), self.start, None, self.step)
