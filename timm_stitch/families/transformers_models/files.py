"""Networks of transformers' models as files: written for transformers and for us, read whole or one stitch alone.

Files may be a stranger's: `configuration` checks what they hold. Weights are read from safetensors alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from ...errors import library_errors
from ...network.weights import check_keys, save_file
from ..family import WEIGHTS_FILE, Config, Options, ReadTensors, SavedNetwork
from .configuration import SNNetConfig, check_config
from .loading_checks import ADAPTER_FILE, lay_out, read_generation
from .network import StitchedModel
from .networks import TASKS
from .task_names import read_task
from .tokenizing import save_tokenizer


def write_network(model: StitchedModel, folder: Path, label_names: Sequence[str] | None) -> Config:
    """Write the configuration, weights and tokenizer of a network into a folder; returns the contents of `config.json`.

    Raises:
        ValueError: if there is not one name for each class, or the network could not be made again.
    """
    if label_names is not None:
        name_labels(model, label_names)
    complete_config(model)
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.kept_state().items()}
    save_file(tensors, folder / WEIGHTS_FILE, {"format": "pt"})
    save_tokenizer(model, folder)
    return model.config.to_dict()


def complete_config(model: StitchedModel) -> None:
    """Complete the configuration of a network, so that the network can be made again from it."""
    model.record(plan=model.plan.to_dict(), stitch_id=model.stitch_id, architectures=[type(model).__name__])
    model.config.dtype = next(model.parameters()).dtype
    check_config(model.config.unbound())


def name_labels(model: StitchedModel, names: Sequence[str]) -> None:
    """Give the classes names, in the network's configuration and its anchors'.

    Raises:
        ValueError: if there is not one for each.
    """
    if len(names) != model.config.num_labels:
        raise ValueError(
            f"label_names has {len(names)} names for {model.config.num_labels} classes: give one for each."
        )
    labels = dict(enumerate(map(str, names)))
    for config in (model.config, *(view.anchor.config for view in model.views)):
        config.id2label, config.label2id = labels, {name: i for i, name in labels.items()}


def build_network(config: Config, device: str | torch.device | None = None) -> StitchedModel:
    """Build the network of a `config.json` without its weights.

    Raises:
        ValueError: if the configuration asks for more than a network.
    """
    with torch.device("cpu" if device is None else device):
        return _network_class(config)(SNNetConfig.from_dict(dict(config)))


def read_network(saved: SavedNetwork, arguments: Options) -> StitchedModel:
    """Load a whole network; the arguments are those of `Family.load`, and of transformers' `from_pretrained`.

    Raises:
        ValueError: if the files ask for more than a network, or do not hold its weights.
    """
    folder, kwargs = saved.folder, dict(arguments)
    if (folder / ADAPTER_FILE).exists():
        raise ValueError(
            f"{str(folder)!r} has {ADAPTER_FILE}, by which transformers would read further files into the network: "
            "load it from a folder without, and then call its load_adapter."
        )
    stitch_id, device = kwargs.pop("stitch_id", None), kwargs.pop("device", None)
    cls: Any = _network_class(saved.config)
    safe = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    refusal = f"leave out {', '.join(sorted(kwargs))}: networks of transformers' models do not load with it"
    with _quiet_transformers(), library_errors(refusal, *([TypeError] if kwargs else [])):
        try:
            model, report = cls.from_pretrained(folder, output_loading_info=True, **safe, **kwargs)
        except RuntimeError as error:
            if not kwargs or "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"the weights in {str(folder)!r} do not fit {', '.join(sorted(kwargs))}: leave it out, or add "
                "ignore_mismatched_sizes=True for new parts with random weights."
            ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"the weights in {str(folder)!r} lack {len(missing)} tensors (e.g. {missing[0]!r}): save the network again."
        )
    network: StitchedModel = model if stitch_id is None else model.set_stitch(stitch_id)
    return network if device is None else network.to(device)


def read_stitch(saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors) -> StitchedModel:
    """Load one stitch of a network, as `Family.load_stitch`.

    Raises:
        ValueError: if the configuration asks for more than a network, or there is no such stitch.
    """
    cls, own = _network_class(saved.config), SNNetConfig.from_dict(dict(saved.config))
    own.only, own.stitch_id = stitch_id, stitch_id
    expected = lay_out(cls, SNNetConfig.from_dict(own.to_dict())).kept_state()
    tensors = read_tensors(expected)
    check_keys(tensors, expected, f"stitch {stitch_id} of this network")
    with _quiet_transformers():
        model: StitchedModel = cls.from_pretrained(None, config=own, state_dict=tensors)
    model.name_or_path = str(saved.folder)  # not what a file calls itself: its tokenizer is read from there
    if model.can_generate() and (settings := read_generation(saved.folder)) is not None:
        model.generation_config = settings
    return model


def _network_class(config: Config) -> type[StitchedModel]:
    task, _ = read_task(config)
    return TASKS[task]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from showing bars and reports inside the block."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
