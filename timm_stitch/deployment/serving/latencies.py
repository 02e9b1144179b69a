"""The latencies of each stitch on this machine, for several batch sizes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from ...evaluation.profiling import profile_calls
from ...network.weights import cached_fingerprint
from ...plan.frontier import pareto_frontier, with_score
from ...plan.metrics import main_score
from ...plan.results import Row
from ...plan.timings import call_times, without_times
from ..class_names import task_of
from .backends.backend import Backend
from .backends.map_backend import most_maps
from .backends.torch_backend import TorchBackend
from .config import ServingConfig

_logger = logging.getLogger(__name__)

BATCHES = (1, 2, 4, 8, 16, 32, 64)
MOST_STITCHES = 12  # of the frontier that are measured: more differ by less than noise


def known_rows(model: Any, config: ServingConfig, stitch_ids: Collection[int] | None = None) -> list[Row]:
    """Find the rows of the network's table that a policy may choose from: those with accuracies.

    Args:
        model: the network.
        config: the policy, and its stitch.
        stitch_ids: the stitches that may answer; default all.

    Raises:
        ValueError: if no accuracy is known.
    """
    model.results.check()
    table = [row for row in model.stitch_table() if stitch_ids is None or row["stitch_id"] in stitch_ids]
    known = with_score(table)
    if not known and config.policy == "fixed":
        known = [{**row, "top1": row["macs"]} for row in table]  # the most expensive counts as the best
    if not known:
        by_name = "named_data" not in model.unsupported
        how = (
            f"timm-stitch eval {config.network} --data-dir … --save"
            if by_name
            else "model.results.add in Python, and save it"
        )
        raise ValueError(
            f"no stitch of this network has a known accuracy to choose it by: evaluate it, {how}, or serve one stitch, "
            "--policy fixed --stitch-id K."
        )
    if config.stitch_id is not None:
        known = [row for row in known if row["stitch_id"] == config.stitch_id]
        if not known:
            raise ValueError(f"stitch {config.stitch_id} is not in the plan, or its accuracy is not known.")
    return [dict(row) for row in known]


def latency_rows(
    model: Any,
    config: ServingConfig,
    backend: Backend | None = None,
    stitch_ids: Collection[int] | None = None,
    example: Callable[[int], Any] | None = None,
    length: int | None = None,
) -> list[Row]:
    """Find the rows of the network's table with latencies by a backend, and measure them if there are none.

    Args:
        model: the network.
        config: the latency target and the limits.
        backend: the backend that runs the stitches; default torch. Latencies of another one do not count.
        stitch_ids: the stitches that may answer; default all.
        example: a function that makes inputs of a number of units; default images.
        length: the tokens of the texts that it makes.

    Raises:
        ValueError: if no accuracy is known.
    """
    backend = TorchBackend(model) if backend is None else backend
    known = known_rows(model, config, stitch_ids)
    measured = [row for row in known if is_measured_by(row, backend) and len(call_times(row)) > 1]
    if measured:
        return measured
    wanted = frontier_stitches(known)
    began = time.monotonic()
    timed = measure(model, backend, config, wanted, example=example)
    seconds, sizes = time.monotonic() - began, list(call_times(timed[0]))
    advice = ""
    if isinstance(backend, TorchBackend) and backend.precision == "fp32":  # as `profile` measures it
        model.results.add(timed)
        device = next(model.parameters()).device
        again = f"--batch-sizes {' '.join(map(str, sizes))} --threads {torch.get_num_threads()} --device {device}"
        again += "" if length is None else f" --length {length}"
        advice = f"; to keep them: timm-stitch profile {config.network} {again} --save"
    _logger.warning(
        "latencies of %d stitches for %d batch sizes were measured in %.0f s%s",
        len(wanted),
        len(sizes),
        seconds,
        advice,
    )
    return with_times(known, timed)


def is_measured_by(row: Row, backend: Backend) -> bool:
    """Whether a row's latencies are those of a backend, at its precision."""
    return (row.get("profiled_on"), row.get("precision", "fp32")) == (backend.name, backend.precision)


def frontier_stitches(known: Sequence[Row]) -> list[int]:
    """Pick `MOST_STITCHES` ids at most of the frontier of accuracy and MACs, which no measurement of time changes."""
    return spread([row["stitch_id"] for row in pareto_frontier(known, score=main_score(known))])


def spread(stitch_ids: Sequence[int]) -> list[int]:
    """Pick `MOST_STITCHES` ids at most, the first and the last among them."""
    if len(stitch_ids) <= MOST_STITCHES:
        return list(stitch_ids)
    return [stitch_ids[round(n * (len(stitch_ids) - 1) / (MOST_STITCHES - 1))] for n in range(MOST_STITCHES)]


def measure(
    model: Any,
    backend: Backend,
    config: ServingConfig,
    stitch_ids: Sequence[int],
    warm: Callable[[Sequence[int]], None] = lambda batch_sizes: None,
    example: Callable[[int], Any] | None = None,
    most: int | None = None,
) -> list[Row]:
    """Measure stitches as a backend runs them, for the batch sizes that a latency target allows.

    Args:
        model: the network.
        backend: the backend.
        config: the latency target.
        stitch_ids: the stitches.
        warm: a function that makes the backend ready for batch sizes.
        example: a function that makes inputs of a number of units; default images.
        most: the largest batch that is worth a call; default any.
    """
    first = profile_calls(model, backend.run, [1], stitch_ids, repeats=3, example=example)
    fastest = min(row["latency_ms"] for row in first)
    if most is None:
        most = BATCHES[-1] if example is not None or task_of(model) == "classification" else most_maps(model)
    sizes = [b for b in BATCHES if b == 1 or (b <= most and b * fastest <= 4 * config.latency_ms)]
    warm(sizes)
    tags = {"profiled_on": backend.name, "precision": backend.precision, "weights": cached_fingerprint(model)}
    return [{**row, **tags} for row in profile_calls(model, backend.run, sizes, stitch_ids, example=example)]


def with_times(known: Sequence[Row], timed: Sequence[Row]) -> list[Row]:
    """Give rows their latencies; those without any are left out."""
    times = {row["stitch_id"]: row for row in timed}
    return [{**without_times(row), **times[row["stitch_id"]]} for row in known if row["stitch_id"] in times]
