"""Several processes that train one network: only what a step used is averaged, and nothing is searched for.

Every process trains the same stitches in a step, so the parameters with a gradient are the same
everywhere, known without asking. Their gradients are averaged in flat buckets that leave while the backward pass of
the step's last micro-batch still runs. The network needs no wrapper; its weights are made equal once, at the start.
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

BUCKET_BYTES = 25 * 2**20  # that of torch's DistributedDataParallel


@torch.no_grad()
def broadcast_weights(model: nn.Module) -> None:
    """Give every process the weights and statistics of the first."""
    if world_size() > 1:
        for tensor in model.state_dict().values():
            if tensor.dtype != torch.bool:
                dist.broadcast(tensor, 0)


class GradientAverage:
    """Averages gradients over all processes while the backward pass that gives them still runs.

    A bucket leaves as soon as the pass has filled it and those before it have left. Buckets are the same on every
    process: the parameters that the losses reach, in the order in which a backward pass comes to them.

    Args:
        model: whose anchors and stitching layers learn; the same stitches on every process in a step.
    """

    def __init__(self, model: StitchableNetwork) -> None:
        self.model = model
        self._learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._known: dict[tuple[int, ...], list[list[nn.Parameter]]] = {}
        self._buckets: list[_Bucket] = []
        self._waiting: dict[nn.Parameter, int] = {}
        noticed = self._learning if world_size() > 1 else []
        self._hooks = [parameter.register_post_accumulate_grad_hook(self._arrived) for parameter in noticed]

    def close(self) -> None:
        """Leave the parameters."""
        for hook in self._hooks:
            hook.remove()

    def begin(self, stitch_ids: Sequence[int], loss: Tensor) -> None:
        """Expect the gradients of a step's last backward pass, which is to follow.

        Args:
            stitch_ids: what the step trains.
            loss: from which the pass will start.
        """
        if world_size() == 1:
            return
        key = tuple(stitch_ids)
        if key not in self._known:
            self._known[key] = _cut(self._ordered(key, _reached(loss)))
        self._buckets = [_Bucket(some) for some in self._known[key]]
        self._waiting = {p: number for number, bucket in enumerate(self._buckets) for p in bucket.parameters}

    def finish(self) -> int:
        """Send what has not left yet, wait for all, and put the means where the gradients are.

        Returns:
            How many bytes this process gave.
        """
        if world_size() == 1:
            return 0
        rest = [p for p in self._learning if p.grad is not None and p not in self._waiting]
        buckets = [*self._buckets, *map(_Bucket, _cut(rest))]
        self._buckets, self._waiting = [], {}
        for bucket in buckets:
            bucket.send()
        return sum(bucket.receive() for bucket in buckets)

    def _arrived(self, parameter: nn.Parameter) -> None:
        number = self._waiting.get(parameter)
        if number is None:
            return
        self._buckets[number].missing -= 1
        for bucket in self._buckets:
            if bucket.missing:
                return
            bucket.send()

    def _ordered(self, stitch_ids: Sequence[int], reached: set[nn.Parameter]) -> list[nn.Parameter]:
        """Parameters as a backward pass comes to them: back anchor, stitching layer, front anchor."""
        model, found = self.model, dict[nn.Parameter, None]()
        for stitch in (model.plan[stitch_id] for stitch_id in reversed(stitch_ids)):
            for i, segment in reversed(list(enumerate(stitch.segments))):
                modules = [model.anchors[segment.anchor]]
                modules += [model.stitching_layers[stitch.layers[i - 1]]] if i else []
                found.update((p, None) for module in modules for p in reversed(list(module.parameters())))
        found.update((parameter, None) for parameter in self._learning)
        return [parameter for parameter in found if parameter in reached]


@dataclass
class _Bucket:
    """Gradients that travel as one tensor."""

    parameters: list[nn.Parameter]
    work: Any = None

    def __post_init__(self) -> None:
        self.missing = len(self.parameters)

    @torch.no_grad()
    def send(self) -> None:
        """Start the sum over all processes, if that has not been done, of the gradients that there are."""
        if self.work is None:
            self.grads = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            if not self.grads:
                return
            self.flat = torch.cat([grad.reshape(-1) for grad in self.grads])
            self.work = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self) -> int:
        """Wait for it, and put the means where the gradients are; returns the bytes."""
        if self.work is None:
            return 0
        self.work.wait()
        self.flat /= world_size()
        for grad, mean in zip(self.grads, self.flat.split([grad.numel() for grad in self.grads]), strict=True):
            grad.copy_(mean.view_as(grad))
        return self.flat.numel() * self.flat.element_size()


def _cut(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters in buckets of one type and about `BUCKET_BYTES`."""
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


def _reached(loss: Tensor) -> set[nn.Parameter]:
    """The parameters that will have a gradient of a loss."""
    found, seen, pending = set(), {loss.grad_fn}, [loss.grad_fn]
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            found.add(node.variable)
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                pending.append(after)
    return found


def average_statistics(model: nn.Module) -> None:
    """Average the running statistics of BatchNorm over all processes."""
    if world_size() > 1:
        distribute_bn(model, world_size(), reduce=True)
