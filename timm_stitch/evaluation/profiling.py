"""Measure every stitch on this device: latency, throughput, memory.

Stitches and batch sizes are timed in turn, in another order each round, so that a machine that drifts favours none.
The quick mode times each part (stem, block, stitching layer, head) once a round instead and adds them up; its error
is measured on a few stitches that are timed whole.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm.auto import tqdm

from ..anchors.view import ImageInputs
from ..families.registry import require
from ..network.modes import evaluating
from ..network.stitchable import StitchableNetwork
from ..network.weights import cached_fingerprint
from ..plan.steps import Step
from ..plan.stitch_plan import Stitch
from ..plan.timings import MOST_IMAGES, is_batch_size, latency_key

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CHECKED = 5  # stitches that the quick mode times whole, to know its error


@torch.inference_mode()
def profile(
    model: StitchableNetwork,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    *,
    batch_sizes: Sequence[int] | None = None,
    stitch_ids: Sequence[int] | None = None,
    precision: str = "fp32",
    repeats: int = 10,
    quick: bool = False,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Measure stitches on a device, and keep the figures in the network's table.

    Times of further batch sizes are added to those that the table has of this device and precision; what it has of
    others is dropped, of all stitches.

    Args:
        model: the network; it is measured in eval mode, and ends where it was. Compile it before, if it will run so.
        batch_size: images, or texts of the network's `length`, of one call; default 1.
        device: where.
        batch_sizes: several of them instead, 1 to 4,096 each.
        stitch_ids: which; all by default.
        precision: `"fp32"`, or `"bf16"`, `"fp16"` under autocast.
        repeats: rounds; each figure is the median over them.
        quick: time parts instead of whole stitches, and add them up.
        progress: show a bar.

    Returns:
        One row a stitch in id order: `stitch_id`, `name`, `macs`, `params`, `latency_ms` (of one call) and
        `latency_spread_ms` (between the quartiles; not in the quick mode), `images_per_s`, `memory_mb` (MB of the
        stitch's weights and of the tensors alive at once, on CUDA of all that was allocated), `batch_size` (that
        these are of: the smallest), `latency_ms_batch_N` (of one call with N images, for each batch size),
        `precision`, `profiled_on`, `weights` (the fingerprint), and in the quick mode `latency_error`: by how
        much, relative to stitches timed whole, the sums are off (median).

    Raises:
        ValueError: if an id is not in the plan, or an argument is out of range or contradicts another.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r} is unknown: expected one of {', '.join(PRECISIONS)}.")
    sizes = _sizes(batch_size, batch_sizes)
    if quick:
        require(model, "quick_profile")
    if repeats < 1:
        raise ValueError(f"repeats={repeats} is out of range: expected 1 or more.")
    stitches = [model.plan[i] for i in sorted(set(model.stitch_ids if stitch_ids is None else stitch_ids))]
    device, home = torch.device(device), next(model.parameters()).device
    model.to(device)
    try:
        with evaluating(model), torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"):
            batches = {n: model.example(n) for n in sizes}
            clock = _Clock(model, batches, repeats, progress)
            timed = clock.parts(stitches) if quick else clock.whole(stitches)
            memory = {stitch.stitch_id: _memory(model, stitch, batches[sizes[0]]) for stitch in stitches}
    finally:
        model.to(home)
    said = {"batch_size": sizes[0], "precision": precision, "profiled_on": name_of(device)}
    said["weights"] = cached_fingerprint(model)
    rows = [_row(model, stitch, timed[stitch.stitch_id], memory[stitch.stitch_id], said) for stitch in stitches]
    model.results.add(rows)
    return rows


def _row(
    model: StitchableNetwork, stitch: Stitch, figures: Mapping[str, float], memory: int, said: Mapping[str, Any]
) -> dict[str, Any]:
    """What was measured of a stitch, and how."""
    cost = model.costs().cost(stitch)
    row = {"stitch_id": stitch.stitch_id, "name": stitch.name, "macs": cost.macs, "params": cost.params, **figures}
    row |= {"images_per_s": 1e3 * said["batch_size"] / figures["latency_ms"], "memory_mb": memory / 1e6}
    return row | dict(said)


def _sizes(batch_size: Any, batch_sizes: Any) -> list[int]:
    """The batch sizes asked for, the smallest first."""
    if batch_sizes is None:
        if batch_size is not None and not is_batch_size(batch_size):
            raise ValueError(
                f"batch_size={batch_size!r} is out of range: expected a whole number from 1 to {MOST_IMAGES:,}; "
                "several are given as batch_sizes=[1, 8]."
            )
        return [1 if batch_size is None else batch_size]
    if batch_size is not None:
        raise ValueError(f"batch_size={batch_size!r} and batch_sizes={batch_sizes!r} are both given: give one of them.")
    sizes = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    if not sizes or not all(map(is_batch_size, sizes)) or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"batch_sizes={batch_sizes!r} is out of range: expected whole numbers from 1 to {MOST_IMAGES:,}, each once."
        )
    return sorted(sizes)


class _Clock:
    """Times calls of one network on batches, by their number of images, the smallest first."""

    def __init__(self, model: StitchableNetwork, batches: Mapping[int, Any], repeats: int, progress: bool) -> None:
        self.model, self.batches, self.repeats = model, batches, repeats
        on_cuda = next(model.parameters()).is_cuda
        self.wait: Callable[[], Any] = torch.cuda.synchronize if on_cuda else lambda: None
        self.rounds = lambda: tqdm(range(-1, repeats), desc="profile", unit="round", disable=not progress)

    def _ms(self, call: Callable[[], Tensor]) -> tuple[float, Tensor]:
        self.wait()
        began = time.perf_counter()
        out = call()
        self.wait()
        return 1e3 * (time.perf_counter() - began), out

    def whole(self, stitches: Sequence[Stitch]) -> dict[int, dict[str, float]]:
        """Every stitch from image to logits, the first round to warm up."""
        found: dict[tuple[int, int], list[float]] = {(s.stitch_id, size): [] for s in stitches for size in self.batches}
        for turn in self.rounds():
            for stitch_id, size in random.Random(turn).sample(sorted(found), len(found)):
                spent, _ = self._ms(partial(self.model.call, self.batches[size], stitch_id))
                if turn >= 0:
                    found[stitch_id, size].append(spent)
        figures = self._figures(stitches, {call: statistics.median(spent) for call, spent in found.items()})
        for stitch_id, row in figures.items():
            row["latency_spread_ms"] = _spread(found[stitch_id, next(iter(self.batches))])
        return figures

    def parts(self, stitches: Sequence[Stitch]) -> dict[int, dict[str, float]]:
        """Every part once a round; a stitch is the sum of its parts."""
        found: dict[tuple[int, Step], list[float]] = {}
        ordered = sorted(stitches, key=lambda stitch: (len(stitch.segments), stitch.stitch_id))
        for turn in self.rounds():
            for size in random.Random(turn).sample(list(self.batches), len(self.batches)):
                for step, spent in self._each_part(ordered, self.batches[size]):
                    found.setdefault((size, step), []).extend([spent] if turn >= 0 else [])
        sums = {
            (s.stitch_id, size): sum(statistics.median(found[size, step]) for step in s.steps)
            for s in stitches
            for size in self.batches
        }
        figures = self._figures(stitches, sums)
        by_cost = sorted(stitches, key=lambda stitch: figures[stitch.stitch_id]["latency_ms"])
        few = {by_cost[round(i * (len(by_cost) - 1) / (CHECKED - 1))] for i in range(CHECKED)}
        whole = self.whole(sorted(few, key=lambda stitch: stitch.stitch_id))
        keys = [latency_key(size) for size in self.batches]
        error = statistics.median(abs(figures[k][key] / row[key] - 1) for k, row in whole.items() for key in keys)
        return {k: row | {"latency_error": error} for k, row in figures.items()}

    def _each_part(self, stitches: Iterable[Stitch], x: Any) -> Iterator[tuple[Step, float]]:
        """Every part of some stitches once, on the way of the first that has it."""
        done: set[Step] = set()
        inputs = ImageInputs(x)
        for stitch in stitches:
            missing = [n for n, step in enumerate(stitch.steps) if step not in done]
            h = None
            for n in range(missing[-1] + 1 if missing else 0):
                spent, h = self._ms(partial(self.model.executor.step, stitch, n, h, inputs))
                if stitch.steps[n] not in done:
                    done.add(stitch.steps[n])
                    yield stitch.steps[n], spent

    def _figures(
        self, stitches: Iterable[Stitch], times: Mapping[tuple[int, int], float]
    ) -> dict[int, dict[str, float]]:
        """Times by (stitch_id, images) as rows have them: that of the smallest batch, then each by its own name."""
        first = next(iter(self.batches))
        return {
            s.stitch_id: {"latency_ms": times[s.stitch_id, first]}
            | {latency_key(size): times[s.stitch_id, size] for size in self.batches}
            for s in stitches
        }


def _spread(values: Sequence[float]) -> float:
    """The distance between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _memory(model: StitchableNetwork, stitch: Stitch, x: Any) -> int:
    """Bytes of the stitch's weights, and of what its forward pass holds at once beside them."""
    weights = sum(p.numel() * p.element_size() for p in model.extract(stitch.stitch_id).parameters())
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        model.call(x, stitch.stitch_id)
        return int(weights + torch.cuda.max_memory_allocated(device) - before)
    inputs = (leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor))
    with _Alive((*model.parameters(), *model.buffers(), *inputs)) as alive:
        model.call(x, stitch.stitch_id)
    return int(weights + alive.peak)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that calls of this thread make, as long as they live; others are left alone.

    Args:
        known: tensors that are there before, which do not count.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {id(storage): storage for storage in (tensor.untyped_storage() for tensor in known)}
        self.living: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known or key in self.living:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self.living.pop(key, None)

        self.living[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def name_of(device: torch.device) -> str:
    """A device's name for people, with what else decides how fast it is."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if device.type == "cpu" and info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = names[0] if names else name
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"
