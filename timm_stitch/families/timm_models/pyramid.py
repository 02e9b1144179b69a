"""The feature pyramid of a stitchable network: maps whose number, channels and reductions do not depend on the stitch.

A map behind an anchor that is narrower than its level goes through a projection, a linear map of its channels that is
initialised as stitching layers are. So a dense head, or a detector of another library, works with every stitch.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...anchors.macs import NORMS, Macs
from ...anchors.meta_device import meta_copy
from ...anchors.view import ImageInputs
from ...network.crossing import Join, map_channels
from ...network.extraction import NumberedModules, by_number, extract, shallow_twin
from ...network.image_network import ImageNetwork
from ...network.layers import StitchingLayer
from ...plan.costs import Cost, PlanCosts
from ...plan.levels import EARLY, Ends, tap_places
from ...plan.results import Results, Row
from ...plan.stitch_plan import Stitch, StitchPlan
from .features import run_to_points
from .pyramid_costs import LevelOfAnchor, PyramidCosts, boundary_at, levels_of
from .pyramid_executor import MapInputs, PyramidExecutor
from .pyramid_levels import level_channels, level_entries, level_reduction, level_width, tied_layers
from .timm_compat import FeatureInfo


class Pyramid(ImageNetwork):
    """The feature maps of a stitchable network, alike for all its stitches.

    `SNNet.pyramid` makes one. It shares the network's modules, and has no classifier.

    Args:
        network: the network.
        ends: the boundary of each level in each anchor, from `plan.levels.make_ends`.
        channels: the channels of all levels, or of each; default those of the widest anchor at each level.
        tie: whether a stitching layer that leaves an anchor at a level for one as wide as the level is its projection.

    Attributes:
        network: the network without its norms and classifiers.
        projections: the linear maps of anchors that are not as wide as a level, by anchor and level.
        feature_info: timm's description of the maps.

    Raises:
        ValueError: if there are not as many channels as levels.
    """

    family = "pyramid"
    network: Any  # an SNNet, whose file is above this one

    def __init__(
        self, network: Any, ends: Ends, channels: int | Sequence[int] | None = None, tie: bool = False
    ) -> None:
        nn.Module.__init__(self)
        self.network = _without_head(network)
        self.ends = ends
        widths = [[level_width(view, end) for end in own] for view, own in zip(network.views, ends, strict=True)]
        self.channels = level_channels(level_entries(network.views, ends), channels)
        needed = {
            (anchor, level): (width, self.channels[level])
            for anchor, own in enumerate(widths)
            for level, width in enumerate(own)
            if width != self.channels[level]
        }
        self.tied = tied_layers(network.plan, ends, needed) if tie else {}
        like = next(network.parameters())
        layers: dict[int, dict[int, nn.Module]] = {}
        for (anchor, level), (width, wanted) in needed.items():
            if (anchor, level) not in self.tied:
                layer = StitchingLayer(width, wanted, device=like.device, dtype=like.dtype)
                layers.setdefault(anchor, {})[level] = layer
        self.projections = NumberedModules({anchor: NumberedModules(own) for anchor, own in layers.items()})
        self._measured, self.published_scores, self.published = Results(), {}, None
        self.trained = copying.deepcopy(network.trained)
        self._stitch_hooks = type(network._stitch_hooks)()
        self.stitch_id = network.stitch_id

    # ── the network inside ────────────────────────────────────────────────────────────────────────

    @property
    def plan(self) -> StitchPlan:
        """The stitches."""
        plan: StitchPlan = self.network.plan
        return plan

    @plan.setter
    def plan(self, plan: StitchPlan) -> None:
        self.network.plan = plan

    @property
    def anchors(self) -> nn.ModuleList:  # type: ignore[override] # a submodule of other networks
        """The anchors, without norms and classifiers."""
        anchors: nn.ModuleList = self.network.anchors
        return anchors

    @property
    def stitching_layers(self) -> nn.ModuleList:  # type: ignore[override] # as above
        """The stitching layers."""
        layers: nn.ModuleList = self.network.stitching_layers
        return layers

    @property
    def executor(self) -> PyramidExecutor:  # type: ignore[override] # as above
        """The object that runs the stitches."""
        return PyramidExecutor(self.network.executor, self.used_ends(), self.finish)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's configuration of the network, with the preparation of its images."""
        cfg: dict[str, Any] = self.network.pretrained_cfg
        return cfg

    @pretrained_cfg.setter
    def pretrained_cfg(self, cfg: dict[str, Any]) -> None:
        self.network.pretrained_cfg = cfg

    @property
    def in_chans(self) -> int:
        """The channels of the images."""
        return int(self.network.in_chans)

    @property
    def num_classes(self) -> int:
        """The number of classes: none."""
        return 0

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) of the images that the network takes, or expects by default."""
        height, width = self.network.image_size
        return height, width

    def prepare_inputs(self, x: Tensor, stitches: Iterable[Stitch]) -> MapInputs:
        return MapInputs(*self.network.prepare_inputs(x, stitches))

    def example(self, count: int) -> Tensor:
        images: Tensor = self.network.example(count)
        return images

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations."""
        self.network.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        return {f"network.{name}" for name in self.network.no_weight_decay()}

    def merge_low_rank(self) -> Self:
        self.network.merge_low_rank()
        return self

    # ── levels ────────────────────────────────────────────────────────────────────────────────────

    @property
    def num_levels(self) -> int:
        """The number of levels."""
        return len(self.channels)

    @property
    def reductions(self) -> list[int]:
        """The input pixels per position of each level, in each direction."""
        view = self.network.views[-1]
        return [level_reduction(view, end) for end in self.ends[-1]]

    @property
    def feature_info(self) -> FeatureInfo:
        """timm's description of the maps: `channels()` and `reduction()`."""
        entries = level_entries(self.network.views, self.ends)
        for entry, width in zip(entries, self.channels, strict=True):
            entry["num_chs"] = width
        return FeatureInfo([dict(entry) for entry in entries], tuple(range(len(entries))))

    def used_levels(self) -> tuple[int, ...]:
        """The numbers of the levels that are computed."""
        return tuple(range(self.num_levels))

    def levels_of_output(self) -> tuple[int, ...]:
        """The numbers of the levels that are computed in evaluation, which an extracted stitch keeps."""
        return tuple(range(self.num_levels))

    def used_ends(self) -> Ends:
        """The levels that are computed."""
        levels = self.used_levels()
        return self.ends if len(levels) == self.num_levels else tuple(tuple(o[n] for n in levels) for o in self.ends)

    def projection(self, anchor: int, level: int) -> nn.Module | None:
        """Get the linear map from an anchor's channels to a level's; None where they are equal."""
        layer = self.tied.get((anchor, level))
        if layer is not None:
            return self.stitching_layers[layer]
        own = self.projections._modules.get(str(anchor))
        return None if own is None else own._modules.get(str(level))

    def joins(self) -> dict[int | str, Join]:
        """Get the stitching layers, and the projections onto maps of an anchor that is as wide as the level."""
        joins: dict[int | str, Join] = self.network.joins()
        for anchor, own in by_number(self.projections).items():
            for level, layer in by_number(cast("nn.ModuleList", own)).items():
                ends = [one[level] for one in self.ends]
                widths = [level_width(view, end) for view, end in zip(self.network.views, ends, strict=True)]
                if self.channels[level] in widths:
                    target = len(widths) - 1 - widths[::-1].index(self.channels[level])
                    key = f"projections.{anchor}.{level}"
                    joins[key] = Join(layer, anchor, target, [(ends[anchor], ends[target])])
        return joins

    def level_map(
        self, h: Tensor, level: int, anchor: int, boundary: int, inputs: ImageInputs
    ) -> tuple[Tensor, Tensor | None]:
        """Turn an activation into the map (B, C, H, W) of a level, and its prefix tokens (B, P, C), if any."""
        view, layer = self.network.views[anchor], self.projection(anchor, level)
        if boundary == EARLY:
            return (h if layer is None else map_channels(layer, h, "NCHW")), None
        if layer is not None:
            h = map_channels(layer, h, view.form_at(boundary)[0])
        return view.as_map(h, inputs.size, boundary), view.prefix(h, boundary)

    def finish(self, stitch: Stitch, taken: Sequence[tuple[int, Tensor]], inputs: ImageInputs) -> Any:
        """Turn the levels that are computed, each a place along the stitch and its activation, into the output."""
        return [spatial for spatial, _ in self._level_maps(stitch, taken, inputs)]

    def _level_maps(
        self, stitch: Stitch, taken: Sequence[tuple[int, Tensor]], inputs: ImageInputs
    ) -> list[tuple[Tensor, Tensor | None]]:
        return [
            self.level_map(h, level, *boundary_at(stitch, place), inputs)
            for level, (place, h) in zip(self.used_levels(), taken, strict=True)
        ]

    # ── one stitch alone ──────────────────────────────────────────────────────────────────────────

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        stitch = self._stitch(stitch_id)
        twin = shallow_twin(self)
        twin.network = self.network.extract(stitch.stitch_id)
        layers: dict[int, dict[int, nn.Module]] = {}
        used = [key for key in levels_of(stitch, self.ends) if key[1] in self.levels_of_output()]
        for anchor, level in used:
            layer = self.projection(anchor, level)
            if layer is not None and (anchor, level) not in self.tied:
                layers.setdefault(anchor, {})[level] = layer
        twin.projections = NumberedModules({anchor: NumberedModules(own) for anchor, own in layers.items()})
        held, tied = by_number(twin.network.stitching_layers), dict[LevelOfAnchor, int]()
        for key, number in self.tied.items():
            if key in used:
                tied[key] = number
                held[number] = self.network.stitching_layers[number]
        twin.tied = tied
        if len(held) != len(twin.network.stitching_layers):  # layers that are projections only here
            twin.network.stitching_layers = NumberedModules(dict(sorted(held.items())))
            twin.network.executor.layers = twin.network.stitching_layers
        twin.stitch_id = stitch.stitch_id
        twin.results.adopt(self.results.current_rows())
        return copying.deepcopy(twin) if copy else twin

    # ── costs ─────────────────────────────────────────────────────────────────────────────────────

    def costs(self, image_size: tuple[int, int] | None = None) -> PyramidCosts:
        """Measure the costs of every part at an image size, or get the cached ones; default the present size."""
        size = image_size or self.image_size
        return cast("PyramidCosts", self._cached_costs(size, lambda: self._measure(size)))

    @torch.no_grad()
    def _measure(self, size: tuple[int, int]) -> PyramidCosts:
        inner = self.network.costs(size)
        twin = meta_copy(self).eval().merge_low_rank()
        like = next(twin.parameters())
        image = torch.empty(1, twin.in_chans, *size, device="meta", dtype=like.dtype)
        inputs, used = twin.prepare_inputs(image, ()), twin.used_levels()
        projections: dict[LevelOfAnchor, Cost] = {}
        on_top: Cost | None = None
        for stitch in twin.plan:
            places = tap_places(stitch, self.ends)
            keys = levels_of(stitch, self.ends)
            if on_top is not None and all(key in projections for key in keys):
                continue
            _, maps = run_to_points(twin.executor.inner, stitch, inputs, set(places), max(places))
            for key, place in zip(keys, places, strict=True):
                with Macs(NORMS) as counter:
                    twin.level_map(maps[place], key[1], *boundary_at(stitch, place), inputs)
                layer = self.projection(*key)  # with its low-rank part
                params = 0 if layer is None else sum(p.numel() for p in layer.parameters())
                macs, (anchor, level) = counter.total, key
                if (
                    layer is None
                    and level_width(self.network.views[anchor], self.ends[anchor][level]) != self.channels[level]
                ):
                    macs = maps[place].numel() * self.channels[level]  # of one that an extracted stitch does not hold
                projections[key] = Cost(macs, params)
            if on_top is None:
                taken = [(places[level], maps[places[level]]) for level in used]
                with Macs(NORMS) as counter:
                    twin.finish(stitch, taken, inputs)
                own = sum(projections[keys[level]].macs for level in used)
                on_top = Cost(counter.total - own, self._params_on_top())
        return PyramidCosts(
            inner.anchors, inner.layers, inner.stitched_norm, inner.back_prefix_layers,
            self.ends, used, projections, self.tied, on_top or Cost(),
        )  # fmt: skip

    def _params_on_top(self) -> int:
        return 0

    def cost_columns(self, costs: PlanCosts, stitch: Stitch) -> Row:
        pyramid_costs = cast("PyramidCosts", costs)
        return {"projection_macs": pyramid_costs.used_projections(stitch).macs}


def _without_head(network: Any) -> Any:
    """Make a network of the same modules without norms and classifiers."""
    twin = extract(network, network.plan, norm=False, head=False)
    twin.stitch_id, twin.num_classes = network.stitch_id, 0
    twin.published, twin.published_scores, twin.trained = None, {}, copying.deepcopy(network.trained)
    twin._model_args = dict(getattr(network, "_model_args", {}))
    twin.stitched_norm = True  # there is none
    return twin
