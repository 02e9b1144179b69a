"""Evaluate every stitch in one pass over the data, sharing the work of equal fronts.

Results are rows of plain values, one a stitch, kept as JSON lines. Each row carries a fingerprint of
the weights it belongs to, so that results of other weights are never mistaken for these.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler, Subset
from tqdm.auto import tqdm

from ..data.batches import Batch
from ..data.processes import rank, summed, world_size
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..network.weights import fingerprint
from ..plan.prefix_sharing import schedule
from ..plan.results import Rows, read_rows, write_rows
from .scores import asked_by, scores


@torch.inference_mode()
def evaluate(
    model: StitchableNetwork,
    loader: Iterable[Any],
    stitch_ids: Sequence[int] | None = None,
    *,
    results: str | os.PathLike[str] | None = None,
    data: str | None = None,
    passes: int = 1,
    progress: bool = False,
) -> Rows:
    """Accuracy and loss of stitches on labelled images or texts.

    On several processes each one takes its share of the images, and all get the rows of all of them,
    with exact counts.

    Args:
        model: the network; it is evaluated in eval mode, on the device where it is.
        loader: batches of (images (B, C, H, W), labels (B,)), or mappings of tensors with `labels` as a tokenizer and
            a collator give them (of causal language models the text itself, where there are none); on several
            processes the same on each: a `DataLoader` over a whole dataset (or one that Accelerate prepared from it)
            is shared out image by image, anything else batch by batch, and must come in the same order everywhere.
        stitch_ids: which stitches; all by default.
        results: a JSON-lines file to which the rows of each pass are added, and from which the rows of
            these weights (by their fingerprint, on as many images, of the same `data`) are taken instead of
            evaluated again.
        data: a name or fingerprint of these images, kept in the rows; give one where `results` may hold rows of
            other images.
        passes: over how many passes to spread the stitches; more of them share less, and lose less if
            interrupted.
        progress: show a bar.

    Returns:
        One row a stitch in id order: `stitch_id`, `name`, `top1` and `top5` in per cent, `loss` (mean
        cross-entropy), `images`, `macs`, `params`, `device`, `weights` (the fingerprint), and `data` if given. For
        texts `texts` instead of `images`, and `length`, the tokens for which macs are counted; where tokens are
        classified also `tokens`, of language models `perplexity`. Padding and labels of -100 are left out.

    Raises:
        ValueError: if an id is not in the plan, there are no images, or passes is not positive.
    """
    if passes < 1:
        raise ValueError(f"passes={passes} is out of range: expected 1 or more.")
    ids = [model.plan[i].stitch_id for i in (model.stitch_ids if stitch_ids is None else stitch_ids)]
    mark = fingerprint(model)
    kept = read_rows(results) if results is not None and Path(results).exists() else []
    done = _done(kept, ids, mark, data, _count(loader))
    missing = [run.stitch.stitch_id for run in schedule(model.plan[i] for i in dict.fromkeys(ids) if i not in done)]
    batches = _share(loader)
    size = -(-len(missing) // passes)
    marks = {"weights": mark} | ({"data": data} if data is not None else {})
    for start in range(0, len(missing), size or 1):
        fresh = _one_pass(model, batches, missing[start : start + size], marks, progress and rank() == 0)
        done.update({row["stitch_id"]: row for row in fresh})
        kept += fresh
        if results is not None and rank() == 0:
            write_rows(results, kept)
    return [done[i] for i in sorted(done)]


def _done(kept: Rows, ids: Sequence[int], mark: str, data: str | None, images: int | None) -> dict[int, dict[str, Any]]:
    """Of the rows that are kept, those of these stitches, weights and images."""
    return {
        row["stitch_id"]: row
        for row in kept
        if row.get("weights") == mark
        and row.get("stitch_id") in ids
        and images in (None, row.get("images", row.get("texts")))
        and row.get("data") == data
    }


def _one_pass(
    model: StitchableNetwork, batches: Iterable[Any], ids: Sequence[int], marks: Mapping[str, str], progress: bool
) -> Rows:
    """The rows of these stitches, from one pass over the images."""
    device = next(model.parameters()).device
    # Of each stitch its scores, and below how many rows there were.
    sums = torch.zeros(len(ids) + 1, 4, dtype=torch.float64, device="cpu" if device.type == "mps" else device)
    number = {stitch_id: i for i, stitch_id in enumerate(ids)}
    with evaluating(model):
        for batch in tqdm(batches, desc="evaluate", unit="batch", disable=not progress):
            given, labels = Batch.of(batch).to(device)
            inputs, asked = asked_by(model, given, labels)
            sums[-1] += len(asked.labels)
            for stitch_id, out in model.forward_each(inputs, ids):
                sums[number[stitch_id]] += scores(out, asked).to(sums)
    *of_each, (seen, *_) = summed(sums).tolist()
    if not of_each[0][3]:
        raise ValueError("there is nothing to evaluate on: the loader gave no images.")
    costs = model.costs()
    rows = []
    for stitch_id, (first, five, loss, count) in zip(ids, of_each, strict=True):
        cost = costs.cost(model.plan[stitch_id])
        rows.append(
            {
                "stitch_id": stitch_id,
                "name": model.plan[stitch_id].name,
                "top1": 100 * (first / count),
                "top5": 100 * (five / count),
                "loss": loss / count,
                **model.extra_metrics(int(seen), int(count), loss / count),
                "macs": cost.macs,
                "params": cost.params,
                "device": device.type,
                **marks,
            }
        )
    return rows


def _whole(loader: Iterable[Any]) -> bool:
    """Whether a loader goes through a dataset with a length, each image once, over all processes together."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return False
    sampler: Any = loader.batch_sampler
    while hasattr(sampler, "batch_sampler"):  # Accelerate's share of it
        sampler = sampler.batch_sampler
    sampler = getattr(sampler, "sampler", loader.sampler)
    random = isinstance(sampler, RandomSampler) and not sampler.replacement
    last = getattr(loader.batch_sampler, "drop_last", loader.drop_last)
    data: Any = loader.dataset
    return (isinstance(sampler, SequentialSampler) or random) and not last and len(sampler) == len(data)


def _count(loader: Iterable[Any]) -> int | None:
    """How many images there are, if the loader says so."""
    data: Any = getattr(loader, "dataset", None)
    return len(data) if _whole(loader) else None


def _share(loader: Iterable[Any]) -> Iterable[Any]:
    """The images that fall to this process."""
    world, number = world_size(), rank()
    if world == 1:
        return loader
    if not _whole(loader):
        return _Every(loader, number, world)
    whole: Any = loader
    mine = Subset(whole.dataset, range(number, len(whole.dataset), world))
    size = whole.batch_size or getattr(whole.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        mine, size, num_workers=whole.num_workers, collate_fn=whole.collate_fn, worker_init_fn=whole.worker_init_fn
    )


class _Every:
    """Every `step`-th batch, from number `start` on."""

    def __init__(self, batches: Iterable[Any], start: int, step: int) -> None:
        self.batches, self.start, self.step = batches, start, step

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.batches), self.start, None, self.step)
