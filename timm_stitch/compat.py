"""What we need of timm beyond its public names, in one place, so that a new timm breaks one file.

`timm.models._input` exists since timm 1.0.31; before, timm kept no record of model arguments and there
is nothing to update.
"""

from __future__ import annotations

from typing import Any

from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import nn

try:
    from timm.models._input import update_model_args, update_model_input_size
except ImportError:  # timm < 1.0.31

    def update_model_args(model: nn.Module, **model_args: Any) -> None:
        """Record arguments that rebuild the model, under the name that newer timm reads."""
        model._model_args = dict(getattr(model, "_model_args", {}), **model_args)  # type: ignore[assignment]

    def update_model_input_size(model: nn.Module, img_size: Any, **model_args: Any) -> None:
        """Record a resize as an argument that rebuilds the model."""
        update_model_args(model, img_size=img_size, **model_args)


__all__ = ["feature_take_indices", "resolve_pretrained_cfg", "update_model_args", "update_model_input_size"]
