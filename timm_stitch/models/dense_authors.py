"""The authors' checkpoint layout of segmentation networks, name by name, to ours.

Their files (github.com/ziplab/SN-Netv2, written by mmengine) hold

- `backbone.anchors.A.…`: BEiT blocks, as mmsegmentation names their parts. Each has a key bias, which changes no
  softmax, and timm's have none; the class token has no position, which timm's position embedding has;
- `backbone.stitch_layers.DIRECTION.N.transform.…`: layer N leaves block N of the front. The last layer of the small
  anchor begins no stitch: it is the projection of that anchor's last map. The other projections are stitching layers;
- `decode_head.…` and `auxiliary_head.N.…`.

Index tables and counts of batches are computed, and ignored here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..plan.stitch_plan import StitchPlan

_ANCHOR = re.compile(r"^backbone\.anchors\.(\d+)\.(.+)$")
_LAYER = re.compile(r"^backbone\.stitch_layers\.(\d+)\.(\d+)\.transform\.(.+)$")
_HEAD = re.compile(r"^(decode_head|auxiliary_head\.\d+)\.(.+)$")
_COMPUTED = re.compile(r"\.(relative_position_index|num_batches_tracked)$")

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


def is_authors_dense(state_dict: Mapping[str, object]) -> bool:
    """Whether weights are in the layout of the authors' dense networks."""
    return any(_LAYER.match(key) for key in state_dict)


def rename_dense(state_dict: Mapping[str, Tensor], plan: StitchPlan, last_level: int) -> dict[str, Tensor]:
    """Rename the authors' weights to our names; tensors that need no change are not copied.

    Args:
        state_dict: the weights in the authors' layout.
        plan: the plan of their network.
        last_level: the number of the last level, which has a projection of its own.

    Returns:
        The tensors under our names; names that fit nothing stay.
    """
    numbers: dict[tuple[int, int], list[int]] = {}
    for number, spec in enumerate(plan.layers):
        numbers.setdefault((spec.front, spec.back), []).append(number)
    directions = list(numbers.values())
    renamed: dict[str, Tensor] = {}
    projection: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if _COMPUTED.search(key):
            continue
        if match := _ANCHOR.match(key):
            renamed.update(_rename_in_anchor(f"network.anchors.{match[1]}.", match[2], value))
        elif match := _HEAD.match(key):
            place = match[1].replace("decode_head", "head.decode").replace("auxiliary_head", "head.auxiliary_heads")
            renamed[f"{place}.{_replace(match[2], _IN_HEAD)}"] = value
        elif match := _LAYER.match(key):
            direction, n = int(match[1]), int(match[2])
            own = directions[direction] if direction < len(directions) else []
            if n < len(own):
                renamed[f"network.stitching_layers.{own[n]}.{match[3]}"] = value
            elif direction == 0 and n == len(own):
                projection[match[3]] = value
            else:
                renamed[key] = value
        else:
            renamed[key] = value
    if projection:
        name = f"projections.0.{last_level}"
        renamed.update({f"{name}.{leaf}": value for leaf, value in _merge(projection).items()})
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
    down, up = merged.pop("lora_A", None), merged.pop("lora_B", None)
    if down is not None and up is not None:
        merged["weight"] = merged["weight"] + up @ down / len(down)
    return merged


def _replace(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
