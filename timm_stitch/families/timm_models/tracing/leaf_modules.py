"""Which of a model's modules are blocks and layers, and which only arrange them.

What is inside a module and where its class comes from decide it, not names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from timm.models import get_notrace_modules
from torch import nn


def is_plain_layer(module: nn.Module) -> bool:
    """Whether a module is one of PyTorch's or timm's layers, not part of one architecture."""
    return type(module).__module__.startswith(("torch.nn", "timm.layers"))


def is_stage(module: nn.Module) -> bool:
    """Whether a module only arranges blocks: a plain container of them, or a module around such a container."""
    if type(module).forward is nn.Sequential.forward:
        return True
    if is_plain_layer(module) or type(module) in get_notrace_modules():
        return False
    containers = [c for c in module.children() if isinstance(c, (nn.Sequential, nn.ModuleList, nn.ModuleDict))]
    inner = [c for container in containers for c in container.children()]
    classes = [type(c) for c in module.children() if _is_composite(c)]
    return any(_is_composite(c) for c in inner) or any(classes.count(c) > 2 for c in classes)


def is_architecture(module: nn.Module) -> bool:
    """Whether a module is more than a layer."""
    return type(module).forward is nn.Sequential.forward or not (
        is_plain_layer(module) or type(module) in get_notrace_modules()
    )


def is_made_of_modules(module: nn.Module) -> bool:
    """Whether a module has modules inside."""
    return bool(module._modules) and not type(module).__module__.startswith("torch.nn.modules.activation")


# Which modules are recorded operation by operation: at each level more of them.
EXPANSION_LEVELS: Sequence[Callable[[nn.Module], bool]] = (is_stage, is_architecture, is_made_of_modules)


def is_block(module: nn.Module) -> bool:
    """Whether a module that is one step counts as a block: several layers, or one of an architecture's own."""
    weights = sum(1 for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
    return weights >= (2 if is_plain_layer(module) else 1)


def multiplies(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix."""
    return any(isinstance(m, (nn.Linear, nn.Conv2d)) for m in module.modules())


def _is_composite(module: nn.Module) -> bool:
    return not is_plain_layer(module) and is_block(module)
