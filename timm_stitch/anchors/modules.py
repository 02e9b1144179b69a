"""Modules of an anchor: reached by name, copied without their tensors, called with what hangs on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn


def anchor_name(model: nn.Module) -> str:
    """What people call a model: timm's architecture name, or else its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def clone_without_hooks(module: nn.Module) -> nn.Module:
    """A module with the same attributes and no hooks; `copy.copy` refuses parametrised ones."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    drop_hooks(twin)
    return twin


def partial_copy(module: nn.Module, keep: set[str]) -> nn.Module:
    """Copy a module without what is not kept; kept parameters and submodules are the same objects."""
    twin = clone_without_hooks(module)
    twin._parameters = {k: v for k, v in module._parameters.items() if v is None or k in keep}
    twin._buffers = {k: v for k, v in module._buffers.items() if v is None or k in keep}
    twin._modules = {}
    for name, child in module._modules.items():
        inner = {k[len(name) + 1 :] for k in keep if k.startswith(name + ".")}
        if child is None or name in keep:
            twin._modules[name] = child
        elif inner:
            twin._modules[name] = partial_copy(child, inner)
    return twin


def drop_hooks(module: nn.Module) -> None:
    """Give a shallow copy no hooks instead of those of the module that it was copied from."""
    module.__dict__.update({name: type(hooks)() for name, hooks in hooks_of(module).items()})


def hooks_of(module: nn.Module) -> dict[str, dict[Any, Any]]:
    """A module's own mappings of hooks, by the names of the attributes."""
    return {name: value for name, value in module.__dict__.items() if "_hooks" in name and isinstance(value, dict)}


def copy_structure(module: nn.Module | None) -> nn.Module | None:
    """A module with submodules of its own and the same tensors."""
    if module is None:
        return None
    twin = clone_without_hooks(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: copy_structure(child) for name, child in module._modules.items()}
    return twin


def child(model: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name, as it is now; through `_modules`, so that no wrapper on the way is passed by.

    Raises:
        ValueError: if it is not there: a module on the way was replaced by one that is made in another way.
    """
    module: Any = model
    if name:
        try:
            for atom in name.split("."):
                module = module._modules[atom]
        except (KeyError, AttributeError):
            raise _replaced(model, name) from None
    found: nn.Module = module
    return found


def _replaced(model: nn.Module, name: str) -> ValueError:
    """That the submodule of a name is not there, and what is in its place."""
    module: nn.Module = model
    way: list[str] = []
    for atom in name.split("."):
        below = module._modules.get(atom)
        if below is None:
            break
        module, way = below, [*way, atom]
    return ValueError(
        f"{anchor_name(model)!r} has no {name!r} any more: {'.'.join(way) or 'the model'} is now a "
        f"{type(module).__name__}, or what was in it was removed. Replace {name!r} itself, or stitch again after "
        "replacing."
    )


def with_hook(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call what uses tensors of a module outside of the module's own call, with Accelerate's hook around it.

    The hook brings the module's tensors to where they are used, and takes them away again.
    """
    hook: Any = module.__dict__.get("_hf_hook")
    if hook is None:
        return function(*args)
    args, kwargs = hook.pre_forward(module, *args)
    return hook.post_forward(module, function(*args, **kwargs))


def call_with_hooks(module: nn.Module, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in the place of a module's forward, with all hooks that hang on the module's call."""

    def forward(_: nn.Module, *given: Any) -> Any:
        return with_hook(module, function, *given)

    kind: Any = type(module)
    twin: Any = object.__new__(type(kind.__name__, (kind,), {"forward": forward}))
    twin.__dict__ = {k: v for k, v in module.__dict__.items() if k != "forward"}  # Accelerate's; `with_hook` sees to it
    return twin(*args)


def has_hooks(module: nn.Module) -> bool:
    """Whether hooks hang on a module's call."""
    own = module.__dict__
    return bool(own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"])


def find_submodule(module: nn.Module | None, name: str) -> nn.Module | None:
    """The submodule of a dotted name, or None if it is not there or was pruned."""
    for atom in name.split("."):
        module = module._modules.get(atom) if module is not None else None
    return module
