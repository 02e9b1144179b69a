"""A model's forward pass as a list of steps, recorded once on the meta device.

A twin without storage runs one forward pass under torch.fx while every value keeps an example.
So sizes stay symbolic where the model computes with them, control flow goes where it goes for images of
this size, and the shape of each value is known. Blocks and layers are single steps; what is between them
(the model's own glue) is recorded operation by operation. The steps hold names, no modules: they run on
the model itself, or on a part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Target
from torch.overrides import TorchFunctionMode

from ....anchors.macs import Macs
from ....anchors.meta_device import meta_copy
from .recording import DEVICE, Program, Ref, Step, map_leaves, merged

Args = tuple[object, ...]
Kwargs = dict[str, object]


def record(
    model: nn.Module,
    channels: int,
    size: tuple[int, int],
    should_expand: Callable[[nn.Module], bool],
    batch: int = 2,
    training: bool = True,
) -> Program:
    """Record a model's forward pass in evaluation, with the arguments that differ in training marked.

    Args:
        model: the model on any device; neither run nor changed.
        channels, size, batch: the channels, the (height, width) and the number of the images.
        should_expand: whether a module is recorded operation by operation, not as one step.
        training: whether to record training mode, too.

    Raises:
        Exception: whatever the model raises when its glue cannot be recorded.
    """
    twin = meta_copy(model)
    closed: set[type] = set()
    counter = Macs()
    while True:  # a module that cannot be expanded becomes one step
        recorder = _Recorder(lambda m: should_expand(m) and type(m) not in closed, counter)
        try:
            program = recorder.record(twin.eval(), channels, size, batch)
            break
        except Exception:
            if recorder.failed is None:
                raise
            closed.add(recorder.failed)
    if not training:
        return program
    try:
        recorder = _Recorder(lambda m: should_expand(m) and type(m) not in closed, counter)
        return merged(program, recorder.record(twin.train(), channels, size, batch))
    except Exception:
        return program


class _Shadow(fx.Proxy):
    """A recorded value with its example; where Python needs a number, it is the example's."""

    tracer: _Recorder
    example: Any

    def __init__(self, node: fx.Node, tracer: _Recorder, example: Any) -> None:
        super().__init__(node, tracer)
        self.__dict__["example"] = example

    def __getattr__(self, name: str) -> Any:
        example = self.__dict__["example"]
        if name.startswith("__") or (name in ("ndim", "requires_grad", "is_cuda", "is_sparse", "layout")):
            return getattr(example, name)
        value = getattr(example, name)
        if callable(value) and not isinstance(value, Tensor):
            if name in ("dim", "is_floating_point", "ndimension", "is_contiguous"):
                return value
            return lambda *args, **kwargs: self.tracer.create_proxy("call_method", name, (self, *args), kwargs)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __iter__(self) -> Iterator[fx.Proxy]:
        shadow: Any = self
        return iter([shadow[i] for i in range(len(self.example))])

    def __len__(self) -> int:
        return len(self.example)

    def _force(self) -> Any:
        self.tracer.forced = True
        return self.example

    def __bool__(self) -> bool:
        return bool(self._force())

    def __int__(self) -> int:
        return int(self._force())

    def __float__(self) -> float:
        return float(self._force())

    def __index__(self) -> int:
        return int(self._force().__index__())

    def __contains__(self, item: object) -> bool:
        return item in self._force()


class _Images(nn.Module):
    """Calls a model with images alone, whatever else its forward would take."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> object:
        return self.model(image)


class _Loose(TorchFunctionMode):
    """Records calls that make tensors out of no recorded value (`torch.arange(7)`)."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Callable[..., object], types: Iterable[type], args: Args = (), kwargs: Kwargs | None = None
    ) -> object:
        kwargs = kwargs or {}
        if self.recorder.busy or any(issubclass(t, fx.Proxy) for t in types):
            return func(*args, **kwargs)
        self.recorder.busy = True
        try:
            result = func(*args, **kwargs)
        finally:
            self.recorder.busy = False
        if isinstance(result, Tensor) and getattr(func, "__name__", "") not in ("__get__", "__set__"):
            return self.recorder.create_proxy("call_function", func, args, kwargs)
        return result


