"""The dense network: one head on the pyramid of a stitchable network, for segmentation or depth with every stitch.

Source: SN-Netv2 (arXiv:2307.00154), which trains one head for all stitches of two anchors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from ...anchors.view import ImageInputs
from ...choices import InferenceMode
from ...plan.costs import Cost, PlanCosts, PublishedCount
from ...plan.results import Row, Rows
from ...plan.stitch_plan import Stitch
from ..timm_models.network import SNNet
from ..timm_models.pyramid import Pyramid
from ..timm_models.pyramid_costs import PyramidCosts
from ..timm_models.pyramid_executor import MapInputs
from .authors_count import cost_as_authors, measure_as_authors
from .inference import Inference, predict, predict_each
from .objective import Depth, Segmentation, make_objective
from .settings import DenseSettings

UNSUPPORTED = {
    "quick_profile": "quick=True adds up the parts of classifiers: leave it out for a dense network.",
    "linear_probe": "linear_probe fits classifiers: train the dense network instead.",
    "cascade": "a cascade needs one answer an image: choose a stitch by select, or by LatencyController.",
    "replicas": "replicas serve classifiers: leave --ray out, so that one process serves the dense network.",
}
_ANCHORS_FIRST = "change the network of classifiers, and make the dense one of it: timm_stitch.dense(model, …)."
# What users of timm's classifiers call, and what to do instead.
ADVICE = {
    "reset_classifier": "a dense network has a head instead: timm_stitch.dense(model, num_classes=…) makes another.",
    "get_classifier": "a dense network has a head instead: net.head.",
    "forward_features": "a dense network has maps instead: model.pyramid() of the network of classifiers gives them.",
    "forward_head": "a dense network has a head instead: net.head takes the maps of all levels.",
    "forward_intermediates": "model.pyramid() of the network of classifiers gives the maps of all levels.",
    "pyramid": "a dense network is a pyramid with a head: model.pyramid() of the network of classifiers makes one.",
    "set_input_size": f"the size of images is the anchors': {_ANCHORS_FIRST}",
    "prune_intermediate_layers": f"the blocks are the plan's: {_ANCHORS_FIRST}",
}


class DenseNetwork(Pyramid):
    """A stitchable network whose output is a map: classes or depth for every pixel.

    `timm_stitch.dense` makes one. It shares the modules of the network that it is made of.

    Args:
        network: the network of classifiers, of which the anchors without their heads are used.
        settings: the task, the levels and the head.
        head: the module from the levels to the output.

    Attributes:
        settings: the plain values that describe the network.
        network: the stitchable network without its norms and classifiers.
        projections: the linear maps of anchors that are not as wide as a level.
        head: the head.

    Examples:
        >>> anchors = [timm.create_model(name) for name in ("resnet18", "resnet34")]
        >>> net = timm_stitch.dense(anchors, head="linear", num_classes=9)
        >>> type(net).__name__, net.task, net.num_classes
        ('DenseNetwork', 'segmentation', 9)
    """

    family = "dense"
    unsupported: ClassVar[Mapping[str, str]] = UNSUPPORTED

    def __init__(self, network: SNNet, settings: DenseSettings, head: nn.Module) -> None:
        super().__init__(network, settings.ends, settings.channels, settings.tie)
        self.settings, self.head = settings, head
        for module in (self.projections, self.head):
            module.train(network.training)

    if not TYPE_CHECKING:  # which would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            if name in ADVICE:
                raise AttributeError(f"'{type(self).__name__}' object has no attribute {name!r}: {ADVICE[name]}")
            return super().__getattr__(name)

    # ── description ───────────────────────────────────────────────────────────────────────────────

    @property
    def task(self) -> str:
        """`"segmentation"` or `"depth"`."""
        return self.settings.task

    @property
    def num_classes(self) -> int:
        """The number of classes; 1 for depth."""
        return self.settings.num_classes

    @property
    def objective(self) -> Segmentation | Depth:  # type: ignore[override] # it follows from the settings
        """The targets, scores and losses of the task."""
        own = self.settings
        return make_objective(own.task, own.num_classes, own.ignore_index, own.min_depth, own.max_depth)

    @property
    def num_outputs(self) -> int:
        """The channels of the output."""
        return self.settings.num_classes

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes, or none."""
        return self.settings.label_names

    @property
    def inference(self) -> Inference:
        """The way in which `predict` and `evaluate` run the network on images."""
        return self.settings.inference

    @inference.setter
    def inference(self, value: Inference) -> None:
        self.settings = replace(self.settings, inference=value)

    # ── the output ────────────────────────────────────────────────────────────────────────────────

    def predict(
        self,
        x: Tensor,
        *,
        stitch_id: int | None = None,
        mode: InferenceMode | None = None,
        crop: int | None = None,
        stride: int | None = None,
        flip: bool | None = None,
    ) -> Tensor:
        """Predict on images as a whole or by sliding windows, without gradients.

        Args:
            x: the images, shape (B, C, H, W).
            stitch_id: the stitch; default the current one.
            mode: `"whole"`, or `"slide"` for windows whose outputs are averaged where they overlap; default the
                network's `inference`, as for the other arguments.
            crop: the height and width of a window in pixels.
            stride: the pixels from one window to the next.
            flip: whether to average with the output of the mirrored image.

        Returns:
            Logits (B, classes, H, W), or depths in metres (B, 1, H, W).

        Raises:
            ValueError: if an argument has another value than these.

        Examples:
            >>> import timm, torch, timm_stitch
            >>> anchors = [timm.create_model(name) for name in ("resnet18", "resnet34")]
            >>> net = timm_stitch.dense(anchors, head="linear", num_classes=9).eval()
            >>> net.predict(torch.randn(1, 3, 64, 96), stitch_id=2, mode="slide", crop=64, stride=32).shape
            torch.Size([1, 9, 64, 96])
        """
        chosen = self.inference.changed(mode=mode, crop=crop, stride=stride, flip=flip)
        return predict(self, x, self._stitch(stitch_id).stitch_id, chosen)

    def predict_each(self, x: Tensor, stitch_ids: Sequence[int] | None = None) -> Iterator[tuple[int, Tensor]]:
        return predict_each(self, x, self.stitch_ids if stitch_ids is None else stitch_ids, self.inference)

    def prepare_inputs(self, x: Tensor, stitches: Iterable[Stitch]) -> MapInputs:
        try:
            return super().prepare_inputs(x, stitches)
        except ValueError:
            sizes = {view.image_size for view in self.network.views} - {None}
            height, width = self.image_size
            if not sizes or x.ndim != 4 or x.shape[1] != self.in_chans or x.shape[2:] == (height, width):
                raise
            raise ValueError(
                f"images of shape {tuple(x.shape)} do not fit: expected (B, {x.shape[1]}, {height}, {width}). Larger "
                f"ones: predict(x, mode='slide', crop={min(height, width)}, stride={min(height, width) * 2 // 3})."
            ) from None

    def used_levels(self) -> tuple[int, ...]:
        return self._levels_used(self.training)

    def levels_of_output(self) -> tuple[int, ...]:
        return self._levels_used(False)

    def _levels_used(self, training: bool) -> tuple[int, ...]:
        levels_used = getattr(self.head, "levels_used", None)
        return tuple(range(self.num_levels)) if levels_used is None else tuple(levels_used(training))

    def extract(self, stitch_id: int | None = None, copy: bool = False) -> Self:
        twin = super().extract(stitch_id)
        twin.head = self._head_of_output()
        return deepcopy(twin) if copy else twin

    def _head_of_output(self) -> nn.Module:
        """The head without what only training uses."""
        head: nn.Module = getattr(self.head, "without_auxiliary", lambda: self.head)()
        return head

    def finish(self, stitch: Stitch, taken: Sequence[tuple[int, Tensor]], inputs: ImageInputs) -> Tensor:
        maps, prefixes = zip(*self._level_maps(stitch, taken, inputs), strict=True)
        with_prefix = getattr(self.head, "uses_prefix_tokens", False)
        out = self.head(maps, prefixes) if with_prefix else self.head(maps)
        if not isinstance(out, Tensor) or out.ndim != 4 or out.shape[1] != self.num_outputs:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the head must give (B, {self.num_outputs}, H, W), got {shape}: correct the head.")
        out = self._to_output(out, inputs.size)
        if self.training and hasattr(self.head, "auxiliary"):
            tagged: Any = out
            head: Any = self.head
            tagged.auxiliary = [self._to_output(extra, inputs.size) for extra in head.auxiliary(maps)]
        return out

    def _to_output(self, out: Tensor, size: tuple[int, int]) -> Tensor:
        if out.shape[2:] != size:
            out = F.interpolate(out, size, mode="bilinear", align_corners=False)
        if self.task == "depth":
            low, high = self.settings.min_depth, self.settings.max_depth
            out = low + (high - low) * out.sigmoid()
        return out

    # ── costs ─────────────────────────────────────────────────────────────────────────────────────

    def stitch_table(self, image_size: tuple[int, int] | None = None) -> Rows:
        """List the stitches with their costs and all known figures, in id order.

        Args:
            image_size: the (height, width) of the image for which costs are counted; default the network's own.

        Returns:
            One dict per stitch: `stitch_id`, `name`, `macs` (multiply-adds for one image, all included),
            `projection_macs` and `head_macs` (those of projections and of the head, which are in it), `params`. Figures
            measured on the present weights follow: `miou`, `aacc`, `macc`, or `abs_rel`, `delta1`, `rmse`, `silog`.
        """
        return self.table_with(self.results.current(), self.costs(image_size))

    def cost_columns(self, costs: PlanCosts, stitch: Stitch) -> Row:
        return {**super().cost_columns(costs, stitch), "head_macs": cast("PyramidCosts", costs).on_top.macs}

    def published_cost(self, costs: PlanCosts, stitch: Stitch, count: PublishedCount) -> Cost:
        own = self.costs()
        counted = self._cached_costs(("authors", self.image_size), lambda: measure_as_authors(self, self.head, own))
        return cost_as_authors(cast("PyramidCosts", counted), stitch)

    def _params_on_top(self) -> int:
        return sum(parameter.numel() for parameter in self._head_of_output().parameters())

    def compile(self, *args: object, **kwargs: object) -> None:
        super().compile(*args, **kwargs)
        self.head.compile(*args, **kwargs)

    def no_weight_decay(self) -> set[str]:
        own = getattr(self.head, "no_weight_decay", set)
        return super().no_weight_decay() | {f"head.{name}" for name in own()}
