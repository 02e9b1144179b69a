"""Data parallelism that averages the gradients of used parameters alone, without a search for them.

Every process trains the same stitches in a step, so the parameters with a gradient are the same everywhere. Their
gradients are averaged in flat buckets, which are sent while the backward pass of the step's last micro-batch runs. The
network needs no wrapper; its weights are broadcast once, at the start.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from torch import Tensor, nn

from ..data.processes import world_size
from ..network.stitchable import StitchableNetwork

BUCKET_BYTES = 25 * 2**20  # as in torch's DistributedDataParallel


@torch.no_grad()
def broadcast_weights(model: nn.Module) -> None:
    """Give every process the weights and statistics of the first."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            if tensor.dtype != torch.bool:
                dist.broadcast(tensor, 0)


class GradientAverage:
    """Averages gradients over all processes while the backward pass still runs.

    A bucket is sent once the pass has filled it and those before it are sent. Buckets are the same on every process:
    the parameters that the losses reach, in the order in which a backward pass reaches them.

    Args:
        model: the network that learns; every process trains the same stitches in a step.
    """

    def __init__(self, model: StitchableNetwork) -> None:
        self.model = model
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._known: dict[tuple[int, ...], list[list[nn.Parameter]]] = {}
        self._buckets: list[_Bucket] = []
        self._waiting: dict[nn.Parameter, int] = {}
        noticed = self._learning if world_size() > 1 else []
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._on_gradient) for parameter in noticed]

    def close(self) -> None:
        """Remove the hooks from the parameters."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, stitch_ids: Sequence[int], loss: Tensor) -> None:
        """Prepare for a step's last backward pass.

        Args:
            stitch_ids: the stitches that the step trains.
            loss: the loss from which the pass will start.
        """
        if world_size() == 1:
            return
        key = tuple(stitch_ids)
        if key not in self._known:
            self._known[key] = _make_buckets(self._ordered(key, _used_parameters(loss)))
        self._buckets = [_Bucket(parameters) for parameters in self._known[key]]
        self._waiting = {p: number for number, bucket in enumerate(self._buckets) for p in bucket.parameters}

    def finish(self) -> int:
        """Send the remaining buckets, wait for all, and write the means into the gradients.

        Returns:
            The number of bytes that this process sent.
        """
        if world_size() == 1:
            return 0
        rest = [p for p in self._learning if p.grad is not None and p not in self._waiting]
        buckets = [*self._buckets, *map(_Bucket, _make_buckets(rest))]
        self._buckets, self._waiting = [], {}
        for bucket in buckets:
            bucket.send()
        return sum(bucket.receive() for bucket in buckets)

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        number = self._waiting.get(parameter)
        if number is None:
            return
        self._buckets[number].missing -= 1
        for bucket in self._buckets:
            if bucket.missing:
                return
            bucket.send()

    def _ordered(self, stitch_ids: Sequence[int], reached: set[nn.Parameter]) -> list[nn.Parameter]:
        """Order parameters as a backward pass reaches them: head, back anchor, stitching layer, front anchor."""
        model, ordered = self.model, dict[nn.Parameter, None]()
        path = {parameter for part in (model.anchors, model.stitching_layers) for parameter in part.parameters()}
        ordered.update((parameter, None) for parameter in reversed(self._learning) if parameter not in path)
        for stitch in (model.plan[stitch_id] for stitch_id in reversed(stitch_ids)):
            for i, segment in reversed(list(enumerate(stitch.segments))):
                modules = [model.anchors[segment.anchor]]
                modules += [model.stitching_layers[stitch.layers[i - 1]]] if i else []
                ordered.update((p, None) for module in modules for p in reversed(list(module.parameters())))
        ordered.update((parameter, None) for parameter in self._learning)
        return [parameter for parameter in ordered if parameter in reached]


@dataclass
class _Bucket:
    """Gradients that are averaged as one tensor."""

    parameters: list[nn.Parameter]
    work: dist.Work | None = None

    def __post_init__(self) -> None:
        self.missing = len(self.parameters)

    @torch.no_grad()
    def send(self) -> None:
        """Start the sum of the gradients over all processes, if it has not started."""
        if self.work is None:
            self.grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            if not self.grads:
                return
            self.flat = torch.cat([grad.reshape(-1) for grad in self.grads])
            self.work = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self) -> int:
        """Wait for the sum, and write the means into the gradients; returns the number of bytes."""
        if self.work is None:
            return 0
        self.work.wait()
        self.flat /= world_size()
        for grad, mean in zip(self.grads, self.flat.split([grad.numel() for grad in self.grads]), strict=True):
            grad.copy_(mean.view_as(grad))
        return self.flat.numel() * self.flat.element_size()


def _make_buckets(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Split parameters into buckets of one type and about `BUCKET_BYTES`."""
    buckets: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        bytes_ = parameter.numel() * parameter.element_size()
        last = buckets[-1][0] if buckets else None
        alike = last is not None and (last.dtype, last.device) == (parameter.dtype, parameter.device)
        if not alike or size + bytes_ > BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += bytes_
    return buckets


def _used_parameters(loss: Tensor) -> set[nn.Parameter]:
    """Find the parameters that will have a gradient of a loss."""
    used, seen, pending = set(), {loss.grad_fn}, [loss.grad_fn]
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            used.add(node.variable)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)
    return used


def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm over all processes."""
    if world_size() > 1:
        distribute_bn(model, world_size(), reduce=True)
