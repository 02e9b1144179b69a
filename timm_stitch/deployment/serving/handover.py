"""From torch, which answers from the first second, to an engine, once it has compiled the network's stitches.

A thread compiles the stitches, compares them with torch, measures their latencies, and only then replaces the
deployment. If any of it fails, torch stays, and one warning says why.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Protocol

import torch

from ...evaluation.profiling import processor_name, profile_calls
from ...families.timm_models.network import SNNet
from ...plan.timings import Row, call_times
from ..class_names import task_of
from ..policies import LatencyTable
from .backends.backend import Backend
from .backends.calibration import calibrating_images, image_files
from .backends.compiled import CompiledBackend, Compiler, give_memory_back
from .backends.conversions import ConversionError, read_latencies, write_latencies
from .backends.cuda_graphs import ENGINE as CUDA_GRAPHS
from .backends.cuda_graphs import CudaGraphsBackend, check_device
from .backends.torch_backend import TorchBackend
from .config import ServingConfig
from .deployments import Deployment
from .latencies import frontier_stitches, is_measured_by, measure, with_times
from .network import ServedNetwork

_logger = logging.getLogger(__name__)

WORTH = 0.85  # the share of torch's time below which "auto" takes an engine
SHARED = 2.0  # the ratio of whole stitches to the weights of all together above which they are compiled in parts
_TRIED = 3  # stitches by which "auto" decides
_AUTO = "openvino"

Deploy = Callable[[ServedNetwork, LatencyTable, Backend], Deployment]
MakeBackend = Callable[[TorchBackend, ServedNetwork, Sequence[int]], "EngineBackend | None"]


class EngineBackend(Backend, Protocol):
    """A backend that takes over from torch when it is ready.

    Attributes:
        reference: the network in torch.
        folder: the folder where latencies are kept for the next start; None if there is none.
        closed: whether `close` was called.
    """

    reference: TorchBackend
    closed: bool

    @property
    def most_images(self) -> int | None:
        """The largest batch that is worth a call; None for any."""

    @property
    def folder(self) -> Path | None:
        """The folder of its conversion."""

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Make the stitches that were prepared fast for further batch sizes."""


def find_engine(model: SNNet, config: ServingConfig) -> MakeBackend | None:
    """Find what makes the backend of a config's engine, before anything is served.

    Args:
        model: the network that it is to run.
        config: the engine, its precision and its memory.

    Returns:
        A function of the network in torch, its description and the stitches to prepare, which makes the backend, or
        None if it would take too much memory; None if torch serves.

    Raises:
        ImportError: if the engine is not installed.
        ValueError: if the network or the precision does not fit the engine.
    """
    if config.engine == CUDA_GRAPHS:
        check_device(model)
        return lambda reference, network, stitch_ids: CudaGraphsBackend(reference, config.most_memory_mb)
    loaded = load_compiler(model, config)
    if loaded is None:
        return None
    name, compiler = loaded

    def compiled(reference: TorchBackend, network: ServedNetwork, stitch_ids: Sequence[int]) -> EngineBackend | None:
        layout = choose_layout(name, compiler, network.model, stitch_ids, config)
        if layout is None:
            return None
        threads, machine = torch.get_num_threads(), processor_name()
        calibrate = partial(calibrating_images, network, config) if config.precision == "int8" else None
        return CompiledBackend(reference, compiler, name, threads, machine, layout, calibrate)

    return compiled


def load_compiler(model: SNNet, config: ServingConfig) -> tuple[str, Compiler] | None:
    """Import the compiler of an engine.

    Args:
        model: the network that it is to run.
        config: the engine and its precision.

    Returns:
        The engine's name and its compiler; None if torch serves, which for `"auto"` a line in the log explains.

    Raises:
        ImportError: if the engine is not installed.
        ValueError: if the network or the precision does not fit the engine.
    """
    engine = config.engine
    if engine == "torch":
        return None
    name = _AUTO if engine == "auto" else engine
    compiler: Compiler = import_module(f"{__package__}.backends.{name}_engine")
    device = next(model.parameters()).device
    try:
        if device.type != "cpu":
            raise ValueError(
                f"engine {name} runs on the CPU, and the network is on {device}: use torch or cuda-graphs there."
            )
        if task_of(model) != "classification":
            raise ValueError(f"engine {name} runs classifiers, and this network predicts {task_of(model)}: use torch.")
        if config.precision not in compiler.FORMATS:
            fits = " or ".join(compiler.FORMATS)
            raise ValueError(f"engine {name} computes in {fits} here, got precision {config.precision}.")
        compiler.check(config.precision)
        if config.calibration is not None:
            image_files(config.calibration)
    except (ImportError, ValueError) as error:
        if engine != "auto":
            raise
        _logger.warning("torch serves: %s", error)
        return None
    return name, compiler


