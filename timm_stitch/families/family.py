"""A family of models: the one place that knows which library its models come from.

Code outside a family's folder asks the family, never what a network is made of. The base class saves and loads, so a
new family answers five questions: which models are its own, how one is opened, how several become a network, which
plain values describe that network, and how those values build it again.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..anchors.view import View
from ..choices import PoolingName
from ..network.stitchable import StitchableNetwork
from ..network.weights import check_keys, kept_state, save_file
from ..plan.enumeration import PlanOptions
from ..plan.results import SavedResults
from .text_endpoint import TextEndpoint

CONFIG_FILE, STITCHES_FILE, WEIGHTS_FILE = "config.json", "stitches.json", "model.safetensors"

Config = Mapping[str, Any]  # the contents of a config.json
Options = Mapping[str, Any]  # arguments of a library's own constructors and loaders
ReadTensors = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
Network = TypeVar("Network", bound=StitchableNetwork, default=Any)


LoadingCallback = Callable[[StitchableNetwork, str, Options], None]

_CALLBACKS: list[LoadingCallback] = []


def add_loading_callback(callback: LoadingCallback) -> None:
    """Add a function that is called for every network that its library's own loader has loaded."""
    _CALLBACKS.append(callback)


def notify_loaded(network: StitchableNetwork, source: str, options: Options) -> None:
    """Call the functions of `add_loading_callback`.

    Args:
        network: the network.
        source: the folder, or the repository on the Hub.
        options: the arguments of the loader, such as `revision` and `cache_dir`.
    """
    for callback in _CALLBACKS:
        callback(network, source, options)


@dataclass(frozen=True)
class SavedNetwork:
    """The files next to the weights of a saved network, read and checked once.

    Args:
        folder: the folder of its files.
        config: the contents of `config.json`.
        fingerprint: the fingerprint of the weights in `stitches.json`, if it has one.
        results: the contents of `stitches.json`; None if it is missing or cannot be read.
        sums: the checksum of each tensor in `stitches.json`; networks saved by earlier versions have none.
        is_edited: whether `config.json` builds another network than the one that was saved, by its checksum there.
    """

    folder: Path
    config: Config
    fingerprint: str | None = None
    results: SavedResults | None = None
    sums: Mapping[str, Any] | None = None
    is_edited: bool = False


@dataclass(frozen=True)
class CardFields:
    """The fields of the model card that depend on a network's family.

    Args:
        library: the Hub's name of the library that loads the network.
        pipeline: the Hub's name of the task.
        score: the name of its accuracy.
        inputs: the kind of its inputs, "images" or "texts".
        input_shape: the shape of its inputs.
        output_shape: the shape of its outputs, where these are maps.
        classes: the names of the classes of maps, where they are known.
        auto_class: transformers' class that loads it.
        package: the package to import before that.
        license: the license of the weights, where the configuration names one.
        stitched_norm: whether stitched paths end in the back anchor's final norm; None where no path does.
    """

    library: str = "timm_stitch"
    pipeline: str = "image-classification"
    score: str = "top-1"
    inputs: str = "images"
    input_shape: str = "(B, 3, H, W)"
    output_shape: str = ""
    classes: tuple[str, ...] = ()
    auto_class: str = ""
    package: str = "timm_stitch"
    license: str | None = None
    stitched_norm: bool | None = True


