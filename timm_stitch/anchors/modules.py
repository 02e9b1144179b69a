"""Modules of an anchor: found by name, copied without their tensors, called with their hooks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, TypeVar

from torch import nn

Result = TypeVar("Result")


def anchor_name(model: nn.Module) -> str:
    """Name a model for people: by timm's architecture name, or else its class."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    return cfg.get("architecture") or type(model).__name__


def clone(module: nn.Module) -> nn.Module:
    """Copy a module shallowly, with its hooks and patched methods; `copy.copy` refuses parametrised modules."""
    twin = object.__new__(type(module))
    for name, value in module.__dict__.items():
        patched = isinstance(value, MethodType) and value.__self__ is module
        twin.__dict__[name] = MethodType(value.__func__, twin) if patched else value
    return twin


def partial_copy(module: nn.Module, keep: set[str]) -> nn.Module:
    """Copy a module with only the parameters, buffers and submodules to keep, which stay the same objects."""
    twin = clone(module)
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


def copy_root(module: nn.Module) -> nn.Module:
    """Copy a module whose parameters, buffers and submodules stay the same objects."""
    twin = clone(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = dict(module._modules)
    return twin


def drop_hooks(module: nn.Module) -> None:
    """Remove the hooks of a shallow copy, without touching those of the original."""
    module.__dict__.update({name: type(hooks)() for name, hooks in hooks_of(module).items()})


def hooks_of(module: nn.Module) -> dict[str, dict[object, object]]:
    """Get a module's own mappings of hooks, by the names of the attributes."""
    return {name: value for name, value in module.__dict__.items() if "_hooks" in name and isinstance(value, dict)}


def copy_structure(module: nn.Module | None) -> nn.Module | None:
    """Copy a module and its submodules, with the same tensors and hooks."""
    if module is None:
        return None
    twin = copy_root(module)
    twin._modules = {name: copy_structure(child) for name, child in module._modules.items()}
    return twin


def child(model: nn.Module, name: str) -> nn.Module:
    """Get the submodule of a dotted name, as it is now; through `_modules`, so that wrappers on the way count.

    Raises:
        ValueError: if it does not exist: a module on the way was replaced by another kind of module.
    """
    module = find_submodule(model, name) if name else model
    if module is None:
        raise _replaced(model, name)
    return module


def _replaced(model: nn.Module, name: str) -> ValueError:
    """Make the error for a submodule that does not exist, which names the last module on the way."""
    module, path = model, ""
    for atom in name.split("."):
        submodule = module._modules.get(atom)
        if submodule is None:
            break
        module, path = submodule, f"{path}.{atom}".removeprefix(".")
    return ValueError(
        f"{anchor_name(model)!r} has no {name!r} any more: {path or 'the model'} is now a {type(module).__name__}, or "
        f"its submodule was removed. Replace {name!r} itself, or stitch again after replacing."
    )


def with_hook(module: nn.Module, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function that uses tensors of a module outside the module's own call, inside Accelerate's hook.

    The hook moves the module's tensors to the device of the call, and away again.
    """
    hook = module.__dict__.get("_hf_hook")
    if hook is None:
        return function(*args, **kwargs)
    args, kwargs = hook.pre_forward(module, *args, **kwargs)
    result: Result = hook.post_forward(module, function(*args, **kwargs))
    return result


def unhooked_forward(module: nn.Module) -> Callable[..., Any]:
    """Get a module's own forward without Accelerate's hook around it."""
    own, forward = module.__dict__, type(module).forward
    if "_hf_hook" not in own:
        return module.forward
    whole: Callable[..., Any] = own["_old_forward"] if "forward" in own else MethodType(forward, module)
    return whole


OUTPUT_HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def call_with_hooks(module: nn.Module, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Call a function in place of a module's forward, with all hooks on the module's call, which get the module."""

    def forward(_: nn.Module, *inputs: Any, **options: Any) -> Result:
        return with_hook(module, function, *inputs, **options)

    kind, own = type(module), module.__dict__
    twin: nn.Module = object.__new__(type(kind.__name__, (kind,), {"forward": forward}))
    # The attribute `forward` is a patch, or Accelerate's, which `with_hook` replaces.
    twin.__dict__ = {k: v for k, v in own.items() if k not in ("forward", "_compiled_call_impl")}
    for name in HOOKS:
        twin.__dict__[name] = OrderedDict((key, _for_module(module, hook)) for key, hook in own[name].items())
    result: Result = twin(*args, **kwargs)
    return result


def _for_module(module: nn.Module, hook: Callable[..., object]) -> Callable[..., object]:
    """Make a hook that gets this module in the place of the one that is called."""
    return lambda _, *args, **kwargs: hook(module, *args, **kwargs)


def has_hooks(module: nn.Module) -> bool:
    """Whether a module's call has hooks."""
    return any(module.__dict__[name] for name in HOOKS)


def is_of_sharding(hook: object) -> bool:
    """Whether a hook is one of torch's FSDP or of Accelerate, which moves weights and takes any output."""
    while isinstance(hook, partial):
        hook = hook.func
    return str(getattr(hook, "__module__", "")).startswith(("torch.distributed.", "accelerate."))


def find_submodule(module: nn.Module | None, name: str) -> nn.Module | None:
    """Get the submodule of a dotted name, or None if it does not exist or was pruned."""
    for atom in name.split("."):
        module = module._modules.get(atom) if module is not None else None
    return module
