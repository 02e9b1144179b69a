"""The authors' checkpoint layout of segmentation networks, name by name, to ours.

Their files (github.com/ziplab/SN-Netv2, written by mmengine) hold

- `backbone.anchors.A.…`: BEiT blocks, as mmsegmentation names their parts. Each has a key bias, which changes no
  softmax, and timm's have none; the class token has no position, and timm's position embedding has a row for it;
- `backbone.stitch_layers.DIRECTION.N.transform.…`: layer N leaves block N of the front. The last layer of the small
  anchor begins no stitch: it is the projection of that anchor's last map. The other projections are stitching layers;
- `decode_head.…` and `auxiliary_head.N.…`.

Index tables are computed, and ignored here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from ..families.dense.network import DenseNetwork
from ..families.timm_models.naming import make_registered
from ..network.weights import check_keys
from ..plan.stitch_plan import StitchPlan
from .state_dicts import adapt_anchors, unwrap

_ANCHOR = re.compile(r"^backbone\.anchors\.(\d+)\.(.+)$")
_LAYER = re.compile(r"^backbone\.stitch_layers\.(\d+)\.(\d+)\.transform\.(.+)$")
_HEAD = re.compile(r"^(decode_head|auxiliary_head\.\d+)\.(.+)$")
_COMPUTED = ".relative_position_index"
_PATCH, _SIDE = 16, 32  # pixels of a patch, patches of an image of 512
_COUNT = ".num_batches_tracked"  # of batch norm, which files without buffers lack

_IN_ANCHOR = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^layers\.(\d+)\.ln(\d)\.", r"blocks.\1.norm\2."),
    (r"^layers\.(\d+)\.ffn\.layers\.0\.0\.", r"blocks.\1.mlp.fc1."),
    (r"^layers\.(\d+)\.ffn\.layers\.1\.", r"blocks.\1.mlp.fc2."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
)
_IN_HEAD = (
    (r"^up_convs\.(\d+)\.0\.conv\.", r"steps.\1.conv."),
    (r"^up_convs\.(\d+)\.0\.bn\.", r"steps.\1.norm."),
    (r"^conv_seg\.", "classifier."),
)


def is_segmentation(weights: Mapping[str, object]) -> bool:
    """Whether weights are those of a segmentation network, in the authors' layout or ours."""
    return any(_HEAD.match(key) or key.startswith("head.decode.") for key in weights)


def refuse_segmentation(weights: Mapping[str, object]) -> None:
    """Refuse weights of a segmentation network for one of classifiers.

    Raises:
        ValueError: naming their head.
    """
    if is_segmentation(weights):
        raise ValueError(
            "these weights are those of a segmentation network (they have a decode head): create that network, "
            "e.g. timm.create_model('snnetv2_setr_deit3_sl.ade20k', pretrained=True)."
        )


def convert_segmentation(weights: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Turn the authors' weights into ours, and find the arguments with which the network computes the same.

    Raises:
        ValueError: if they are not those of that network.
    """
    classes = weights.get("decode_head.conv_seg.weight")
    if classes is None:
        raise ValueError(
            f"these weights are not those of a segmentation network in the authors' layout (no 'decode_head.…' among "
            f"{list(weights)[:3]} …): give a file of github.com/ziplab/SN-Netv2 for segmentation."
        )
    arguments = {"num_classes": len(classes)}
    embedding = weights.get("backbone.anchors.0.pos_embed")
    if embedding is not None and embedding.ndim == 3 and (side := isqrt(embedding.shape[1])) != _SIDE:
        arguments["img_size"] = side * _PATCH
    network = make_registered(name, device="meta", **arguments)
    return adapt_segmentation(weights, network), arguments  # type: ignore[arg-type] # a DenseNetwork


def adapt_segmentation(state_dict: Mapping[str, object], model: DenseNetwork) -> dict[str, Tensor]:
    """Adapt weights in the authors' layout or ours to a network; timm's loader calls this before loading them.

    Raises:
        ValueError: if they are those of another network.
    """
    weights = unwrap(state_dict)
    if not is_segmentation(weights):
        raise ValueError(
            f"these weights are not those of a segmentation network (no decode head among {list(weights)[:3]} …): "
            "give a file for segmentation, or create the network of classifiers that they belong to."
        )
    weights = rename_segmentation(weights, model.plan, model.num_levels - 1)
    weights = adapt_anchors(weights, model.anchors, "network.anchors.")
    own = model.state_dict()
    weights |= {name: torch.tensor(0) for name in own if name.endswith(_COUNT) and name not in weights}
    # Classifiers and first convolutions may differ: timm adapts them to num_classes and in_chans.
    fixed = {name for name in own if ".classifier." not in name and not name.endswith(".patch_embed.proj.weight")}
    check_keys(
        {name: value for name, value in weights.items() if name in fixed or name not in own},
        {name: value for name, value in own.items() if name in fixed},
        "this network",
    )
    return weights


def rename_segmentation(weights: Mapping[str, Tensor], plan: StitchPlan, last_level: int) -> dict[str, Tensor]:
    """Rename the authors' weights to our names; tensors that need no change are not copied.

    Args:
        weights: the weights in the authors' layout, or in ours.
        plan: the plan of their network.
        last_level: the number of the last level, which has a projection of its own.

    Returns:
        The tensors under our names; names that fit nothing stay.
    """
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, spec in enumerate(plan.layers):
        numbers.setdefault((spec.front, spec.back), []).append(number)
    by_direction = list(numbers.values())
    renamed: dict[str, Tensor] = {}
    projection: dict[str, Tensor] = {}
    for key, value in weights.items():
        if key.endswith(_COMPUTED):
            continue
        if match := _ANCHOR.match(key):
            renamed.update(_rename_in_anchor(f"network.anchors.{match[1]}.", match[2], value))
        elif match := _HEAD.match(key):
            place = match[1].replace("decode_head", "head.decode").replace("auxiliary_head", "head.auxiliary_heads")
            renamed[f"{place}.{_replace(match[2], _IN_HEAD)}"] = value
        elif match := _LAYER.match(key):
            direction, n = int(match[1]), int(match[2])
            own = by_direction[direction] if direction < len(by_direction) else []
            if n < len(own):
                renamed[f"network.stitching_layers.{own[n]}.{match[3]}"] = value
            elif direction == 0 and n == len(own):
                projection[match[3]] = value
            else:
                renamed[key] = value
        else:
            renamed[key] = value
    renamed.update({f"projections.0.{last_level}.{leaf}": value for leaf, value in _merge(projection).items()})
    return renamed


def _rename_in_anchor(prefix: str, name: str, value: Tensor) -> dict[str, Tensor]:
    """Rename one tensor of an anchor to timm's names for BEiT."""
    name = _replace(name, _IN_ANCHOR)
    if name == "pos_embed":
        value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    if name.endswith(".qkv.bias"):
        query, _, values = value.chunk(3)
        own = prefix + name.removesuffix("qkv.bias")
        return {f"{own}q_bias": query, f"{own}v_bias": values}
    return {prefix + name: value}


def _merge(layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge the low-rank part of a layer into its matrix."""
    merged = dict(layer)
    if {"weight", "lora_A", "lora_B"} <= layer.keys():
        down, up = merged.pop("lora_A"), merged.pop("lora_B")
        merged["weight"] = layer["weight"] + up @ down / len(down)
    return merged


def _replace(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
