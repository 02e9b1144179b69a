"""The latencies of each stitch on this machine, for several batch sizes."""

from __future__ import annotations

import logging
import time

import torch

from ...evaluation.profiling import name_of, profile
from ...families.timm_models.network import SNNet
from ...plan.frontier import pareto_frontier, with_score
from ...plan.metrics import main_score
from ...plan.results import Row
from ...plan.timings import call_times
from ..class_names import task_of
from .config import ServingConfig

_logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
MOST_BYTES = 1 << 29  # of the outputs of a dense network in one call
MOST_STITCHES = 12  # of the frontier that are measured: more differ by less than noise


def most_maps(model: SNNet) -> int:
    """Compute how many images a dense network may take at once, so that their outputs stay within memory."""
    height, width = model.image_size
    return max(1, MOST_BYTES // (4 * model.num_classes * height * width))


def known_rows(model: SNNet, config: ServingConfig) -> list[Row]:
    """Find the rows of the network's table that a policy may choose from: those with accuracies.

    Raises:
        ValueError: if no accuracy is known.
    """
    model.results.check()
    table = model.stitch_table()
    known = with_score(table)
    if not known and config.policy == "fixed":
        known = [{**row, "top1": row["macs"]} for row in table]  # the most expensive counts as the best
    if not known:
        raise ValueError(
            "no stitch of this network has a known accuracy to choose it by: evaluate it, timm-stitch eval NET "
            "--data-dir … --save, or serve one stitch, --policy fixed --stitch-id K."
        )
    if config.stitch_id is not None:
        known = [row for row in known if row["stitch_id"] == config.stitch_id]
        if not known:
            raise ValueError(f"stitch {config.stitch_id} is not in the plan, or its accuracy is not known.")
    return [dict(row) for row in known]


def latency_rows(model: SNNet, config: ServingConfig) -> list[Row]:
    """Find the rows of the network's table with latencies on this machine, and measure them if there are none.

    Raises:
        ValueError: if no accuracy is known.
    """
    known = known_rows(model, config)
    device = next(model.parameters()).device
    here = name_of(device)
    measured = [row for row in known if row.get("profiled_on") == here and len(call_times(row)) > 1]
    if measured:
        return measured
    wanted = [row["stitch_id"] for row in pareto_frontier(known, score=main_score(known))]
    if len(wanted) > MOST_STITCHES:
        wanted = [wanted[round(n * (len(wanted) - 1) / (MOST_STITCHES - 1))] for n in range(MOST_STITCHES)]
    began = time.monotonic()
    first = profile(model, 1, device, stitch_ids=wanted, repeats=3)
    fastest = min(row["latency_ms"] for row in first)
    most = BATCHES[-1] if task_of(model) == "classification" else most_maps(model)
    sizes = [b for b in BATCHES if b == 1 or (b <= most and b * fastest <= 4 * config.latency_ms)]
    timed = {row["stitch_id"]: row for row in profile(model, batch_sizes=sizes, device=device, stitch_ids=wanted)}
    again = f"--batch-sizes {' '.join(map(str, sizes))} --threads {torch.get_num_threads()} --device {device}"
    _logger.warning(
        "latencies of %d stitches for %d batch sizes were measured in %.0f s; to keep them: timm-stitch profile NET %s "
        "--save",
        len(wanted), len(sizes), time.monotonic() - began, again,
    )  # fmt: skip
    return [{**row, **timed[row["stitch_id"]]} for row in known if row["stitch_id"] in timed]