class _Recorder(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, should_expand: Callable[[nn.Module], bool], counter: Macs) -> None:
        super().__init__()
        self.should_expand, self.counter = should_expand, counter
        self.failed: type | None = None  # the innermost expanded module that raised
        self.busy = self.forced = self.in_head = False
        self.expanded: set[str] = set()  # the names of modules that are recorded operation by operation
        self.values: dict[fx.Node, tuple[Any, int, int | None]] = {}  # example, macs, version of the example
        self.head_values: list[object] = []  # what entered and left each call of `forward_head`

    def record(self, twin: nn.Module, channels: int, size: tuple[int, int], batch: int) -> Program:
        dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), None)
        self.image = torch.empty(batch, channels, *size, dtype=dtype, device="meta")
        self.batch, self.size = batch, size
        root = _Images(twin)
        loose = ((name, k, v) for name, m in root.named_modules() for k, v in m.__dict__.items())
        self.names = {id(v): f"{name}.{k}" for name, k, v in loose if isinstance(v, Tensor)}
        head = getattr(twin, "forward_head", None)
        if head is not None:

            def recorded_head(*args: object, **kwargs: object) -> object:
                self.head_values.append(args[0] if len(args) == 1 and not kwargs else None)
                self.in_head = True
                result = head(*args, **kwargs)
                self.in_head = False
                self.head_values.append(result)
                return result

            twin.__dict__["forward_head"] = recorded_head
        try:
            with torch.no_grad(), self.counter, _Loose(self):
                graph = self.trace(root)
        finally:
            twin.__dict__.pop("forward_head", None)
        return self._program(graph)

    def call_module(self, m: nn.Module, forward: Callable[..., object], args: Args, kwargs: Kwargs) -> object:
        if self.busy:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if path != "model" and not self.should_expand(m):
            return self.create_proxy("call_module", path, args, kwargs)
        if path != "model" and not self.in_head:
            self.expanded.add(path.removeprefix("model."))
        try:
            return forward(*args, **kwargs)
        except BaseException:
            if self.failed is None and path != "model":
                self.failed = type(m)
            raise

    def getattr(self, attr: str, attr_val: object, parameter_proxy_cache: dict[str, fx.Proxy]) -> object:
        return attr_val if self.busy else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: object) -> Any:
        if isinstance(a, Tensor) and id(a) in self.names:
            return self.create_proxy("get_attr", self.names[id(a)], (), {}).node
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) and not any(a is b for b in self.root.buffers()):
            raise TypeError("its forward pass makes a tensor that cannot be recorded")
        if isinstance(a, torch.device):
            return DEVICE
        if a is DEVICE or a is torch.strided or isinstance(a, type):
            return a
        return super().create_arg(a)

    def create_proxy(
        self, kind: str, target: Target, args: object, kwargs: object, *more: object, **named: object
    ) -> Any:
        node = self.create_node(kind, target, self.create_arg(args), self.create_arg(kwargs))
        before = self.counter.total
        self.busy = True
        try:
            example = self._example(kind, target, *map_leaves(_example, (args, kwargs)))
        finally:
            self.busy = False
        version = example._version if isinstance(example, Tensor) else None
        self.values[node] = (example, self.counter.total - before, version)
        return None if example is None else _Shadow(node, self, example)

    def _example(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: Kwargs) -> object:
        if kind == "placeholder":
            return self.image
        if kind == "get_attr":
            owner, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(owner), name)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def create_node(
        self, kind: str, target: Target, args: object, kwargs: object, *more: object, **named: object
    ) -> fx.Node:
        # Arguments stay outside the node: fx would want constants of its own types only.
        node = self.graph.create_node(kind, target, (), {})
        node.meta["args"] = (args, kwargs)
        return node

    def _program(self, graph: fx.Graph) -> Program:
        kinds = {"call_module": "module", "get_attr": "attribute", "call_function": "function", "call_method": "method"}
        nodes = [n for n in graph.nodes if n.op != "output"]
        order = {node: i for i, node in enumerate(nodes)}

        def to_ref(leaf: object) -> object:
            return Ref(order[leaf]) if isinstance(leaf, fx.Node) else leaf

        steps: list[Step | None] = [None]
        for node in nodes[1:]:
            args, kwargs = map_leaves(to_ref, node.meta["args"])
            target = node.target.removeprefix("model.") if node.op in ("call_module", "get_attr") else node.target
            steps.append(Step(kinds[node.op], target, args, kwargs))
        last = next(n for n in graph.nodes if n.op == "output")
        output = map_leaves(to_ref, last.meta["args"][0])[0]
        examples, macs, versions = zip(*(self.values[n] for n in nodes), strict=True)
        stable = tuple(v is None or e._version == v for e, v in zip(examples, versions, strict=True))
        head = None
        ends = [value.node for value in self.head_values if isinstance(value, fx.Proxy)]
        if len(self.head_values) == len(ends) == 2 and output == Ref(order[ends[1]]):
            head = order[ends[0]]
        return Program(
            tuple(steps), output, examples, macs, stable, head, self.forced, self.size, self.batch,
            frozenset(self.expanded),
        )  # fmt: skip


def _example(leaf: object) -> object:
    if isinstance(leaf, _Shadow):
        return leaf.example
    return torch.device("meta") if leaf is DEVICE or isinstance(leaf, torch.device) else leaf
