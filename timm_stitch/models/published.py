"""The authors' published networks as data: their plans, their way of counting, and their results.

The weights depend on facts of the public code (github.com/ziplab/SN-Net, github.com/ziplab/SN-Netv2) that the papers
do not mention. Plans that we make ourselves (`enumeration`) share none of the oddities.

Sources: SN-Net (arXiv:2302.06586), SN-Netv2 (arXiv:2307.00154).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from ..hub.card_files import card_file
from ..plan.costs import PublishedCount
from ..plan.enumeration import enumerate_stitches
from ..plan.stitch_plan import Anchor, LayerSpec, Segment, Stitch, StitchPlan


@dataclass(frozen=True)
class Published:
    """One published network.

    Args:
        anchors: the timm tags of the weights that the authors began with, fastest first.
        count: the authors' way of counting.
        stages: the numbers of the stitched stages; empty where blocks are not in stages.
        two_way, rank: the direction and the rank of SN-Netv2.
        stitches: the number of stitches.
    """

    anchors: tuple[str, ...]
    count: PublishedCount
    stages: tuple[int, ...] = ()
    two_way: bool = False
    rank: int = 0
    stitches: int = 0

    @property
    def plan_args(self) -> dict[str, object]:
        """The arguments of `stitch` for the published plan."""
        if self.two_way:
            return {"direction": "two_way", "rank": self.rank}
        return {"plan": partial(plan_by_stages, stages=self.stages)} if self.stages else {}


AUTHORS_TAG = "snnet_in1k"  # the tag of the authors' weights in timm's registry
ALIASES = {"snnet_deit": "snnet_deit_tsb", "snnet_swin": "snnet_swin_tsb"}

_DEIT3 = "deit3_{}_patch16_224.fb_in22k_ft_in1k"
_SWIN = "swin_{}_patch4_window7_224.ms_in22k_ft_in1k"

NETWORKS = {
    "snnet_deit_tsb": Published(
        tuple(f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")),
        PublishedCount(stitched_norm=False, params=True),
        stitches=71,
    ),
    "snnet_swin_tsb": Published(
        tuple(_SWIN.format(size) for size in ("tiny", "small", "base")),
        PublishedCount(params=True),
        stages=(0, 1, 2),
        stitches=41,
    ),
    "snnet_resnet_18_50": Published(
        ("resnet18.tv_in1k", "resnet50.a1_in1k"), PublishedCount(), stages=(1, 2), stitches=10
    ),
    "snnet_resnet18_swin_t": Published(
        ("resnet18.tv_in1k", "swin_tiny_patch4_window7_224.ms_in1k"), PublishedCount(), stages=(1, 2), stitches=8
    ),
    "snnet_levit_192_256": Published(
        ("levit_192.fb_dist_in1k", "levit_256.fb_dist_in1k"), PublishedCount(), stages=(0, 1), stitches=8
    ),
    **{
        f"snnetv2_deit3_{letters}": Published(
            tuple(_DEIT3.format(size) for size in sizes), PublishedCount(), two_way=True, rank=64, stitches=134
        )
        for letters, sizes in {"sb": ("small", "base"), "sl": ("small", "large"), "bl": ("base", "large")}.items()
    },
}


_BEIT = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, depth, heads


@dataclass(frozen=True)
class PublishedSegmentation:
    """One published segmentation network: anchors of BEiT's blocks with DeiT-III's weights, under one head.

    Args:
        sizes: the sizes of its two anchors.
        rank: the rank of the stitching layers.
        files: the repository on the Hub, the file in it and the number of classes, by tag.
        levels: the blocks of the largest anchor whose outputs are the levels.
        stitches: the number of stitches.
    """

    sizes: tuple[str, str]
    rank: int
    files: dict[str, tuple[str, str, int]]
    levels: tuple[int, ...] = (9, 14, 19, 23)
    stitches: int = 134

    @property
    def started_from(self) -> tuple[str, ...]:
        """The timm tags of the weights that the authors began with, fastest first."""
        return tuple(_DEIT3.format(size) for size in self.sizes)

    @property
    def anchors(self) -> list[dict[str, object]]:
        """The anchors by the arguments of `timm.create_model`: position embedding, and bias by relative position."""
        shapes = [_BEIT[size] for size in self.sizes]
        return [
            {"architecture": "beit_base_patch16_224", "embed_dim": width, "depth": depth, "num_heads": heads,
             "use_abs_pos_emb": True, "use_rel_pos_bias": True, "init_values": 1.0}
            for width, depth, heads in shapes
        ]  # fmt: skip

    @property
    def plan(self) -> StitchPlan:
        """The stitches, between anchors that are named by the weights that they began with."""
        shapes = [_BEIT[size] for size in self.sizes]
        anchors = [
            Anchor(name.partition(".")[0], (width,) * (depth + 1), (16,) * (depth + 1))
            for name, (width, depth, _) in zip(self.started_from, shapes, strict=True)
        ]
        return enumerate_stitches(anchors, direction="two_way", rank=self.rank)


_SETR = "setr_naive_512x512"

SEGMENTATION = {
    "snnetv2_setr_deit3_sl": PublishedSegmentation(
        ("small", "large"),
        rank=16,
        files={
            "ade20k": (
                "ziplab/snnetv2_deit3_s_l_224_ade20k_setr_naive",
                f"{_SETR}_160k_b16_ade20k_snnetv2_deit3_s_l_lora_16_iter_160000.pth", 150,
            ),
            "coco_stuff10k": (
                "ziplab/snnetv2_deit3_s_l_224_coco_stuff_10k_setr_naive",
                f"{_SETR}_80k_b16_coco_stuff10k_deit_3_s_l_224_snnetv2_lora_r_16_iter_80000.pth", 171,
            ),
        },
    ),
    "snnetv2_setr_deit3_bl": PublishedSegmentation(
        ("base", "large"),
        rank=4,
        files={
            "ade20k": (
                "ziplab/snnetv2_deit3_b_l_224_ade20k_setr_naive",
                f"{_SETR}_160k_b16_ade20k_snnetv2_deit3_b_l_lora_4_iter_160000.pth", 150,
            ),
            "coco_stuff10k": (
                "ziplab/snnetv2_deit3_b_l_224_coco_stuff_10k_setr_naive",
                f"{_SETR}_80k_b16_coco_stuff10k_deit_3_b_l_224_snnetv2_lora_r_4_iter_80000.pth", 171,
            ),
        },
    ),
}  # fmt: skip

EFFICIENTNET_LITE = ("tf_efficientnet_lite0.in1k", "tf_efficientnet_lite1.in1k", "tf_efficientnet_lite2.in1k")


@dataclass(frozen=True)
class Registered:
    """What `timm-stitch list` shows of a network of timm's registry, without building it; a test builds them all.

    Args:
        anchors: the timm tags of its anchors, fastest first.
        stitches: the number of stitches.
        tags: the tags of weights for all of it; the tag `anchors_in1k`, which each has, is of the anchors' own.
    """

    anchors: tuple[str, ...]
    stitches: int
    tags: tuple[str, ...]

    @property
    def anchor_names(self) -> str:
        """The names of the anchors, without their tags."""
        return " + ".join(anchor.partition(".")[0] for anchor in self.anchors)


REGISTERED = {
    **{name: Registered(network.anchors, network.stitches, (AUTHORS_TAG,)) for name, network in NETWORKS.items()},
    "snnet_efficientnet_lite_012": Registered(EFFICIENTNET_LITE, 65, ()),
    **{
        name: Registered(network.started_from, network.stitches, tuple(network.files))
        for name, network in SEGMENTATION.items()
    },
}


_PLAN_OPTIONS = ("anchors", "direction", "nearest", "kernel_size", "stride", "plan")


def is_registered(name: str) -> bool:
    """Whether timm's registry has a network of this name, apart from the generic `snnet`."""
    return ALIASES.get(name, name) in REGISTERED