def choose_layout(
    engine: str, compiler: Compiler, model: SNNet, stitch_ids: Sequence[int], config: ServingConfig
) -> str | None:
    """Choose between whole stitches and the parts that they share, and print how much memory their weights take.

    Args:
        engine: the name of the engine.
        compiler: the engine.
        model: the network.
        stitch_ids: the stitches to compile.
        config: the precision and the most memory.

    Returns:
        `"whole"`, or `"parts"` where whole stitches would take more than twice the weights of all together; None if
        torch serves, since `"auto"` would take more memory than the config allows.

    Raises:
        ValueError: if another engine would take more.
    """
    extracted = [dict(model.extract(k).named_parameters()) for k in stitch_ids]
    whole = sum(tensor.numel() for small in extracted for tensor in small.values()) * 4 / 1e6
    union = sum(tensor.numel() for tensor in {k: v for s in extracted for k, v in s.items()}.values()) * 4 / 1e6
    if config.precision == "int8":
        whole /= 4
    layout = "parts" if compiler.SHARES_PARTS and config.precision != "int8" and whole > SHARED * union else "whole"
    megabytes = union if layout == "parts" else whole
    how = "in parts that they share" if layout == "parts" else "each with its own copy of its weights"
    _logger.warning("%s compiles %d stitches, %s: about %.1f MB", engine, len(stitch_ids), how, megabytes)
    if config.most_memory_mb is not None and megabytes > config.most_memory_mb:
        reason = (
            f"{engine} would take about {megabytes:.1f} MB for {len(stitch_ids)} stitches, more than most_memory_mb="
            f"{config.most_memory_mb:g}: allow more, serve one stitch by policy fixed, or use engine torch."
        )
        if config.engine != "auto":
            raise ValueError(reason)
        _logger.warning("torch serves: %s", reason)
        return None
    return layout


class Handover:
    """Prepares an engine in a thread, and hands over to it.

    Args:
        backend: the engine's backend, with nothing prepared yet.
        deployment: the deployment in torch, which serves meanwhile.
        known: the rows of the network's table, as they were before torch was measured.
        config: the latency target, the engine and the precision.
        deploy: a function that makes a deployment of a network, a table and a backend.
        replace: a function that replaces one deployment by another, unless it was replaced meanwhile.
    """

    def __init__(
        self, backend: EngineBackend, deployment: Deployment, known: Sequence[Row], config: ServingConfig,
        deploy: Deploy, replace: Callable[[Deployment, Deployment], bool],
    ) -> None:  # fmt: skip
        self.backend, self.deployment, self.config = backend, deployment, config
        self.deploy, self.replace = deploy, replace
        self.known = known
        self.thread = threading.Thread(target=self._work, name="compiler", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Give up what is not ready."""
        self.backend.close()

    def _work(self) -> None:
        began, backend = time.monotonic(), self.backend
        try:
            new = self._prepared()
            give_memory_back()
            if new is not None and self.replace(self.deployment, new):
                _logger.warning(
                    "%s answers from now on: %d stitches, after %.0f s",
                    backend.engine, len(backend.ready), time.monotonic() - began,
                )  # fmt: skip
        except ConversionError as error:
            if not backend.closed:
                _logger.warning("torch stays: %s", error)
        except Exception as error:  # an engine's faults are of many kinds
            _logger.warning("torch stays: %s failed (%s: %s)", backend.engine, type(error).__name__, error)

    def _prepared(self) -> Deployment | None:
        """Compile and measure; None if the engine is not worth it."""
        backend, table, network = self.backend, self.deployment.table, self.deployment.network
        assert isinstance(network, ServedNetwork)
        model, wanted = network.model, frontier_stitches(self.known)
        backend.prepare(wanted, table.batch_sizes)
        ready = [k for k in wanted if k in backend.ready]
        if not ready:
            return None
        if self.config.engine == "auto" and (ratio := self._ratio(model, ready)) > WORTH:
            _logger.warning("torch stays: %s takes %.2f of its time, above %g", backend.engine, ratio, WORTH)
            return None
        least = 1 if backend.most_images == 1 else 2  # batch sizes that a table needs
        rows = [row for row in self.known if is_measured_by(row, backend) and len(call_times(row)) >= least]
        if backend.folder and not set(ready) <= {row["stitch_id"] for row in rows}:
            rows = read_latencies(backend.folder, backend.name)
        if not set(ready) <= {row["stitch_id"] for row in rows}:
            rows = measure(model, backend, self.config, ready, backend.warm, most=backend.most_images)
            if backend.folder:
                write_latencies(backend.folder, backend.name, rows)
        new_table = LatencyTable(with_times(self.known, rows))
        backend.warm(sorted(set(new_table.batch_sizes) - set(table.batch_sizes)))
        return self.deploy(network, new_table, backend)

    def _ratio(self, model: SNNet, stitch_ids: Sequence[int]) -> float:
        """Measure the engine's time over torch's for one image, in turns, on a few stitches."""
        last = len(stitch_ids) - 1
        tried = sorted({stitch_ids[round(n * last / (_TRIED - 1))] for n in range(_TRIED)})
        ratios: list[float] = []
        for _ in range(3):
            both = [profile_calls(model, b.run, [1], tried, 3) for b in (self.backend, self.backend.reference)]
            ratios += [a["latency_ms"] / b["latency_ms"] for a, b in zip(*both, strict=True)]
        return statistics.median(ratios)
