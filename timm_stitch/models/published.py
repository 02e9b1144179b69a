"""The authors' published networks as data: their plans, their way of counting, and their results.

The weights depend on facts of the public code (github.com/ziplab/SN-Net, github.com/ziplab/SN-Netv2) that the papers
do not mention. Plans that we make ourselves (`enumeration`) share none of the oddities.

Sources: SN-Net (arXiv:2302.06586), SN-Netv2 (arXiv:2307.00154).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from ..hub.card_files import card_file
from ..plan.costs import PublishedCount
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
}


def is_registered(name: str) -> bool:
    """Whether timm's registry has a network of this name, apart from the generic `snnet`."""
    return ALIASES.get(name, name) in REGISTERED


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
