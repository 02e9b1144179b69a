"""Models of transformers as a family. It imports transformers only when such a model or network comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from ...choices import PoolingName
from ...plan.enumeration import PlanOptions
from ..family import CardFields, Config, Family, ReadTensors, SavedNetwork
from ..text_endpoint import TextEndpoint
from .opening import is_transformers_model, open_anchor
from .task_names import MODEL_TYPE, read_task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .network import StitchedModel
    from .views import TransformersView


class TransformersFamily(Family["StitchedModel"]):
    """Models of transformers; those of a network have one task and one tokenizer."""

    name = "transformers"
    extra_files = ("generation_config.json",)

    def accepts(self, model: object) -> bool:
        return is_transformers_model(model)

    def open(self, model: nn.Module) -> TransformersView:
        return open_anchor(cast("PreTrainedModel", model))

    def stitch(self, models: Sequence[nn.Module], options: PlanOptions, **arguments: Any) -> StitchedModel:
        from .stitching import stitch_transformers

        if not arguments.get("stitched_norm", True):
            raise ValueError(
                "stitched_norm=False is for timm's models: those of transformers always run their final norm."
            )
        anchors = cast("Sequence[PreTrainedModel]", models)
        return stitch_transformers(anchors, options, arguments.get("stitch_id"), arguments.get("tokenizers", ()))

    def names_anchor(self, name: str, config: Config | None) -> bool:
        return config is not None and isinstance(config.get("model_type"), str)

    def make(self, names: Sequence[str], pretrained: bool, device: str, **arguments: Any) -> StitchedModel:
        from .naming import make_network

        return make_network(names, device, arguments)

    def describe(self, network: StitchedModel) -> Config:
        return network.config.to_dict()

    def build(self, config: Config) -> StitchedModel:
        from .files import build_network

        return build_network(config)

    def check_savable(self, network: StitchedModel, label_names: Sequence[str] | None = None) -> None:
        if network.config.only is not None:
            raise ValueError(
                f"this is a part of a larger network (stitch {network.stitch_id}): save the larger one, from which "
                "from_hub(folder, extract=…) loads this stitch alone; or keep this one by its own "
                "save_pretrained(folder)."
            )

    def write(self, network: StitchedModel, folder: Path, label_names: Sequence[str] | None) -> Config:
        from .files import write_network

        self.check_savable(network)
        return write_network(network, folder, label_names)

    def config_of(self, network: StitchedModel) -> dict[str, Any]:
        from .files import complete_config

        self.check_savable(network)
        complete_config(network)
        return dict(json.loads(network.config.to_json_string(use_diff=False)))

    def reads(self, config: Config) -> bool:
        return config.get("model_type") == MODEL_TYPE

    def check_config(self, config: Config) -> None:
        read_task(config)  # `configuration` checks the rest when it reads it

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
        return read_stitch(saved, stitch_id, read_tensors)

    def takes_texts(self, network: Any) -> bool:
        return bool(network.main_input_name == "input_ids")

    def text_predictor(self, network: Any, top: int) -> Callable[[str], dict[str, Any]]:
        from .predicting import text_predictor

        return text_predictor(network, top)

    def set_tokenizer(self, network: Any, source: str) -> None:
        from .tokenizing import read_tokenizer

        network.tokenizer = read_tokenizer(source)

    def text_endpoint(self, network: Any, max_length: int | None, pooling: PoolingName) -> TextEndpoint:
        from .endpoint import TransformersEndpoint

        return TransformersEndpoint(network, max_length, pooling)

    def card(self, config: Config) -> CardFields:
        _, names = read_task(config)
        return CardFields(
            library="transformers",
            pipeline=names.pipeline,
            score=names.score,
            inputs="texts",
            auto_class=names.auto,
            package="timm_stitch.text",
        )
