"""What calls of each stitch take on this machine, for several numbers of images."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from ...evaluation.profiling import name_of, profile
from ...families.timm_models.network import SNNet
from ...plan.frontier import pareto_frontier, with_score
from ...plan.timings import call_times
from ..policies import LatencyTable
from .promise import Promise

_logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
LEVELS = 12  # stitches of the frontier that are measured where none were: more differ by less than noise


def known_rows(model: SNNet, promise: Promise) -> list[dict[str, Any]]:
    """Rows of the network's table that a policy may choose among, by their accuracies.

    Raises:
        ValueError: if no accuracy is known.
    """
    model.results.check()
    table = model.stitch_table()
    known = with_score(table)
    if not known and promise.policy == "fixed":
        known = [{**row, "top1": row["macs"]} for row in table]  # the dearest is taken for the best
    if not known:
        raise ValueError(
            "no stitch of this network has a known accuracy, by which one is chosen: evaluate it, timm-stitch eval "
            "NET --data-dir … --save, or serve one stitch, --policy fixed --stitch-id K."
        )
    if promise.stitch_id is not None:
        known = [row for row in known if row["stitch_id"] == promise.stitch_id]
        if not known:
            raise ValueError(f"stitch {promise.stitch_id} is not in the plan, or its accuracy is not known.")
    return [dict(row) for row in known]


def latency_rows(model: SNNet, promise: Promise) -> list[dict[str, Any]]:
    """Rows of the network's table with latencies of this machine for several batch sizes, measured where missing.

    Raises:
        ValueError: if no accuracy is known.
    """
    known = known_rows(model, promise)
    device = next(model.parameters()).device
    here = name_of(device)
    measured = [row for row in known if row.get("profiled_on") == here and len(call_times(row)) > 1]
    if measured:
        return measured
    wanted = [row["stitch_id"] for row in pareto_frontier(known)]
    if len(wanted) > LEVELS:
        wanted = [wanted[round(n * (len(wanted) - 1) / (LEVELS - 1))] for n in range(LEVELS)]
    began = time.monotonic()
    first = profile(model, 1, device, stitch_ids=wanted, repeats=3)
    fastest = min(row["latency_ms"] for row in first)
    sizes = [b for b in BATCHES if b == 1 or b * fastest <= 4 * promise.latency_ms]
    found = {row["stitch_id"]: row for row in profile(model, batch_sizes=sizes, device=device, stitch_ids=wanted)}
    again = f"--batch-sizes {' '.join(map(str, sizes))} --threads {torch.get_num_threads()} --device {device}"
    _logger.warning(
        "latencies of %d stitches for %d batch sizes were measured in %.0f s; to keep them: timm-stitch profile NET %s "
        "--save",
        len(wanted), len(sizes), time.monotonic() - began, again,
    )  # fmt: skip
    return [{**row, **found[row["stitch_id"]]} for row in known if row["stitch_id"] in found]


def fixed_level(table: LatencyTable, promise: Promise) -> int:
    """The place in the table of the stitch that the fixed policy runs."""
    most = (promise.latency_ms - promise.reserve) / 1e3
    return max((n for n in range(len(table)) if table.seconds(n, 1) <= most), default=0)
