"""The authors' checkpoint layout, name by name, to ours.

Their files (github.com/ziplab/SN-Net, github.com/ziplab/SN-Netv2) name the tensors of anchor I
`anchors.I.…`, as the code that each network was forked from did, and those of stitching layers

- `stitch_layers.PAIR.N.transform.…` (DeiT), counted within each pair of anchors;
- `stitch_layers.STAGE.PAIR.N.transform.…` (Swin, ResNet, LeViT), also within each stitched stage;
- `stitch_layers.DIRECTION.N.transform.…` (SN-Netv2), with `lora_A` and `lora_B` next to the weight.

Our names number all layers in one row: `stitching_layers.N.weight`. Weights of 1x1 convolutions become matrices.
Other tensors are the same objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ..plan.stitch_plan import StitchPlan

_LAYER = re.compile(r"^stitch_layers\.(?:(\d+)\.)?(\d+)\.(\d+)\.transform\.(.+)$")
_GAMMA = re.compile(r"\.gamma_(\d)$")  # DeiT-III's layer scale
_LEVIT_BLOCK = re.compile(r"^blocks\.(\d+)\.(?:(m)\.)?(.+)$")


def is_authors(state_dict: Mapping[str, object]) -> bool:
    """Whether weights are in the authors' layout."""
    return any(_LAYER.match(key) for key in state_dict)


def rename(state_dict: Mapping[str, Tensor], plan: StitchPlan) -> dict[str, Tensor]:
    """Rename the authors' weights to our names, where timm's own filters for each family do not.

    Args:
        state_dict: the weights in the authors' layout.
        plan: the plan of their network.

    Returns:
        The tensors under our names; names that fit nothing in the plan stay, except those of the one layer
        that SN-Netv2 has and never uses.
    """
    by_stage = any(match[1] for match in map(_LAYER.match, state_dict) if match)
    numbers = _layer_numbers(plan, by_stage)
    renamed: dict[str, Tensor] = {}
    for number in range(len(plan.anchors)):
        prefix = f"anchors.{number}."
        own = {_GAMMA.sub(r".ls\1.gamma", k[len(prefix) :]): v for k, v in state_dict.items() if k.startswith(prefix)}
        own = _rename_levit(own) if "blocks.0.m.qkv.c.weight" in own else own
        renamed.update({prefix + k: v for k, v in own.items()})
    for key, value in state_dict.items():
        match = _LAYER.match(key)
        if match is None:
            if not key.startswith("anchors."):
                renamed[key] = value
            continue
        stage, pair, n = int(match[1] or 0), int(match[2]), int(match[3])
        group = numbers[stage][pair] if stage < len(numbers) and pair < len(numbers[stage]) else []
        if n < len(group):
            value = value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value
            renamed[f"stitching_layers.{group[n]}.{match[4]}"] = value
        elif not (n == len(group) > 0 and pair == 0 and plan.layers[group[-1]].rank):
            renamed[key] = value  # SN-Netv2 has an unused layer behind the front's last block
    return renamed


def _layer_numbers(plan: StitchPlan, by_stage: bool) -> list[list[list[int]]]:
    """The numbers of our stitching layers by stage, pair of anchors and count."""
    numbers: dict[int, dict[tuple[int, int], list[int]]] = {}
    for number, spec in enumerate(plan.layers):
        stop, _ = plan.pairs(number)[0]
        stages = plan.anchors[spec.front].stages if by_stage else ()
        stage = next((n for n, blocks in enumerate(stages) if stop - 1 in blocks), 0)
        numbers.setdefault(stage, {}).setdefault((spec.front, spec.back), []).append(number)
    return [list(numbers[stage].values()) for stage in sorted(numbers)]


def _rename_levit(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of LeViT's own code to timm's names.

    There one list holds attention and MLP of all blocks, each inside a residual `m`, with a bare
    subsampling attention between stages; timm has stages of blocks.
    """
    # 1. The place of each list item in timm's stages.
    places: dict[int, str] = {}
    stage, block, after_subsampling = 0, -1, False
    kinds = {int(m[1]): (m[2], m[3]) for m in map(_LEVIT_BLOCK.match, sorted(state_dict)) if m}
    for index in sorted(kinds):
        residual, leaf = kinds[index]
        if residual is None:
            stage, block, after_subsampling = stage + 1, -1, True
            places[index] = f"stages.{stage}.downsample.attn_downsample"
        elif leaf[0].isdigit():  # an MLP: its layers are numbered
            owner = "downsample" if after_subsampling else f"blocks.{block}"
            places[index] = f"stages.{stage}.{owner}.mlp"
            after_subsampling = False
        else:
            block += 1
            places[index] = f"stages.{stage}.blocks.{block}.attn"
    # 2. The names inside blocks, the stem and the heads.
    renamed = {}
    for key, value in state_dict.items():
        match = _LEVIT_BLOCK.match(key)
        if match:
            leaf = re.sub(r"^0\.", "ln1.", re.sub(r"^2\.", "ln2.", match[3]))
            leaf = re.sub(r"^(proj|q)\.1\.", r"\1.ln.", leaf)
            key = f"{places[int(match[1])]}.{leaf}"
        else:
            key = re.sub(r"^patch_embed\.(\d+)\.", lambda m: f"stem.conv{int(m[1]) // 2 + 1}.", key)
            key = re.sub(r"^(head|head_dist)\.l\.", r"\1.linear.", key)
        renamed[re.sub(r"\.c\.weight$", ".linear.weight", key)] = value
    return renamed
