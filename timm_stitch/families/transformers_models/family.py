"""Models of transformers as a family. It imports transformers only when a model or a network of its own comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...plan.enumeration import PlanOptions
from ..family import CardFields, Family, ReadTensors, SavedNetwork
from .opening import is_of_transformers, open_anchor
from .task_names import MODEL_TYPE, names_of

if TYPE_CHECKING:
    from ...anchors.view import View
    from .network import StitchedModel


class TransformersFamily(Family):
    """Models of transformers, of one task and one tokenizer a network."""

    name = "transformers"
    extra_files = ("generation_config.json",)

    def accepts(self, model: object) -> bool:
        return is_of_transformers(model)

    def open(self, model: nn.Module) -> View:
        return open_anchor(model)

    def stitch(self, models: Sequence[nn.Module], options: PlanOptions, **arguments: Any) -> StitchedModel:
        from .stitching import stitch_transformers

        if not arguments.get("stitched_norm", True):
            raise ValueError(
                "stitched_norm=False is for timm's models: those of transformers always run their final norm."
            )
        return stitch_transformers(models, options, arguments.get("stitch_id"), arguments.get("tokenizers", ()))

    def names_anchor(self, name: str, config: Mapping[str, Any] | None) -> bool:
        return config is not None and isinstance(config.get("model_type"), str)

    def make(self, names: Sequence[str], pretrained: bool, device: str, **arguments: Any) -> StitchedModel:
        from .naming import make_network

        return make_network(names, device, arguments)

    def describe(self, network: StitchedModel) -> dict[str, Any]:
        config: dict[str, Any] = network.config.to_dict()
        return config

    def build(self, config: Mapping[str, Any]) -> StitchedModel:
        from .files import build_network

        return build_network(config)

    def check_savable(self, network: StitchedModel, label_names: Sequence[str] | None = None) -> None:
        from .files import check_whole

        check_whole(network)

    def write(self, network: StitchedModel, folder: Path, label_names: Sequence[str] | None) -> dict[str, Any]:
        from .files import write_network

        return write_network(network, folder, label_names)

    def reads(self, config: Mapping[str, Any]) -> bool:
        return config.get("model_type") == MODEL_TYPE

    def check_config(self, config: Mapping[str, Any]) -> None:
        names_of(config)  # what else may stand in it is checked where it is read: `configuration`

    def load(self, saved: SavedNetwork, **arguments: Any) -> StitchedModel:
        from .files import build_network, read_network

        if not arguments.pop("pretrained", True):
            return build_network(saved.config, arguments.get("device"))
        return read_network(saved, arguments)

    def load_stitch(
        self, saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors, **arguments: Any
    ) -> StitchedModel:
        from .files import read_stitch

        if arguments:
            raise ValueError(
                f"extract={stitch_id} loads the stitch as it was saved, and takes no {', '.join(sorted(arguments))}."
            )
        return read_stitch(saved.config, stitch_id, read_tensors)

    def card(self, config: Mapping[str, Any]) -> CardFields:
        _, names = names_of(config)
        return CardFields(
            library="transformers",
            pipeline=names.pipeline,
            score=names.score,
            inputs="texts",
            auto_class=names.auto,
            package="timm_stitch.text",
        )