def refuse_plan_options(name: str, arguments: Mapping[str, object]) -> None:
    """Refuse plan options for a registered network, whose plan is fixed.

    Raises:
        ValueError: naming the options, and the call that makes another plan.
    """
    options = [option for option in _PLAN_OPTIONS if arguments.get(option) is not None]
    if not options:
        return
    if name == "snnet":
        raise ValueError(f"create_snnet takes {', '.join(options)} in plan_args, a dict: plan_args={{...}}.")
    anchors = arguments.get("anchors") or [a.split(".")[0] for a in REGISTERED[ALIASES.get(name, name)].anchors]
    values = ", ".join(f"{option}={arguments[option]!r:.60}" for option in options if option != "anchors")
    raise ValueError(
        f"{name!r} has fixed anchors and a fixed plan, and takes no {' or '.join(options)}. Make another network: "
        f"timm.create_model('snnet', anchors={anchors!r:.300}{values and ', '}{values})."
    )


def plan_by_stages(anchors: Sequence[Anchor], stages: Sequence[int]) -> StitchPlan:
    """Make the plan of the authors' networks of several stages: Swin, ResNet, LeViT.

    Stages of equal depth: block j of the front goes to block j + 1 of the back, each through a layer of its own.
    Stages of unequal depth: each block of the back but the first meets its nearest block in the front. Joints with
    one front block should share a layer. But the authors' list of layers is one entry ahead of their list of joints,
    so that the first joint with each further front block uses the layer of the block before.

    Args:
        anchors: the anchors from the fastest to the slowest.
        stages: the numbers of the stitched stages, counted from 0.

    Returns:
        The anchors alone, then stage by stage and pair by pair, in the order of the authors' tables.
    """
    anchors = tuple(anchors)
    layers: list[LayerSpec] = []
    stitches = [Stitch(i, (Segment(i, 0, a.depth),)) for i, a in enumerate(anchors)]
    for stage in stages:
        for front, back in pairwise(range(len(anchors))):
            a, b = anchors[front].stages[stage], anchors[back].stages[stage]
            if len(a) == len(b):
                joints = [(n, n + 1, n) for n in range(len(a) - 1)]
            else:
                nearest = [n * len(a) // len(b) for n in range(len(b))]
                joints = [(nearest[n], n, nearest[n - 1]) for n in range(1, len(b))]
            first = len(layers)
            width = anchors[front].widths[a.stop], anchors[back].widths[b.stop]
            layers.extend(LayerSpec(front, back, *width) for _ in range(max(layer for *_, layer in joints) + 1))
            for j, k, layer in joints:
                segments = Segment(front, 0, a[j] + 1), Segment(back, b[k], anchors[back].depth)
                stitches.append(Stitch(len(stitches), segments, (first + layer,)))
    return StitchPlan(anchors, tuple(layers), tuple(stitches))


def published_table(name: str) -> dict[str, Any]:
    """Read the authors' results for a network from `hub_cards/NAME/stitches.json`.

    Returns:
        A dict with `stitches`, rows of `stitch_id` and of `top1` where it is known, and with `source`, `dataset`
        and remarks; an empty one if there is no such file.
    """
    try:
        return dict(json.loads(card_file(f"{name}/stitches.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
