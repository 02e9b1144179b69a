"""Measure the latency, throughput and memory of every stitch on a device.

Stitches and batch sizes are timed in turn, in another order each round, so that drift of the machine favours none. The
quick mode times each part (stem, block, stitching layer, head) once per round and adds them up. Its error is measured
on a few stitches that are timed whole.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..anchors.view import ImageInputs, Inputs, Output
from ..choices import Precision
from ..families.registry import family_of, require
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..network.weights import cached_fingerprint
from ..plan.results import Rows
from ..plan.steps import Step
from ..plan.stitch_plan import Stitch
from ..plan.timings import MOST_IMAGES, is_batch_size, latency_key
from ..progress import progress_bar
from .memory import count_memory

PRECISIONS: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKED = 5  # stitches that the quick mode times whole to measure its error

Times = dict[int, dict[str, float]]  # by stitch_id: the latencies of a row


@torch.inference_mode()
def profile(
    model: StitchableNetwork,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    *,
    batch_sizes: Sequence[int] | None = None,
    stitch_ids: Sequence[int] | None = None,
    precision: Precision = "fp32",
    repeats: int = 10,
    length: int | None = None,
    quick: bool = False,
    progress: bool = False,
) -> Rows:
    """Measure stitches on a device, and add the figures to the network's table.

    Times of further batch sizes are added. Times of another device or precision are dropped, for all stitches.

    Args:
        model: the network; it is measured in eval mode, and returns to its device. Compile it first to measure
            compiled stitches.
        batch_size: the number of images, or of texts of the network's `length`, per call; default 1.
        device: the device to measure on.
        batch_sizes: several batch sizes instead of one, 1 to 4,096 each.
        stitch_ids: the ids of the stitches; default all.
        precision: `"fp32"`, or `"bf16"`, `"fp16"` under autocast.
        repeats: the number of rounds; each figure is the median over them.
        length: the tokens of the texts; default the network's `length`.
        quick: whether to time parts instead of whole stitches, and add them up.
        progress: whether to show a bar.

    Returns:
        One row per stitch in id order:

        - `stitch_id`, `name`, `macs`, `params`, `precision`, `profiled_on`, and `weights` (the fingerprint). For texts
          `profiled_on` ends with their length.
        - `batch_size` (the smallest), and for calls of that size `latency_ms`, `latency_spread_ms` (the distance
          between the quartiles; not in the quick mode), `images_per_s` or `texts_per_s`, and `memory_mb` (the stitch's
          weights and the tensors alive at once; on CUDA all allocated memory).
        - `latency_ms_batch_N`, the latency of a call with N images, for each batch size.
        - `latency_error` in the quick mode: the relative error of the sums (median).

    Raises:
        ValueError: if an id is not in the plan, or an argument is out of range or contradicts another.

    Examples:
        >>> import timm, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors)
        >>> rows = timm_stitch.profile(model, batch_sizes=[1, 4], repeats=3)
        >>> len(rows), rows[0]["latency_ms"] == rows[0]["latency_ms_batch_1"] > 0
        (6, True)
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}.")
    sizes = check_batch_sizes(batch_size, batch_sizes)
    if quick:
        require(model, "quick_profile")
    if repeats < 1:
        raise ValueError(f"repeats must be 1 or more, got {repeats}.")
    takes_texts = family_of(model).takes_texts(model)
    if length is not None and not takes_texts:
        raise ValueError(f"length={length} is for networks of texts: leave it out.")
    stitches = [model.plan[i] for i in sorted(set(model.stitch_ids if stitch_ids is None else stitch_ids))]
    device, home = torch.device(device), next(model.parameters()).device
    model.to(device)
    try:
        with evaluating(model), torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            tokens = {} if length is None else {"length": length}
            batches = {n: model.example(n, **tokens) for n in sizes}
            clock = _Clock(model, batches, repeats, progress)
            timed = clock.time_parts(stitches) if quick else clock.time_whole(stitches)
            memory = {stitch.stitch_id: count_memory(model, stitch, batches[sizes[0]]) for stitch in stitches}
    finally:
        model.to(home)
    costs, device_name, weights = model.costs(), name_of(device), cached_fingerprint(model)
    if takes_texts:
        device_name += f", texts of {next(iter(batches[sizes[0]].values())).shape[1]} tokens"
    rows = []
    for stitch in stitches:
        cost, times = costs.cost(stitch), timed[stitch.stitch_id]
        rows.append(
            {
                "stitch_id": stitch.stitch_id,
                "name": stitch.name,
                "macs": cost.macs,
                "params": cost.params,
                **times,
                f"{'texts' if takes_texts else 'images'}_per_s": 1e3 * sizes[0] / times["latency_ms"],
                "memory_mb": memory[stitch.stitch_id] / 1e6,
                "batch_size": sizes[0],
                "precision": precision,
                "profiled_on": device_name,
                "weights": weights,
            }
        )
    model.results.add(rows)
    return rows


