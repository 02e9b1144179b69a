"""From a stitchable network, or from anchors, to a dense network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from ...choices import DenseTask
from ...errors import WrongTypeError
from ...network.stitchable import StitchableNetwork
from ...plan.enumeration import PlanOptions
from ...plan.levels import make_ends
from ..timm_models.network import SNNet
from ..timm_models.pyramid_levels import level_channels, level_entries
from ..timm_models.stitching import stitch_timm
from .heads.by_name import make_head
from .network import DenseNetwork
from .settings import DenseSettings

MakeHead = Callable[[Sequence[int], Sequence[int]], nn.Module]


def dense(
    model: StitchableNetwork | Sequence[nn.Module],
    head: str | MakeHead = "setr",
    num_classes: int | None = None,
    *,
    task: DenseTask = "segmentation",
    levels: int | Sequence[int] | Sequence[Sequence[int]] = 4,
    channels: int | Sequence[int] | None = None,
    tie: bool = False,
    min_depth: float = 1e-3,
    max_depth: float = 10.0,
    ignore_index: int = 255,
    label_names: Sequence[str] = (),
    head_options: Mapping[str, Any] | None = None,
) -> DenseNetwork:
    """Put one head for segmentation or depth on a network, for all its stitches.

    The head and the projections before it start random: follow with `least_squares_init` and `train`.

    Args:
        model: the stitchable network of timm's models, whose modules are shared; or the anchors, which are stitched.
        head: `"setr"`, `"linear"` or `"dpt"`; or a function from the channels and the reductions of the levels to a
            module, whose `forward` takes the maps of all levels and returns (B, num_classes, H, W) of any size.
        num_classes: the number of classes of a segmentation.
        task: `"segmentation"`, or `"depth"` for one depth in metres per pixel.
        levels, channels, tie: the arguments of `SNNet.pyramid`.
        min_depth, max_depth: the range of depths in metres.
        ignore_index: the label of pixels that do not count.
        label_names: the names of the classes.
        head_options: further arguments of a head that is named.

    Returns:
        The network, in evaluation or training mode as `model`.

    Raises:
        TypeError: if `model` is neither a network of timm's models nor anchors.
        ValueError: if an argument has another value than these.

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model(name) for name in ("resnet18", "resnet34")]
        >>> net = timm_stitch.dense(anchors, head="linear", num_classes=9)
        >>> net(torch.randn(2, 3, 64, 64), stitch_id=3).shape
        torch.Size([2, 9, 64, 64])
        >>> sorted(net.stitch_table()[3])
        ['head_macs', 'macs', 'name', 'params', 'projection_macs', 'stitch_id']
    """
    network = _network_of(model)
    if num_classes is None and task != "depth":
        raise ValueError("num_classes is missing: give the number of classes, the background included.")
    ends = make_ends(network.plan.anchors, levels)
    entries = level_entries(network.views, ends)
    widths, reductions = level_channels(entries, channels), [entry["reduction"] for entry in entries]
    named = head if isinstance(head, str) else ""
    settings = DenseSettings(
        task=task, num_classes=1 if num_classes is None else num_classes, head=named,
        head_options=dict(head_options or {}), ends=ends, channels=tuple(widths), tie=tie,
        min_depth=min_depth, max_depth=max_depth, ignore_index=ignore_index, label_names=tuple(label_names),
    )  # fmt: skip
    if isinstance(head, str):
        module = make_head(settings, reductions)
    elif head_options:
        raise ValueError("head_options are those of a head that is named: give a function that makes the whole head.")
    else:
        module = head(widths, reductions)
        if not isinstance(module, nn.Module):
            raise WrongTypeError(f"head must make a module, got {type(module).__name__}.")
    like = next(network.parameters())
    return DenseNetwork(network, settings, module.to(like.device, like.dtype))


def _network_of(model: object) -> SNNet:
    if isinstance(model, SNNet):
        return model
    if isinstance(model, (list, tuple)) and model and all(isinstance(part, nn.Module) for part in model):
        return stitch_timm(model, PlanOptions())
    raise WrongTypeError(
        f"dense needs a stitchable network of timm's models, or a list of such models, got {type(model).__name__}: "
        "e.g. timm_stitch.dense(timm_stitch.stitch([small, large]), num_classes=9)."
    )
