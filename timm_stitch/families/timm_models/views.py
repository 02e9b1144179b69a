"""From a model to its view: one written for its family, or else one made from its recorded forward pass."""

from __future__ import annotations

import torch
from torch import nn

from ...anchors.block_view import BlockView
from ...errors import WrongTypeError
from .staged_views import LevitView, ResNetView, SwinView
from .traced_view import TracedView
from .vit_view import TransformerView


def view_of(model: nn.Module) -> BlockView:
    """The view of a timm model.

    Raises:
        TypeError: if the model is not a module, or one that has no view.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise WrongTypeError(
            f"an anchor must be a timm model, got one that is compiled by TorchScript ({model.original_name}): stitch "
            "the model itself, and script the stitches that you extract."
        )
    if not isinstance(model, nn.Module):
        raise WrongTypeError(
            f"an anchor must be a timm model or one of transformers, got {type(model).__name__} {model!r:.60}. "
            "Create it first: timm.create_model('deit_tiny_patch16_224', pretrained=True), or for texts "
            "AutoModelForSequenceClassification.from_pretrained(…)."
        )
    for kind in (TransformerView, SwinView, LevitView, ResNetView):
        view = kind.open(model)
        if view is not None:
            return view
    return TracedView(model)
