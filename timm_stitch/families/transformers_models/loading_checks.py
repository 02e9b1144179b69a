"""Checks of a folder, which may be a stranger's, before transformers reads a network from it.

The network is laid out on the meta device, within limits on time and memory, and compared with the shapes in the header
of the weights: nothing is allocated for what these do not hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.initialization import no_init_weights
from transformers.utils import GENERATION_CONFIG_NAME

from ...anchors.budget import MOST_NUMBERS, bounded, time_limit
from ...errors import one_line_errors
from ...network.weights import check_keys, kept_state
from ..family import CONFIG_FILE, WEIGHTS_FILE
from ..saved_files import check_inside, read_json
from .configuration import SNNetConfig
from .saved_fields import check_generation

ADAPTER_FILE = "adapter_config.json"
_SPARE_NUMBERS, _SPARE_BYTES = 1 << 27, 1 << 29  # of tables that a model computes, such as masks and positions
_KERNEL_LOADERS = ("load_cuda_kernels", "load_wkv_cuda_kernel")
Network = TypeVar("Network", bound=nn.Module)


def check_folder(build: Callable[[SNNetConfig], nn.Module], folder: Path) -> None:
    """Refuse a folder whose files lead out of it, or ask for another network than its weights are of.

    Args:
        build: the class of the network.
        folder: the folder; one without a network's `config.json` is left to transformers.

    Raises:
        OSError: if a file is a link out of the folder.
        ValueError: if the network cannot be built, or has tensors of other shapes than the weights.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, GENERATION_CONFIG_NAME, ADAPTER_FILE):
        if (folder / name).is_symlink() or (folder / name).exists():
            check_inside(folder / name)
    if not (folder / CONFIG_FILE).exists():
        return
    file = folder / WEIGHTS_FILE
    with one_line_errors(f"the network in {str(folder)!r} cannot be built"):
        config = SNNetConfig.from_dict(dict(read_json(folder / CONFIG_FILE)))
        lay_out(build, config, _read_shapes(file) if file.exists() else None)
        read_generation(folder)


def lay_out(
    build: Callable[[SNNetConfig], Network], config: SNNetConfig, shapes: Mapping[str, Tensor] | None = None
) -> Network:
    """Build a network on the meta device, within limits.

    Args:
        build: the class of the network.
        config: its configuration.
        shapes: its weights as tensors on the meta device, if known.

    Returns:
        The network without memory.

    Raises:
        ValueError: if it passes a limit, or its tensors have other shapes.
    """
    numbers, owner = MOST_NUMBERS, "any network of this package needs"
    if shapes is not None:  # tied weights are counted twice
        numbers = 2 * sum(tensor.numel() for tensor in shapes.values()) + _SPARE_NUMBERS
        owner = "its weights file could fill"
    with time_limit(), bounded(numbers, owner), torch.device("meta"), no_init_weights():
        network = build(config)
        own = kept_state(network)
    if shapes is not None:  # transformers renames some weights when it loads them: those have no partner here
        common = {name: tensor for name, tensor in own.items() if name in shapes}
        check_keys({name: shapes[name] for name in common}, common, "this network")
    computed = sum(tensor.nbytes for tensor in _computed_buffers(network))
    if computed > _SPARE_BYTES + 2 * sum(tensor.nbytes for tensor in own.values()):
        raise ValueError(
            f"this network computes tables of {computed:,} bytes when it is built, more than any needs: its "
            "configuration is damaged."
        )
    return network


def read_generation(folder: Path) -> GenerationConfig | None:
    """Read the settings for generating in a folder; None where it has none.

    Raises:
        ValueError: if they hold more than plain settings.
    """
    file = folder / GENERATION_CONFIG_NAME
    if not (file.is_symlink() or file.exists()):
        return None
    values = dict(read_json(file))
    check_generation(values)
    with one_line_errors(f"{GENERATION_CONFIG_NAME} cannot be used"):
        return GenerationConfig.from_dict(values)


@contextmanager
def without_kernels(classes: Iterable[type[nn.Module]]) -> Iterator[None]:
    """Keep transformers from compiling or fetching programs while it builds models of some types."""

    def refuse(*_: object) -> NoReturn:
        raise ImportError("programs are not fetched for a network from files")

    modules = {sys.modules[cls.__module__] for cls in classes}
    with ExitStack() as stack:
        for module in modules:
            for name in _KERNEL_LOADERS:
                if (loader := getattr(module, name, None)) is not None:
                    setattr(module, name, refuse)
                    stack.callback(setattr, module, name, loader)
        yield


def _read_shapes(file: Path) -> dict[str, Tensor]:
    """Read the names and shapes of the tensors of a file, as tensors on the meta device."""
    with safe_open(file, framework="pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118 not a mapping
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def _computed_buffers(network: nn.Module) -> Iterator[Tensor]:
    """Iterate over the buffers that no file holds."""
    for module in network.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None:
                yield buffer
