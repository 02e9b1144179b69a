"""Stitchable networks inside models of other libraries, their hosts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from ..errors import WrongTypeError
from .stitchable import StitchableNetwork

Host = TypeVar("Host", bound=nn.Module)


def set_stitch(host: Host, stitch_id: int) -> Host:
    """Choose the stitch of every stitchable network or pyramid inside a model.

    Args:
        host: a model of any library, such as a detector whose backbone is
            `timm.create_model(..., features_only=True, stitches="all")`; or the network itself.
        stitch_id: the id of the stitch.

    Returns:
        The model itself.

    Raises:
        TypeError: if it is no model.
        ValueError: if there is no stitchable network in it, or one that has no such stitch.

    Examples:
        >>> import timm, timm_stitch
        >>> from torch import nn
        >>> backbone = timm.create_model(
        ...     "snnet", anchors=["resnet18", "resnet34"], features_only=True, stitches="all", device="meta")
        >>> host = nn.Sequential(backbone, nn.Identity())
        >>> timm_stitch.set_stitch(host, 4)[0].stitch_id
        4
    """
    if not isinstance(host, nn.Module):
        raise WrongTypeError(f"set_stitch needs a model, got {type(host).__name__} {host!r:.60}.")
    networks = list(_outermost(host))
    if not networks:
        raise ValueError(
            f"{type(host).__name__} has no stitchable network inside: make its backbone by timm.create_model("
            "'snnet_resnet_18_50', features_only=True, stitches='all')."
        )
    for network in networks:
        if stitch_id not in network.plan and network.num_stitches == 1:
            raise ValueError(
                f"the backbone in {type(host).__name__} holds stitch {network.stitch_id} alone, got "
                f"stitch_id={stitch_id!r}: make it with stitches='all'."
            )
        network.plan[stitch_id]  # raises before any is set
    for network in networks:
        network.set_stitch(stitch_id)
    return host


def _outermost(module: nn.Module) -> Iterator[StitchableNetwork]:
    """Yield the stitchable networks in a module that are not inside another."""
    if isinstance(module, StitchableNetwork):
        yield module
    else:
        for child in module.children():
            yield from _outermost(child)
