"""timm's models as a family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import timm
from torch import nn

from ...anchors.view import View
from ...network.stitchable import StitchableNetwork
from ...plan.enumeration import PlanOptions
from ..family import CardFields, Family, ReadTensors, SavedNetwork
from .arguments import Config, check_config
from .files import (
    check_label_names,
    read_network,
    read_stitch,
    rebuild_args,
    stitched_norm,
    write_config,
    write_network,
)
from .naming import make_network
from .network import SNNet
from .stitching import stitch_timm
from .views import view_of


class TimmFamily(Family):
    """timm's models, and any other module that runs as they do; last in the registry, since it accepts all."""

    name = "timm"

    def accepts(self, model: object) -> bool:
        return True  # `open` refuses what cannot be an anchor

    def open(self, model: nn.Module) -> View:
        return view_of(model)

    def stitch(self, models: Sequence[nn.Module], options: PlanOptions, **arguments: Any) -> SNNet:
        if arguments.pop("tokenizers", ()):
            raise ValueError("tokenizers are for models of transformers: leave them out.")
        return stitch_timm(models, options, **arguments)

    def names_anchor(self, name: str, config: Config | None) -> bool:
        return True  # `make` refuses unknown names

    def make(self, names: Sequence[str], pretrained: bool, device: str, **arguments: object) -> StitchableNetwork:
        return make_network(names, pretrained, device, arguments)

    def describe(self, network: SNNet) -> dict[str, Any]:
        return rebuild_args(network)

    def build(self, config: Config) -> SNNet:
        return cast("SNNet", timm.create_model(config["architecture"], **config.get("model_args", {})))

    def check_savable(self, network: SNNet, label_names: Sequence[str] | None = None) -> None:
        check_label_names(network, label_names)
        rebuild_args(network)

    def write(self, network: SNNet, folder: Path, label_names: Sequence[str] | None) -> dict[str, Any]:
        return write_network(network, folder, label_names)

    def config_of(self, network: SNNet) -> dict[str, Any]:
        with TemporaryDirectory() as folder:  # timm writes it to a file
            return write_config(network, Path(folder))

    def reads(self, config: Config) -> bool:
        return True  # `check_config` refuses what is no network

    def check_config(self, config: Config) -> None:
        check_config(config)

    def stitched_norm(self, config: Config) -> bool | None:
        return stitched_norm(config)

    def load(self, saved: SavedNetwork, **arguments: object) -> Any:
        return read_network(saved, arguments)

    def load_stitch(self, saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors, **arguments: Any) -> SNNet:
        other = sorted(set(arguments) - {"num_classes"})
        if other:
            raise ValueError(
                f"extract={stitch_id} loads the stitch as it was saved, and takes no {', '.join(other)}: load the "
                "whole network with these, then extract; num_classes is possible."
            )
        return read_stitch(saved, stitch_id, read_tensors, **arguments)

    def keeps_rows(self, network: SNNet, saved: SavedNetwork) -> bool:
        config = saved.config
        size = config["pretrained_cfg"].get("input_size", (3, 224, 224))
        classes = config.get("num_classes", config["pretrained_cfg"].get("num_classes"))
        return (network.num_classes, network.in_chans, *network.image_size) == (classes, *size)

    def card(self, config: Config) -> CardFields:
        cfg = config["pretrained_cfg"]
        return CardFields(
            library="timm",
            input_shape=f"(B, {', '.join(map(str, cfg.get('input_size', (3, 224, 224))))})",
            auto_class="AutoModelForImageClassification",
            license=cfg.get("license"),
            stitched_norm=stitched_norm(config),
        )
