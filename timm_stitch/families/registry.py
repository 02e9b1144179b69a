"""Which family a model, a network or a saved configuration belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import nn

from ..errors import WrongTypeError
from ..network.stitchable import StitchableNetwork
from .dense.family import DenseFamily
from .family import Config, Family
from .timm_models.family import TimmFamily
from .transformers_models.family import TransformersFamily

# Tried in this order. timm's is the last: it takes any module, and any configuration that no other family reads.
_FAMILIES: list[Family] = [TransformersFamily(), DenseFamily(), TimmFamily()]


def families() -> tuple[Family, ...]:
    """List every family, in the order in which they are tried."""
    return tuple(_FAMILIES)


def register_family(family: Family) -> None:
    """Add a family, which is tried before the others; it replaces one of the same name."""
    _FAMILIES[:] = [family, *(other for other in _FAMILIES if other.name != family.name)]


def is_stitchable(model: object) -> TypeGuard[StitchableNetwork]:
    """Whether a module is a stitchable network, of whichever family."""
    return isinstance(model, StitchableNetwork)


def family_of(network: StitchableNetwork) -> Family:
    """Find the family of a network.

    Raises:
        TypeError: if it is not a stitchable network.
    """
    name = getattr(network, "family", None)
    for family in _FAMILIES:
        if family.name == name:
            return family
    raise WrongTypeError(
        f"{type(network).__name__} is not a stitchable network: expected what timm_stitch.stitch or from_hub gives."
    )


def family_of_models(models: Sequence[nn.Module]) -> Family:
    """Find the one family of several models.

    Raises:
        TypeError: if they belong to several.
    """
    chosen = [next(family for family in _FAMILIES if family.accepts(model)) for model in models] or _FAMILIES[-1:]
    if len({family.name for family in chosen}) > 1:
        names = " and ".join(sorted({family.name for family in chosen}))
        raise WrongTypeError(f"cannot stitch models of {names} into one network: give models of one of them.")
    return chosen[0]


def family_of_config(config: Config) -> Family:
    """Find the family of a saved network, by its `config.json`."""
    return next(family for family in _FAMILIES if family.reads(config))


def require(network: StitchableNetwork, feature: str) -> Any:
    """Refuse a feature that the networks of a family lack, in the sentence that says what to do instead.

    Returns:
        The network, as one of the class that has the feature.

    Raises:
        ValueError: that sentence.
    """
    sentence = network.unsupported.get(feature)
    if sentence:
        raise ValueError(sentence)
    return network