def profile_calls(
    model: StitchableNetwork,
    run: Callable[[Any, int], Output],
    batch_sizes: Sequence[int],
    stitch_ids: Sequence[int],
    repeats: int = 10,
    example: Callable[[int], Any] | None = None,
) -> Rows:
    """Measure stitches as something else than the network itself runs them, such as an engine.

    Args:
        model: the network, which is not changed and gets no rows.
        run: a function of inputs on the CPU and a stitch, which returns when the output is there.
        batch_sizes: the batch sizes.
        stitch_ids: the ids of the stitches.
        repeats: the number of rounds; each figure is the median over them.
        example: a function that makes the inputs of a call of a batch size; default the network's, in float32.

    Returns:
        One row per stitch: `stitch_id`, `batch_size`, and the latencies as from `profile`.
    """
    sizes = check_batch_sizes(None, batch_sizes)
    batches = {n: example(n) if example else model.example(n).float().cpu() for n in sizes}
    clock = _Clock(model, batches, repeats, False)
    clock.wait = lambda: None  # `run` has waited
    timed = clock.time_calls(run, stitch_ids)
    return [{"stitch_id": k, "batch_size": sizes[0], **times} for k, times in timed.items()]


def check_batch_sizes(batch_size: int | None, batch_sizes: Sequence[int] | None) -> list[int]:
    """Check one batch size or several, and sort them; without any, it is 1.

    Raises:
        ValueError: if one is out of range, or both arguments are given.
    """
    if batch_sizes is None:
        if batch_size is not None and not is_batch_size(batch_size):
            raise ValueError(
                f"batch_size must be a whole number from 1 to {MOST_IMAGES:,}, got {batch_size!r}; several are given "
                "as batch_sizes=[1, 8]."
            )
        return [1 if batch_size is None else batch_size]
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size!r} and batch_sizes={batch_sizes!r} are both given: give one of them.")
    sizes = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    if not sizes or not all(map(is_batch_size, sizes)) or len(set(sizes)) < len(sizes):
        raise ValueError(f"batch_sizes must be different whole numbers from 1 to {MOST_IMAGES:,}, got {batch_sizes!r}.")
    return sorted(sizes)