class Family(ABC, Generic[Network]):
    """One family of models that can be stitched, and the networks made of them.

    Attributes:
        name: the family's name, which its networks have as their class attribute `family`.
        extra_files: the names of further files of a saved network, which are fetched with it where they exist.
    """

    name: str
    extra_files: tuple[str, ...] = ()

    # ── models at hand ────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def accepts(self, model: object) -> bool:
        """Whether a model is one of this family."""

    @abstractmethod
    def open(self, model: nn.Module) -> View:
        """Open a model as an anchor.

        Raises:
            TypeError: if it cannot be opened.
        """

    @abstractmethod
    def stitch(self, models: Sequence[nn.Module], options: PlanOptions, **arguments: Any) -> StitchableNetwork:
        """Stitch models of this family, from the fastest to the slowest.

        Args:
            models: the anchors, taken as they are.
            options: the choice of stitches.
            **arguments: `stitch_id`, `stitched_norm` and `tokenizers`, where the caller gave them.

        Raises:
            TypeError: if a model cannot be opened.
            ValueError: if the models do not fit each other or the plan, or an argument is not this family's.
        """

    # ── names ─────────────────────────────────────────────────────────────────────────────────────

    def names_anchor(self, name: str, config: Config | None) -> bool:
        """Whether a name is that of a model of this family.

        Args:
            name: the name, with `local-dir:` or `hf-hub:` before a folder's or a repository's.
            config: the `config.json` of that folder or repository; None for a registered name.
        """
        return False

    def make(self, names: Sequence[str], pretrained: bool, device: str, **arguments: Any) -> StitchableNetwork:
        """Make a network from the names of its anchors, or of one registered network.

        Raises:
            ValueError: if there is no such model.
        """
        raise ValueError(f"{self.name} has no models by name: stitch the models themselves, timm_stitch.stitch([…]).")

    # ── saved networks ────────────────────────────────────────────────────────────────────────────

    @abstractmethod
    def describe(self, network: Network) -> Config:
        """Describe a network by JSON-serialisable values from which `build` makes it again, without its weights."""

    @abstractmethod
    def build(self, config: Config) -> StitchableNetwork:
        """Build the network that `describe` described, with random weights, on the default device."""

    def check_savable(self, network: Network, label_names: Sequence[str] | None = None) -> None:
        """Refuse, before anything is written, a network that could not be loaded again.

        Raises:
            ValueError: saying why.
        """
        if any(view.is_partial for view in network.views):
            raise ValueError(
                f"this is a part of a larger network (stitch {network.stitch_id}): save the larger one, from which "
                "from_hub(folder, extract=…) loads this stitch alone."
            )

    def write(self, network: Network, folder: Path, label_names: Sequence[str] | None) -> Config:
        """Write `config.json` and the weights into a folder; returns the contents of `config.json`."""
        self.check_savable(network, label_names)
        config = self.config_of(network)
        if label_names is not None:
            config["label_names"] = list(label_names)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        state = {name: tensor.detach().contiguous() for name, tensor in kept_state(network).items()}
        save_file(state, folder / WEIGHTS_FILE)
        return config

    def config_of(self, network: Network) -> dict[str, Any]:
        """Make the `config.json` of a network, without its weights.

        Raises:
            ValueError: if the network cannot be built from such a description.
        """
        return {"family": self.name, **self.describe(network)}

    def reads(self, config: Config) -> bool:
        """Whether a `config.json` is that of a network of this family."""
        return config.get("family") == self.name

    def check_config(self, config: Config) -> None:
        """Refuse a `config.json` that asks for more than building a network; it may be a stranger's.

        Raises:
            ValueError: naming what is strange.
        """
        return None

    def stitched_norm(self, config: Config) -> bool | None:
        """Whether stitched paths run the final norm; None where a network of this family always does."""
        return None

    def load(self, saved: SavedNetwork, **arguments: Any) -> StitchableNetwork:
        """Load a whole network.

        Args:
            saved: its files; `config` is checked.
            **arguments: `device`, `stitch_id`, `pretrained` (False leaves the weights random), and other
                arguments of the family's own loader.

        Raises:
            ValueError: if the files ask for more than a network, or do not hold its weights.
        """
        device, stitch_id = arguments.pop("device", None), arguments.pop("stitch_id", None)
        pretrained = arguments.pop("pretrained", True)
        _refuse_arguments(self.name, arguments)
        with torch.device("cpu" if device is None else device):
            network = self.build(saved.config)
        if pretrained:
            tensors = load_file(saved.folder / WEIGHTS_FILE)
            check_keys(tensors, kept_state(network), "this network")
            network.load_state_dict(tensors, strict=False)
        return network if stitch_id is None else network.set_stitch(stitch_id)

    def load_stitch(
        self, saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors, **arguments: Any
    ) -> StitchableNetwork:
        """Load one stitch of a network, and nothing that it does not use.

        Args:
            saved: the files of the network; those of a repository hold no weights.
            stitch_id: the stitch to load.
            read_tensors: reads tensors by the names of some that are on the meta device.
            **arguments: other arguments of the family's own loader.

        Raises:
            ValueError: if there is no such stitch, or the files do not hold it.
        """
        _refuse_arguments(self.name, arguments)
        with torch.device("meta"):
            small = self.build(saved.config).extract(stitch_id)
        own = kept_state(small)
        tensors = read_tensors(own)
        check_keys(tensors, own, f"stitch {stitch_id} of this network")
        small.load_state_dict(tensors)
        return small.set_stitch(stitch_id)

    def keeps_rows(self, network: Network, saved: SavedNetwork) -> bool:
        """Whether a loaded network is the one that was measured, not one of other classes or image size."""
        return True

    def takes_texts(self, network: Network) -> bool:
        """Whether a network's inputs are texts."""
        return False

    def set_tokenizer(self, network: Network, source: str) -> None:
        """Give a network of texts the tokenizer of a folder or repository.

        Raises:
            ValueError: if there is none, or the network takes no texts.
        """
        raise ValueError(f"--tokenizer is for networks of texts: those of {self.name} take none.")

    def text_predictor(self, network: Network, top: int) -> Callable[[str], dict[str, Any]]:
        """Make the function that predicts for a text: a dict of `top` (of `label` and `probability`) or `output`.

        Args:
            network: a network whose inputs are texts.
            top: the number of classes or words to give.

        Raises:
            ValueError: if the network has no tokenizer, or its task takes more than a text.
        """
        raise ValueError(f"networks of {self.name} take no texts: give images.")

    def text_endpoint(self, network: Network, max_length: int | None, pooling: PoolingName) -> TextEndpoint:
        """Prepare a network whose inputs are texts for a server.

        Args:
            network: the network, in eval mode on its device.
            max_length: the most tokens of a text; default what the network takes, within reason.
            pooling: the embedding of a text: the mean of those of its tokens, the first or the last.

        Raises:
            ValueError: if the network gives neither classes nor embeddings, or has no tokenizer.
        """
        raise ValueError(f"networks of {self.name} take no texts: give images.")

    def card(self, config: Config) -> CardFields:
        """The fields of the model card of a network of this family."""
        return CardFields()


def _refuse_arguments(name: str, arguments: Options) -> None:
    if arguments:
        raise ValueError(f"networks of {name} load as they were saved, and take no {', '.join(sorted(arguments))}.")
