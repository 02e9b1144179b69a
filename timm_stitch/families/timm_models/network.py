"""The stitchable network: one set of weights, many networks, one of which runs.

Source: SN-Net (arXiv:2302.06586). The network decides nothing: `plan` lists the stitches, the caller chooses one, and
`executor` runs it. The rest of the interface of timm's models is in `timm_api`.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Optional

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ...anchors.block_view import BlockView
from ...anchors.view import ImageInputs
from ...network.extraction import by_number, single_stitch_graph
from ...network.image_executor import ImageExecutor
from ...network.layers import give_zero_gradients
from ...network.stitchable import StitchIds, is_sequence_of_ids
from ...network.weights import EXTRA_STATE, NORM_FLAG
from ...plan.costs import PlanCosts, PublishedCount
from ...plan.stitch_plan import Stitch, StitchPlan
from .counting import image_size_of, measure
from .timm_api import TimmModel
from .timm_compat import update_model_args
from .views import view_of

torch.fx.wrap("give_zero_gradients")  # a call of its own in traced graphs, not what is inside it


class SNNet(TimmModel):
    """A stitchable neural network (SN-Net): one set of weights, many networks.

    Args:
        anchors: timm models or their views, in the order of the plan; used in place, not copied.
        plan: the stitches between them.
        stitched_norm: whether stitched paths run the back anchor's final norm. The authors' DeiT weights were
            trained without.
        stitch_id: the stitch of every call that names none; by default the largest anchor alone.
        touch_unused: whether to give parameters that a call in training did not use a zero gradient, for
            trainers that require one.
        published: the authors' way of counting, for their columns of `stitch_table`; None for no such columns.

    Attributes:
        executor: the executor of the stitches.
        results: the results measured for the stitches, and the id of the weights.
        trained: the origin of the weights, for the model card.

    Raises:
        TypeError: if an anchor is not a model that can be opened.
        ValueError: if the anchors do not fit each other or the plan.

    Examples:
        `timm_stitch.stitch` makes one from models, `timm.create_model` by name:

        >>> model = timm.create_model("snnet_levit_192_256").eval()
        >>> type(model).__name__, model.num_stitches
        ('SNNet', 8)
        >>> model.set_stitch(3).stitch_id
        3
        >>> model.plan[3].name
        'levit_192[0:2] + levit_256[2:12]'
    """

    family = "timm"
    touch_unused = False

    def __init__(
        self,
        anchors: Sequence[nn.Module | BlockView],
        plan: StitchPlan,
        stitched_norm: bool = True,
        stitch_id: int | None = None,
        touch_unused: bool | None = None,
        published: PublishedCount | None = None,
    ) -> None:
        super().__init__()
        views = [anchor if isinstance(anchor, BlockView) else view_of(anchor) for anchor in anchors]
        self._assemble(views, plan, bool(stitched_norm), stitch_id)
        self.num_classes = int(views[-1].anchor.num_classes)
        self.in_chans: int = views[-1].image_channels() or int(getattr(views[-1].anchor, "in_chans", 3))
        self.published = published
        if touch_unused is not None:
            self.touch_unused = touch_unused
        update_model_args(self, stitched_norm=self.stitched_norm)

    def _replicate_for_data_parallel(self) -> Self:
        """Replicate for `nn.DataParallel`; the executor is made when the replica runs, on its own anchors."""
        replica: Self = super()._replicate_for_data_parallel()
        replica._replica_of = replica.__dict__.pop("executor")
        return replica

    if not TYPE_CHECKING:  # which would take any name for an attribute

        def __getattr__(self, name: str) -> Any:
            """Get an attribute as torch does; make the executor of a replica that has not run yet."""
            if name == "executor" and "_replica_of" in self.__dict__:
                whole: ImageExecutor = self.__dict__["_replica_of"]
                own = by_number(self.anchors)
                views = [view.rebind(own[number]) if number in own else view for number, view in enumerate(whole.views)]
                self.executor = ImageExecutor(views, self.stitching_layers, whole.stitched_norm)
                return self.executor
            return super().__getattr__(name)

    def record(self, **args: object) -> None:
        """Note arguments with which timm would make this network again."""
        update_model_args(self, **args)

    def _plan_changed(self) -> None:
        recorded = {"plan": self.plan.to_dict()} if "plan" in getattr(self, "_model_args", {}) else {"rank": 0}
        update_model_args(self, **recorded)

    def prepare_inputs(self, x: Tensor, stitches: Iterable[Stitch]) -> ImageInputs:
        return self.executor.prepare(x, stitches, self.in_chans, self._modules["anchors"], self.grad_checkpointing)

    def example(self, count: int) -> Tensor:
        like = next(self.parameters())
        return torch.randn(count, self.in_chans, *self.image_size, device=like.device, dtype=like.dtype)

    def extra_metrics(self, num_samples: int, num_labels: int, loss: float) -> dict[str, Any]:
        return {"images": num_labels}

    @property
    def stitched_norm(self) -> bool:
        """Whether stitched paths run the back anchor's final norm."""
        return self.executor.stitched_norm

    @stitched_norm.setter
    def stitched_norm(self, value: bool) -> None:
        self.executor.stitched_norm = bool(value)
        update_model_args(self, stitched_norm=bool(value))

    # ── forward ───────────────────────────────────────────────────────────────────────────────────

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, stitch_id: StitchIds | None = None) -> Tensor: ...

    # TorchScript reads this signature after torch.fx: it knows no union with sequences, and no annotations as text.
    def forward(self, x: Tensor, stitch_id: Optional[int] = None) -> Tensor:  # noqa: UP045
        """Classify images through one stitch, or each image through its own.

        Args:
            x: the images, shape (B, C, H, W).
            stitch_id: the stitch of this call; an int, or one id per image (a list or 1-D tensor of length B).
                Images whose stitches begin with the same steps share these. Default: the current stitch.

        Returns:
            Logits of shape (B, num_classes).

        Raises:
            ValueError: if an id is not in the plan, there is not one per image, or the images have a
                size that the anchors do not take.

        Examples:
            >>> import timm, torch
            >>> model = timm.create_model("snnet", anchors=["resnet18", "resnet34"], num_classes=4)
            >>> model(torch.randn(3, 3, 64, 64), stitch_id=[0, 1, 2]).shape
            torch.Size([3, 4])
        """
        if (
            stitch_id is not None
            and not isinstance(stitch_id, (int, str, torch.fx.Proxy))
            and is_sequence_of_ids(stitch_id)
        ):
            out = self._forward_mixed(x, stitch_id)
        else:
            stitch, executor = self._stitch(stitch_id), self.executor
            alone = not self.grad_checkpointing
            hooked = executor.check(x, stitch, self.in_chans, self._modules["anchors"], alone)
            if self._stitch_hooks:
                self._notify(stitch, len(x))
            out = executor.run(stitch, ImageInputs(x, self.grad_checkpointing, hooked))
        if self.training and self.touch_unused:
            out = give_zero_gradients(out, _parameters(self))
        return out

    def forward_features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        """Compute the input of the head: the back anchor's last activation, normed if the stitch has the final norm."""
        return self._tag_features(self._features(x, stitch_id), stitch_id)

    def _features(self, x: Tensor, stitch_id: int | None = None) -> Tensor:
        stitch = self._stitch(stitch_id)
        inputs, view = self.prepare_inputs(x, (stitch,)), self.executor.views[stitch.back]
        if self._stitch_hooks:
            self._notify(stitch, len(x))
        if inputs.hooked and stitch.is_anchor and view.is_whole and hasattr(view.anchor, "forward_head"):
            features: Tensor = view.anchor.forward_features(x)
            return features
        return self.executor.features(stitch, inputs)

    def forward_head(self, x: Tensor, pre_logits: bool = False, stitch_id: int | None = None) -> Tensor:
        """Pool and classify the output of `forward_features`, with the head of the stitch's back anchor.

        Raises:
            ValueError: if the features came from a stitch that ends in another anchor.
        """
        stitch = self._stitch(stitch_id)
        needs = None if isinstance(x, torch.fx.Proxy) else getattr(x, "needs_head_of", None)
        if needs is not None and needs[0] != stitch.back:
            raise ValueError(
                f"these features came through stitch {needs[1]}, and stitch {stitch.stitch_id} ends in another head: "
                f"give forward_head stitch_id={needs[1]}, or call set_stitch({needs[1]}) first (transformers with "
                "output_hidden_states, and AutoModel, need that)."
            )
        return self.executor.views[stitch.back].head(x, pre_logits=pre_logits)

    def _forward_mixed(self, x: Tensor, stitch_ids: Sequence[int] | Tensor) -> Tensor:
        stitches = self._stitch_per_sample(stitch_ids, x.shape[0], "images")
        if len(set(stitches)) < 2:
            only = stitches[0] if stitches else self._stitch(None)
            inputs = self.prepare_inputs(x, (only,))
            self._notify(only, len(x))
            return self.executor.run(only, inputs)
        inputs = self.prepare_inputs(x, set(stitches))
        widths = {self.views[stitch.back].widths[-1] for stitch in stitches}
        if self.num_classes == 0 and len(widths) > 1:
            raise ValueError(
                f"without a classifier the stitches {sorted({s.stitch_id for s in stitches})} give features of "
                f"different widths {sorted(widths)}: use ids with one back anchor, or num_classes > 0."
            )
        out: Tensor = self.executor.mixed(stitches, inputs, self._notify)
        return out

    def __prepare_scriptable__(self) -> nn.Module:
        """Give `torch.jit.script` the current stitch alone, as a graph of the anchors' own modules."""
        return single_stitch_graph(self.extract())

    # ── costs ─────────────────────────────────────────────────────────────────────────────────────

    @property
    def image_size(self) -> tuple[int, int]:
        """The (height, width) of the images that the network takes, or expects by default."""
        return image_size_of(self)

    def costs(self, image_size: tuple[int, int] | None = None) -> PlanCosts:
        """Measure the costs of every part at an image size, or get the cached ones; default the present size."""
        size = image_size or self.image_size
        return self._cached_costs((size, self.stitched_norm), lambda: measure(self, size))

    # ── weights ───────────────────────────────────────────────────────────────────────────────────

    def get_extra_state(self) -> Tensor:
        """Whether stitched paths run the final norm, for checkpoints of weights that were trained without it."""
        return torch.tensor(self.stitched_norm)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the output of `get_extra_state`."""
        if not state.is_meta:
            self.stitched_norm = bool(state)

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.stitched_norm:  # the default, which needs no entry
            del destination[prefix + EXTRA_STATE]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, metadata: object, strict: bool, missing: list[str], *args: Any
    ) -> None:
        if any(key.startswith(prefix + "stitch_layers.") for key in state_dict):
            raise ValueError(
                "these weights are in the layout of the authors' release: convert them with "
                "timm_stitch.convert_checkpoint, or load them by create_model(..., pretrained=True, "
                "pretrained_cfg_overlay=dict(file=PATH))."
            )
        flag = state_dict.pop(prefix + NORM_FLAG, None)  # in files of version 0.1
        if flag is not None:
            self.set_extra_state(flag)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *args)
        if prefix + EXTRA_STATE in missing:
            missing.remove(prefix + EXTRA_STATE)


def _parameters(model: nn.Module) -> list[Tensor]:
    """All parameters, reached one attribute at a time so that torch.fx sees each of them."""
    parameters = []
    for name, _ in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        parameters.append(getattr(model.get_submodule(owner), leaf))
    return parameters
