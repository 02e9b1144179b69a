"""What we need of timm beyond its public names, in one place, so that a new timm breaks one file."""

from timm.models._builder import resolve_pretrained_cfg
from timm.models._features import FeatureGetterNet, FeatureInfo, feature_take_indices
from timm.models._hub import _parse_model_cfg as parse_model_cfg
from timm.models._hub import save_config_for_hf
from timm.models._input import get_model_args, update_model_args, update_model_input_size
from timm.models._manipulate import reinit_non_persistent_buffers

__all__ = [
    "FeatureGetterNet",
    "FeatureInfo",
    "feature_take_indices",
    "get_model_args",
    "parse_model_cfg",
    "reinit_non_persistent_buffers",
    "resolve_pretrained_cfg",
    "save_config_for_hf",
    "update_model_args",
    "update_model_input_size",
]
