"""CUDA graphs: a stitch at a batch size is recorded once on a GPU, and replayed as one launch without its Python code.

A recording reads and writes fixed addresses, and all recordings share one pool of memory, which is safe while no two
run at once and none reads what another left there (torch's notes on CUDA semantics, "CUDA Graphs"). So one buffer of
images and one of logits serve all of them, both outside of the pool, and an answer is copied before the next replay.
Larger batches are recorded first, so that smaller ones fit into the memory of the pool.
"""

from __future__ import annotations

import logging
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ....choices import Precision
from ....families.timm_models.network import SNNet
from ...class_names import task_of
from .conversions import ConversionError
from .torch_backend import GPU_TURN, TorchBackend

_logger = logging.getLogger(__name__)

ENGINE = "cuda-graphs"
# The largest difference of a logit from eager torch's in the same precision, over the largest logit or 1.
BOUNDS: dict[Precision, float] = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-3}
_WARM_UP = 3  # calls before a recording: they load kernels and choose algorithms, which cannot be recorded
_PAUSE_S = 0.002  # between recordings, in which a waiting request gets its turn

Work = Callable[[Tensor, Tensor], None]  # reads a buffer of images, and writes one of logits


class Recorder(Protocol):
    """Records work on fixed buffers."""

    def record(self, work: Work, images: Tensor, logits: Tensor) -> Callable[[], object]:
        """Record work, and return what does it again on the same buffers."""

    def used_bytes(self) -> int:
        """Measure the memory that was taken since the first call."""


class CudaRecorder:
    """Records CUDA graphs on a stream of its own, in one pool of memory.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._renew()
        self._free_at_first: int | None = None

    def _renew(self) -> None:
        with torch.cuda.device(self.device):
            self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(self.device)

    def record(self, work: Work, images: Tensor, logits: Tensor) -> Callable[[], object]:
        """Record work; what it launches must depend on nothing but the addresses of the buffers and of the weights."""
        with torch.cuda.device(self.device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):  # left again even if the end of a recording fails
                for _ in range(_WARM_UP):
                    work(images, logits)
                recorded = torch.cuda.CUDAGraph()
                try:
                    # Other threads of this process may load a network meanwhile.
                    with torch.cuda.graph(recorded, self._pool, self._stream, capture_error_mode="thread_local"):
                        work(images, logits)
                except BaseException:
                    self._renew()  # the pool may be left as if it still recorded
                    raise
            before.wait_stream(self._stream)
        return recorded.replay

    def used_bytes(self) -> int:
        """Measure the GPU's memory that was taken since the first call, also by other processes."""
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self.device)[0]
        if self._free_at_first is None:
            self._free_at_first = free
        return max(0, self._free_at_first - free)


class _Graph(NamedTuple):
    """A recording, and the parts of the buffers that it reads and writes."""

    replay: Callable[[], object]
    images: Tensor
    logits: Tensor


