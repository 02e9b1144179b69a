"""Which of a model's modules are blocks and layers, and which only arrange them.

Told by what is inside a module and where its class comes from, not by names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.models import get_notrace_modules
from torch import nn


def plain_layer(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's or timm's layers, not part of one architecture."""
    where = type(module).__module__
    return where.startswith(("torch.nn", "timm.layers"))


def is_stage(module: nn.Module) -> bool:
    """Whether a module only arranges blocks: a plain container of them, or a module around such a container."""
    if type(module).forward is nn.Sequential.forward:
        return True
    if plain_layer(module) or type(module) in get_notrace_modules():
        return False
    rows = [c for c in module.children() if isinstance(c, (nn.Sequential, nn.ModuleList, nn.ModuleDict))]
    inner = [c for row in rows for c in row.children()]
    return any(_composite(c) for c in inner) or _repeats([c for c in module.children() if _composite(c)])


def is_architecture(module: nn.Module) -> bool:
    """Whether a module is more than a layer."""
    return type(module).forward is nn.Sequential.forward or not (
        plain_layer(module) or type(module) in get_notrace_modules()
    )


def is_made_of_modules(module: nn.Module) -> bool:
    """Whether a module has modules inside."""
    return bool(module._modules) and not type(module).__module__.startswith("torch.nn.modules.activation")


OPENED: Sequence[Callable[[nn.Module], bool]] = (is_stage, is_architecture, is_made_of_modules)


def is_block(module: nn.Module) -> bool:
    """Whether a module that is one step counts as a block: several layers, or one of an architecture's own."""
    weights = sum(1 for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return weights >= (2 if plain_layer(module) else 1)


def multiplies(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix."""
    return any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())


def _composite(module: nn.Module) -> bool:
    return not plain_layer(module) and is_block(module)


def _repeats(modules: Sequence[nn.Module]) -> bool:
    kinds = [type(m) for m in modules]
    return any(kinds.count(kind) > 2 for kind in kinds)
