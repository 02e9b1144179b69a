"""The weights in a file's contents, and what the families of the anchors in them change for a network."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Mapping

from timm.models import clean_state_dict
from torch import Tensor, nn


def unwrap(checkpoint: Mapping[str, object]) -> dict[str, Tensor]:
    """Take the weights out of the contents of a file, which may be a whole training checkpoint.

    Raises:
        ValueError: if there are none.
    """
    weights: object = checkpoint
    for key in ("model", "state_dict"):
        if isinstance(weights, Mapping) and isinstance(weights.get(key), Mapping):
            weights = weights[key]
    named = weights if isinstance(weights, Mapping) else {}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"no weights found: expected tensors by name, or such a dict under 'model'; got {list(checkpoint)[:6]}."
        )
    return clean_state_dict(tensors)


def adapt_anchors(
    weights: Mapping[str, Tensor], anchors: Iterable[nn.Module], prefix: str = "anchors."
) -> dict[str, Tensor]:
    """Let each anchor's own family adapt its weights: position embeddings to another image size, and so on.

    Args:
        weights: the weights of a network.
        anchors: the anchors of the network that they are for.
        prefix: the beginning of the names of the anchors' weights, before the anchor's number.
    """
    adapted = dict(weights)
    for number, anchor in enumerate(anchors):
        own_prefix = f"{prefix}{number}."
        own = {k[len(own_prefix) :]: adapted.pop(k) for k in list(adapted) if k.startswith(own_prefix)}
        adapted.update({own_prefix + k: v for k, v in _family_filter(own, anchor).items()})
    return adapted


def _family_filter(state_dict: dict[str, Tensor], anchor: nn.Module) -> dict[str, Tensor]:
    """Apply the `checkpoint_filter_fn` in the file of an anchor's class, if there is one and the weights need it.

    Weights that fit stay as they are: some filters resample position embeddings to the size that they have.
    """
    own = {name: tensor.shape for name, tensor in anchor.state_dict().items()}
    if own == {name: tensor.shape for name, tensor in state_dict.items()}:
        return state_dict
    function = getattr(sys.modules.get(type(anchor).__module__), "checkpoint_filter_fn", None)
    if function is None or not state_dict:
        return state_dict
    takes_model = len(inspect.signature(function).parameters) > 1
    return dict(function(state_dict, anchor) if takes_model else function(state_dict))
