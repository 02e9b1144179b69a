"""Dense networks as a family: how one is saved, and built again from plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from ...anchors.budget import bounded, time_limit
from ...anchors.view import View
from ...errors import WrongTypeError
from ...network.weights import check_keys, kept_state
from ...plan.enumeration import PlanOptions
from ..family import WEIGHTS_FILE, CardFields, Config, Family, ReadTensors, SavedNetwork
from ..timm_models.arguments import check_config
from ..timm_models.files import check_label_names, describe_parts
from ..timm_models.meta_build import can_build_on_meta, materialize
from ..timm_models.pyramid_levels import level_entries
from .heads.by_name import make_head
from .network import DenseNetwork
from .settings import DenseSettings

PIPELINES = {"segmentation": "image-segmentation", "depth": "depth-estimation"}  # the Hub's names of the tasks
SCORES = {"segmentation": "mIoU", "depth": "δ₁"}


class DenseFamily(Family[DenseNetwork]):
    """Networks of timm's models with one head on a pyramid."""

    name = "dense"

    def accepts(self, model: object) -> bool:
        return False  # anchors are timm's

    def open(self, model: nn.Module) -> View:
        raise WrongTypeError("a dense network is made of a stitchable network: timm_stitch.dense(network, …).")

    def stitch(self, models: Sequence[nn.Module], options: PlanOptions, **arguments: Any) -> DenseNetwork:
        raise WrongTypeError("a dense network is made of a stitchable network: timm_stitch.dense(network, …).")

    def describe(self, network: DenseNetwork) -> dict[str, Any]:
        if not network.settings.head:
            raise ValueError(
                "a head of your own cannot be built again from a file: keep its weights with "
                "torch.save(network.state_dict(), PATH), or use head='linear', 'setr' or 'dpt'."
            )
        for_timm = {"architecture": "dense_snnet", "pretrained_cfg": {}}
        return {**for_timm, "network": describe_parts(network.network), "dense": network.settings.to_dict()}

    def build(self, config: Config) -> DenseNetwork:
        return self._build(config, "cpu")

    def _build(self, config: Config, device: str) -> DenseNetwork:
        settings, parts = _settings_of(config), config["network"]
        arguments = {**parts["model_args"], "num_classes": 0, "pretrained_cfg": parts["pretrained_cfg"]}
        with time_limit(), bounded():  # a stranger's network is laid out before it takes memory
            laid_out = self._assemble(timm.create_model(parts["architecture"], device="meta", **arguments), settings)
        if device == "meta":
            return laid_out
        return self._assemble(timm.create_model(parts["architecture"], **arguments), settings)

    def _assemble(self, network: Any, settings: DenseSettings) -> DenseNetwork:
        if len(settings.ends) != len(network.plan.anchors):
            raise ValueError(
                f"config.json has levels for {len(settings.ends)} anchors, and {len(network.plan.anchors)} anchors: "
                "save the network again."
            )
        for own, anchor, view in zip(settings.ends, network.plan.anchors, network.views, strict=True):
            if list(own) != sorted(own) or own[-1] > anchor.depth or (own[0] < 0 and view.early is None):
                raise ValueError(f"config.json has levels at blocks that {anchor.name!r} does not have: save it again.")
        reductions = [entry["reduction"] for entry in level_entries(network.views, settings.ends)]
        with torch.device(next(network.parameters()).device):
            return DenseNetwork(network, settings, make_head(settings, reductions))

    def check_config(self, config: Config) -> None:
        settings, parts = _settings_of(config), config.get("network")
        if not isinstance(parts, Mapping) or set(parts) != {"architecture", "model_args", "pretrained_cfg"}:
            raise ValueError("config.json does not describe the network of a dense network: save the network again.")
        check_config({**parts, "num_classes": settings.num_classes})

    def check_savable(self, network: DenseNetwork, label_names: Sequence[str] | None = None) -> None:
        if not all(view.has_block(index) for view in network.views for index in range(view.depth)):
            raise ValueError(
                f"this is a part of a larger network (stitch {network.stitch_id}): save the larger one, from which "
                "from_hub(folder, extract=…) loads this stitch alone."
            )
        check_label_names(network, label_names)
        config = self.config_of(network)
        own, again = network.state_dict(), self._build(config, "meta").state_dict()
        differ = sorted({*own} ^ {*again} | {k for k in own if k in again and own[k].shape != again[k].shape})
        if differ:
            raise ValueError(
                f"timm would make another network from these anchors' names ({len(differ)} tensors differ, e.g. "
                f"{differ[0]!r}): change anchors by arguments of timm.create_model, not by replacing modules."
            )

    def load(self, saved: SavedNetwork, **arguments: Any) -> DenseNetwork:
        device, stitch_id = arguments.pop("device", None), arguments.pop("stitch_id", None)
        pretrained = arguments.pop("pretrained", True)
        if arguments:
            raise ValueError(f"dense networks load as they were saved, and take no {', '.join(sorted(arguments))}.")
        if not pretrained or str(device) == "meta":
            network = self._build(saved.config, "meta" if str(device) == "meta" else "cpu")
        else:
            network = self._build(saved.config, "meta")
            if not can_build_on_meta(network.anchors):
                network = self._build(saved.config, "cpu")
            tensors = load_file(saved.folder / WEIGHTS_FILE)
            check_keys(tensors, kept_state(network), "this network")
            network.load_state_dict(tensors)
            materialize(network)
        network = network.to(device) if device is not None else network
        return network if stitch_id is None else network.set_stitch(stitch_id)

    def load_stitch(
        self, saved: SavedNetwork, stitch_id: int, read_tensors: ReadTensors, **arguments: Any
    ) -> DenseNetwork:
        if arguments:
            raise ValueError(f"dense networks load as they were saved, and take no {', '.join(sorted(arguments))}.")
        small = self._build(saved.config, "meta").extract(stitch_id)
        own = kept_state(small)
        tensors = read_tensors(own)
        check_keys(tensors, own, f"stitch {stitch_id} of this network")
        small.load_state_dict(tensors)
        materialize(small)
        return small.set_stitch(stitch_id)

    def card(self, config: Config) -> CardFields:
        settings, cfg = _settings_of(config), config["network"]["pretrained_cfg"]
        return CardFields(
            pipeline=PIPELINES[settings.task],
            score=SCORES[settings.task],
            input_shape=f"(B, {', '.join(map(str, cfg.get('input_size', (3, 224, 224))))})",
            output_shape=f"(B, {settings.num_classes}, H, W)",
            classes=settings.label_names,
            license=cfg.get("license"),
            stitched_norm=None,
        )


def _settings_of(config: Config) -> DenseSettings:
    """Read the settings in a `config.json`, with the names of classes that were given when it was saved."""
    own = config.get("dense")
    return DenseSettings.from_dict(
        {**own, "label_names": config.get("label_names") or own.get("label_names", ())}
        if isinstance(own, Mapping)
        else own
    )