class _Clock:
    """Times calls of one network.

    Args:
        model: the network.
        batches: the inputs of calls by their number of images, the smallest first.
        repeats: the number of rounds.
        progress: whether to show a bar.
    """

    def __init__(self, model: StitchableNetwork, batches: Mapping[int, Inputs], repeats: int, progress: bool) -> None:
        self.model, self.batches = model, batches
        self.wait: Callable[[], None] = torch.cuda.synchronize if next(model.parameters()).is_cuda else lambda: None
        # The first round, -1, warms up.
        self.rounds = lambda: progress_bar(range(-1, repeats), desc="profile", unit="round", progress=progress)

    def _ms(self, call: Callable[[], Output]) -> tuple[float, Output]:
        self.wait()
        began = time.perf_counter()
        out = call()
        self.wait()
        return 1e3 * (time.perf_counter() - began), out

    def time_whole(self, stitches: Sequence[Stitch]) -> Times:
        """Time every stitch from its inputs to its output."""
        return self.time_calls(self.model.call, [stitch.stitch_id for stitch in stitches])

    def time_calls(self, run: Callable[[Inputs, int], Output], stitch_ids: Sequence[int]) -> Times:
        """Time a function of inputs and a stitch, for every stitch and batch size."""
        times: dict[tuple[int, int], list[float]] = {(k, size): [] for k in stitch_ids for size in self.batches}
        for turn in self.rounds():
            for stitch_id, size in random.Random(turn).sample(sorted(times), len(times)):
                ms, _ = self._ms(partial(run, self.batches[size], stitch_id))
                if turn >= 0:
                    times[stitch_id, size].append(ms)
        rows = self._rows(stitch_ids, {call: statistics.median(ms) for call, ms in times.items()})
        for stitch_id, row in rows.items():
            row["latency_spread_ms"] = _spread(times[stitch_id, next(iter(self.batches))])
        return rows

    def time_parts(self, stitches: Sequence[Stitch]) -> Times:
        """Time every part once per round; a stitch takes the sum of its parts."""
        times: dict[tuple[int, Step], list[float]] = {}
        ordered = sorted(stitches, key=lambda stitch: (len(stitch.segments), stitch.stitch_id))
        for turn in self.rounds():
            for size in random.Random(turn).sample(list(self.batches), len(self.batches)):
                for step, ms in self._time_steps(ordered, self.batches[size]):
                    times.setdefault((size, step), []).extend([ms] if turn >= 0 else [])
        sums = {
            (s.stitch_id, size): sum(statistics.median(times[size, step]) for step in s.steps)
            for s in stitches
            for size in self.batches
        }
        rows = self._rows([stitch.stitch_id for stitch in stitches], sums)
        # Measure the error of the sums on a few stitches from the fastest to the slowest.
        by_latency = sorted(stitches, key=lambda stitch: rows[stitch.stitch_id]["latency_ms"])
        checked = {by_latency[round(i * (len(by_latency) - 1) / (CHECKED - 1))] for i in range(CHECKED)}
        whole = self.time_whole(sorted(checked, key=lambda stitch: stitch.stitch_id))
        keys = [latency_key(size) for size in self.batches]
        error = statistics.median(abs(rows[k][key] / row[key] - 1) for k, row in whole.items() for key in keys)
        return {k: row | {"latency_error": error} for k, row in rows.items()}

    def _time_steps(self, stitches: Iterable[Stitch], x: Tensor) -> Iterator[tuple[Step, float]]:
        """Time every step of some stitches once, on the path of the first stitch that has it."""
        done: set[Step] = set()
        inputs = ImageInputs(x)
        for stitch in stitches:
            missing = [n for n, step in enumerate(stitch.steps) if step not in done]
            h = None
            for n in range(missing[-1] + 1 if missing else 0):
                ms, h = self._ms(partial(self.model.executor.step, stitch, n, h, inputs))
                if stitch.steps[n] not in done:
                    done.add(stitch.steps[n])
                    yield stitch.steps[n], ms

    def _rows(self, stitch_ids: Iterable[int], times: Mapping[tuple[int, int], float]) -> Times:
        """Turn times by (stitch_id, images) into rows: first that of the smallest batch, then all by their own keys."""
        first = next(iter(self.batches))
        return {
            k: {"latency_ms": times[k, first]} | {latency_key(size): times[k, size] for size in self.batches}
            for k in stitch_ids
        }


def _spread(values: Sequence[float]) -> float:
    """Compute the distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def name_of(device: torch.device) -> str:
    """Name a device for people, with the settings that decide its speed."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = processor_name() if device.type == "cpu" else platform.processor() or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def processor_name() -> str:
    """Name this machine's processor for people."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
