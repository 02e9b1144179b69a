"""Evaluate every stitch in one pass over the data, sharing the work of equal fronts.

Results are rows of plain values, one a stitch, kept as JSON lines. Each row carries a fingerprint of
the weights it belongs to, so that results of other weights are never mistaken for these.

Imports torch, Accelerate and the layers below.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .network import SNNet

Rows = list[dict[str, Any]]


def fingerprint(model: nn.Module) -> str:
    """A digest of a network's weights: 16 hexadecimal digits, equal for equal names and values."""
    return fingerprint_of(model.state_dict())


def fingerprint_of(state_dict: Mapping[str, Tensor]) -> str:
    """The `fingerprint` of weights by name."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(state_dict.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_again(model: nn.Module) -> str:
    """The `fingerprint`, from memory while no tensor has changed.

    Whether one has is told from where each lies, torch's count of its changes, and sixteen of its values.
    """
    glance = []
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        few = flat[:: max(1, flat.numel() // 16)].double().sum().item() if flat.numel() else 0.0
        version = 0 if tensor.is_inference() else tensor._version
        glance.append((name, tensor.data_ptr(), version, few))
    kept = model.__dict__.get("_fingerprint")
    if kept is None or kept[0] != glance:
        kept = glance, fingerprint(model)
        model.__dict__["_fingerprint"] = kept
    return kept[1]


@torch.inference_mode()
def evaluate(
    model: SNNet,
    loader: Iterable[Any],
    stitch_ids: Sequence[int] | None = None,
    *,
    progress: bool = False,
) -> Rows:
    """Accuracy and loss of stitches on labelled images.

    Args:
        model: the network; it is evaluated in eval mode, on the device where it is.
        loader: batches of (images (B, C, H, W), labels (B,)).
        stitch_ids: which stitches; all by default.
        progress: show a bar.

    Returns:
        One row a stitch in id order: `stitch_id`, `name`, `top1` and `top5` in per cent, `loss` (mean
        cross-entropy), `images`, `macs`, `params`, `device`, `weights` (the fingerprint).

    Raises:
        ValueError: if an id is not in the plan, or there are no images.
    """
    ids = [model.plan[i].stitch_id for i in (model.stitch_ids if stitch_ids is None else stitch_ids)]
    device = next(model.parameters()).device
    sums = {i: torch.zeros(3, dtype=torch.float64, device=device) for i in ids}
    images = 0
    was_training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        for batch, labels in tqdm(loader, desc="evaluate", unit="batch", disable=not progress):
            batch, labels = batch.to(device), labels.to(device)
            images += len(labels)
            for stitch_id, logits in model.forward_each(batch, ids):
                sums[stitch_id] += _scores(logits, labels)
    finally:
        for module in was_training:
            module.training = True
    if not images:
        raise ValueError("there is nothing to evaluate on: the loader gave no images.")
    mark = fingerprint(model)
    costs = model.costs()
    rows = []
    for stitch_id in sorted(sums):
        top1, top5, loss = (sums[stitch_id] / images).tolist()
        cost = costs.cost(model.plan[stitch_id])
        rows.append(
            {
                "stitch_id": stitch_id,
                "name": model.plan[stitch_id].name,
                "top1": 100 * top1,
                "top5": 100 * top5,
                "loss": loss,
                "images": images,
                "macs": cost.macs,
                "params": cost.params,
                "device": device.type,
                "weights": mark,
            }
        )
    return rows


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over a batch: right at first, right among five, cross-entropy."""
    logits = logits.float()
    ranked = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == labels[:, None]
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return torch.stack([ranked[:, 0].sum(), ranked.sum(), loss]).double()


def write_rows(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w") as file:
            for row in rows:
                file.write(json.dumps(dict(row)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def read_rows(path: str | os.PathLike[str]) -> Rows:
    """Read what `write_rows` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{str(path)!r}, line {number}, is no JSON ({error}): expected one object a line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number}, is no JSON object: expected one row a line.")
        rows.append(row)
    return rows