def check_device(model: SNNet) -> None:
    """Refuse a network whose stitches cannot be recorded.

    Raises:
        ValueError: if it is not on a GPU, or is no classifier.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise ValueError(
            f"engine {ENGINE} records what runs on a GPU, and the network is on {device}: use --device cuda, or engine "
            "torch, openvino or onnxruntime."
        )
    if task_of(model) != "classification":
        raise ValueError(f"engine {ENGINE} runs classifiers, and this network predicts {task_of(model)}: use torch.")


class CudaGraphsBackend:
    """Replays recorded stitches, one call at a time; torch runs what is not recorded.

    A batch is padded with zeros to the next recorded size, and its answer cut.

    Args:
        reference: the network in torch, at the precision to record.
        most_memory_mb: the memory above which no more is recorded; default any.
        recorder: the recorder of graphs; default a `CudaRecorder`.
    """

    engine = ENGINE
    folder = None  # nothing of it can be kept on disk
    most_images = None  # larger batches are worth a call

    def __init__(
        self, reference: TorchBackend, most_memory_mb: float | None = None, recorder: Recorder | None = None
    ) -> None:
        self.reference, self.precision, self.most_memory_mb = reference, reference.precision, most_memory_mb
        self.name = f"{reference.name}, CUDA graphs"
        self.recorder = recorder or CudaRecorder(reference.device)
        self.shape = (reference.model.in_chans, *reference.model.image_size)
        self.closed = False
        self._stitch_ids: list[int] = []
        self._graphs: dict[tuple[int, int], _Graph] = {}  # by stitch and batch size
        self._sizes: dict[int, list[int]] = {}  # recorded batch sizes of each stitch, ascending
        self._tried: set[tuple[int, int]] = set()
        self._buffers: tuple[Tensor, Tensor] | None = None  # of images and logits, of the largest size

    @property
    def ready(self) -> Collection[int]:
        """The stitches of which at least one batch size is recorded."""
        return self._sizes.keys()

    def precision_of(self, stitch_id: int) -> Precision:
        """Return the precision of the network in torch, which is that of its recordings."""
        return self.precision

    def prepare(self, stitch_ids: Sequence[int], batch_sizes: Sequence[int]) -> None:
        """Record stitches at each batch size, and compare each recording with torch.

        Raises:
            ConversionError: if the backend was closed.
        """
        self._stitch_ids = list(stitch_ids)
        self.warm(batch_sizes)

    def warm(self, batch_sizes: Sequence[int]) -> None:
        """Record the stitches at further batch sizes."""
        wanted = [(k, n) for n in sorted(batch_sizes, reverse=True) for k in self._stitch_ids]
        wanted = [each for each in wanted if each not in self._tried]
        noise, faults = torch.empty(0), {}
        for stitch_id, size in wanted:
            if len(noise) != size:
                noise = torch.randn(size, *self.shape, generator=torch.Generator().manual_seed(0))
            time.sleep(_PAUSE_S)
            self._tried.add((stitch_id, size))
            with GPU_TURN:
                if self.closed:
                    raise ConversionError("the server no longer needs it.")
                used_mb = self.recorder.used_bytes() / 1e6
                if self.most_memory_mb is not None and used_mb > self.most_memory_mb:
                    faults[stitch_id, size] = f"{used_mb:.1f} MB are more than most_memory_mb={self.most_memory_mb:g}"
                    continue
                try:
                    self._record(stitch_id, size, noise)
                except Exception as error:  # what cannot be recorded raises errors of many kinds
                    faults[stitch_id, size] = f"{type(error).__name__}: {error}".splitlines()[0]
        if wanted:
            with GPU_TURN:
                used_mb, count = self.recorder.used_bytes() / 1e6, len(wanted) - len(faults)
            _logger.warning("%s: %d of %d recorded, %.1f MB in all", ENGINE, count, len(wanted), used_mb)
        if faults:
            (stitch_id, size), reason = next(iter(faults.items()))
            _logger.warning(
                "torch runs %d stitches × batch sizes that were not recorded; the first is stitch %d on %d images (%s)",
                len(faults), stitch_id, size, reason,
            )  # fmt: skip

    @torch.inference_mode()
    def _record(self, stitch_id: int, size: int, noise: Tensor) -> None:
        """Record a stitch at a batch size.

        Raises:
            ValueError: if it does not give torch's logits on noise.
        """
        model = self.reference.model

        def work(images: Tensor, logits: Tensor) -> None:
            logits.copy_(model(images, stitch_id=stitch_id))

        if self._buffers is None or len(self._buffers[0]) < size:  # earlier graphs keep theirs
            images = torch.zeros(size, *self.shape, dtype=self.reference.dtype, device=self.reference.device)
            self._buffers = images, torch.zeros(size, model.num_classes, device=self.reference.device)
        images, logits = (buffer[:size] for buffer in self._buffers)
        graph = _Graph(self.recorder.record(work, images, logits), images, logits)
        expected = self.reference.run(noise, stitch_id)
        difference = float((_replay(graph, noise) - expected).abs().max() / expected.abs().max().clamp(min=1))
        if not difference <= BOUNDS[self.precision]:  # NaN neither
            raise ValueError(f"its logits differ from torch's by {difference:.1e} of the largest")
        self._graphs[stitch_id, size] = graph
        insort(self._sizes.setdefault(stitch_id, []), size)

    @torch.inference_mode()
    def run(self, images: Tensor, stitch_id: int) -> Tensor:
        """Compute the logits of images, shape (B, C, H, W), on the CPU; in torch if they fit no recording."""
        sizes = self._sizes.get(stitch_id, ())
        place = bisect_left(sizes, len(images))
        if images.dtype == torch.float32 and images.shape[1:] == self.shape and len(images) and place < len(sizes):
            key = stitch_id, sizes[place]
            with GPU_TURN:
                graph = self._graphs.get(key)  # none if it was closed meanwhile
                try:
                    if graph is not None:
                        return _replay(graph, images)
                except Exception as error:
                    self._forget(key)
                    reason = f"{type(error).__name__}: {error}".splitlines()[0]
                    _logger.warning("torch runs stitch %d on %d images from now on: %s", *key, reason)
        return self.reference.run(images, stitch_id)

    def _forget(self, key: tuple[int, int]) -> None:
        stitch_id, size = key
        del self._graphs[key]
        sizes = [n for n in self._sizes[stitch_id] if n != size]
        self._sizes = (
            {**self._sizes, stitch_id: sizes} if sizes else {k: n for k, n in self._sizes.items() if k != stitch_id}
        )

    def close(self) -> None:
        """Free the graphs and their memory; what still waits for this network runs in torch."""
        with GPU_TURN:
            self.closed = True
            self._graphs, self._sizes, self._buffers = {}, {}, None


def _replay(graph: _Graph, images: Tensor) -> Tensor:
    """Run a graph on images, at most as many as it takes."""
    count = len(images)
    graph.images[:count].copy_(images)
    graph.images[count:].zero_()
    graph.replay()
    return graph.logits[:count].to("cpu", copy=True)  # waits for it
