"""The `snnet_*` models of timm's registry, which lists them under this file's name: `module="snnet"`.

Importing this module registers the models. `timm_stitch.plugin` does so while timm is being imported, so what it
imports imports neither timm nor torch; `factory` waits until a model is made.

Weights of the authors: Apache-2.0, github.com/ziplab/SN-Net and github.com/ziplab/SN-Netv2. Papers: arXiv:2302.06586,
arXiv:2307.00154.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, generate_default_cfgs, register_model
from torch import nn

from ..choices import Direction
from ..families.timm_models.pretrained_cfg import AnchorSpec, stems_and_heads, timm_cfg
from ..plan.stitch_plan import StitchPlan
from .published import ALIASES, AUTHORS_TAG, EFFICIENTNET_LITE, NETWORKS, SEGMENTATION, refuse_plan_options


def _cfg(anchors: Sequence[str], **fields: object) -> dict[str, object]:
    """The configuration of a published network: its largest anchor's, and the given fields."""
    cfgs = [timm_cfg(anchor) for anchor in anchors]
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": cfgs[-1]["pool_size"],
        "crop_pct": cfgs[-1]["crop_pct"],
        "interpolation": "bicubic",
        "fixed_input_size": any(cfg["fixed_input_size"] for cfg in cfgs),
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        **stems_and_heads(cfgs),
        "paper_ids": "arXiv:2302.06586",
        "paper_name": "Stitchable Neural Networks",
        "origin_url": "https://github.com/ziplab/SN-Net",
        "license": "apache-2.0",
        **fields,
    }


def _v1(file: str, **fields: object) -> dict[str, object]:
    return {"url": f"https://github.com/ziplab/SN-Net/releases/download/{file}", **fields}


def _v2(letters: str) -> dict[str, object]:
    # The same files are in the release 1.0 of github.com/ziplab/SN-Netv2.
    name = f"snnetv2_deit3_{letters}"
    return {"hf_hub_id": f"ziplab/{name}_imagenet_1k", "hf_hub_filename": f"{name}.pth", **_V2_PAPER}


_V2_PAPER = {
    "crop_pct": 1.0,
    "paper_ids": "arXiv:2307.00154",
    "paper_name": "Stitched ViTs are Flexible Vision Backbones",
    "origin_url": "https://github.com/ziplab/SN-Netv2",
}

# The files of the authors' weights, and their settings of evaluation; for ResNet and LeViT these are timm's.
_WEIGHTS = {
    "snnet_deit_tsb": _v1("v1.0/snnet_deit.pth", crop_pct=0.875),
    "snnet_swin_tsb": _v1("v1.0/snnet_swin.pth", crop_pct=0.875),
    "snnet_resnet_18_50": _v1("v1.1/resnet_18_50.pth"),
    "snnet_resnet18_swin_t": _v1("v1.1/resnet18_swin_ti.pth"),
    "snnet_levit_192_256": _v1("v1.2/levit_192_256_release.pth"),
    "snnetv2_deit3_sb": _v2("s_b"),
    "snnetv2_deit3_sl": _v2("s_l"),
    "snnetv2_deit3_bl": _v2("b_l"),
}


def _published_cfgs() -> dict[str, dict[str, object]]:
    """Two tags for each name: the authors' weights, and the anchors' own."""
    cfgs = {}
    for name, weights in [*_WEIGHTS.items(), *((alias, _WEIGHTS[name]) for alias, name in ALIASES.items())]:
        anchors = NETWORKS[ALIASES.get(name, name)].anchors
        cfgs[f"{name}.{AUTHORS_TAG}"] = _cfg(anchors, **weights)
        own_anchors = {k: v for k, v in weights.items() if k.startswith(("paper", "origin"))}
        cfgs[f"{name}.anchors_in1k"] = _cfg(anchors, **own_anchors)
    return cfgs


def _segmentation_cfgs() -> dict[str, dict[str, object]]:
    """One tag for each data set, the default first."""
    stems = tuple(f"network.anchors.{n}.patch_embed.proj" for n in range(2))
    heads = ("decode", *(f"auxiliary_heads.{n}" for n in range(3)))
    cfg = {
        "url": "", "input_size": (3, 512, 512), "pool_size": None, "interpolation": "bilinear",
        "fixed_input_size": True, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": stems,
        "classifier": tuple(f"head.{head}.classifier" for head in heads), "license": "apache-2.0", **_V2_PAPER,
    }  # fmt: skip
    return {
        f"{name}.{tag}": {**cfg, "hf_hub_id": repo, "hf_hub_filename": file, "num_classes": classes}
        for name, network in SEGMENTATION.items()
        for tag, (repo, file, classes) in network.files.items()
    }


default_cfgs = generate_default_cfgs(
    {
        **_published_cfgs(),
        **_segmentation_cfgs(),
        # One input size for three anchors that were trained at 224, 240 and 260 pixels: the middle one.
        "snnet_efficientnet_lite_012.anchors_in1k": _cfg(
            EFFICIENTNET_LITE, input_size=(3, 240, 240), pool_size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3,
            paper_ids="arXiv:1905.11946", origin_url=None,
        ),
        "snnet.untagged": {
            **_cfg(("deit_tiny_patch16_224",), pool_size=None, crop_pct=0.875),
            "first_conv": None, "classifier": None, "fixed_input_size": False, "license": None,
        },
    }
)  # fmt: skip


def _register(name: str, description: str) -> Callable[..., nn.Module]:
    """Register one of the authors' networks, from its entry in `published.NETWORKS`."""
    network = NETWORKS[ALIASES.get(name, name)]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from .factory import create_snnet

        refuse_plan_options(name, kwargs)
        return create_snnet(name, pretrained, network.anchors, network.count, network.plan_args, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = description
    return register_model(create)


snnet_deit_tsb = _register("snnet_deit_tsb", "SN-Net of DeiT-Ti, -S and -B: 71 stitches.")
snnet_deit = _register("snnet_deit", "Another name of `snnet_deit_tsb`.")
snnet_swin_tsb = _register(
    "snnet_swin_tsb", "SN-Net of Swin-Ti, -S and -B (ImageNet-22k to 1k): 41 stitches in three stages."
)
snnet_swin = _register("snnet_swin", "Another name of `snnet_swin_tsb`.")
snnet_resnet_18_50 = _register("snnet_resnet_18_50", "SN-Net of ResNet-18 and -50: 10 stitches in two stages.")
snnet_resnet18_swin_t = _register(
    "snnet_resnet18_swin_t", "SN-Net of ResNet-18 in front and Swin-Ti behind: 8 stitches in two stages."
)
snnet_levit_192_256 = _register("snnet_levit_192_256", "SN-Net of LeViT-192 and -256: 8 stitches in two stages.")
snnetv2_deit3_sb = _register(
    "snnetv2_deit3_sb", "SN-Netv2 of DeiT-III-S and -B (ImageNet-21k to 1k): 134 stitches, two-way."
)
snnetv2_deit3_sl = _register(
    "snnetv2_deit3_sl", "SN-Netv2 of DeiT-III-S and -L (ImageNet-21k to 1k): 134 stitches, two-way."
)
snnetv2_deit3_bl = _register(
    "snnetv2_deit3_bl", "SN-Netv2 of DeiT-III-B and -L (ImageNet-21k to 1k): 134 stitches, two-way."
)


def _register_segmentation(name: str, description: str) -> Callable[..., nn.Module]:
    """Register one of the authors' segmentation networks, from its entry in `published.SEGMENTATION`."""

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        from .segmentation import create_segmentation

        return create_segmentation(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = description
    return register_model(create)


snnetv2_setr_deit3_sl = _register_segmentation(
    "snnetv2_setr_deit3_sl", "Segmentation by SN-Netv2 of DeiT-III-S and -L under SETR's head: 134 stitches, two-way."
)
snnetv2_setr_deit3_bl = _register_segmentation(
    "snnetv2_setr_deit3_bl", "Segmentation by SN-Netv2 of DeiT-III-B and -L under SETR's head: 134 stitches, two-way."
)


@register_model
def snnet_efficientnet_lite_012(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SN-Net of EfficientNet-Lite0, 1 and 2: 65 stitches. No trained release: `pretrained=True` loads the anchors'."""
    from .factory import create_snnet

    refuse_plan_options("snnet_efficientnet_lite_012", kwargs)
    return create_snnet("snnet_efficientnet_lite_012", pretrained, EFFICIENTNET_LITE, None, None, **kwargs)


@register_model
def snnet(
    pretrained: bool = False,
    anchors: Sequence[AnchorSpec] = (),
    direction: Direction = "fast_to_slow",
    nearest: bool = True,
    kernel_size: int = 2,
    stride: int = 1,
    rank: int = 0,
    plan: Mapping[str, object] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """An SN-Net of any anchors that timm has; `pretrained=True` loads each anchor's own weights.

    Args:
        pretrained: whether to load the weights of each anchor.
        anchors: timm names, or dicts of `"architecture"` and arguments, fastest first.
        direction, nearest, kernel_size, stride, rank: the arguments of `stitch`.
        plan: a custom plan (`StitchPlan.to_dict()`) instead of these five.
        **kwargs: further arguments of `timm.create_model`.

    Examples:
        >>> import timm, timm_stitch
        >>> model = timm.create_model("snnet", anchors=["resnet18", "resnet34"], device="meta")
        >>> model.num_stitches
        14
    """
    from .factory import create_snnet

    if isinstance(anchors, str) or len(anchors) < 2:
        raise ValueError(
            f"anchors must be two or more timm names, fastest first, got {anchors!r}: e.g. "
            "create_model('snnet', anchors=['deit_tiny_patch16_224', 'deit_small_patch16_224'], pretrained=True)."
        )
    if not isinstance(kwargs.get("pretrained_cfg"), (dict, PretrainedCfg)):
        kwargs["pretrained_cfg_overlay"] = {**_cfg_of(anchors), **(kwargs.get("pretrained_cfg_overlay") or {})}
    plan_args: dict[str, object] = {
        "direction": direction, "nearest": nearest, "kernel_size": kernel_size, "stride": stride, "rank": rank,
    }  # fmt: skip
    if plan is not None:
        plan_args["plan"] = StitchPlan.from_dict(plan)
    return create_snnet("snnet", pretrained, anchors, plan_args=plan_args, **kwargs)


def _cfg_of(anchors: Sequence[AnchorSpec]) -> dict[str, object]:
    """The image settings of the largest anchor's own configuration, with its arguments applied."""
    spec = anchors[-1]
    own: dict[str, Any] = {"architecture": spec} if isinstance(spec, str) else dict(spec)
    cfg = {**timm_cfg(spec), **(own.get("pretrained_cfg_overlay") or {})}
    fields = ("input_size", "crop_pct", "interpolation", "mean", "std", "num_classes", "fixed_input_size", "pool_size")
    image = {field: cfg[field] for field in fields if cfg.get(field) is not None}
    channels, *size = image.get("input_size", (3, 224, 224))
    img_size = own.get("img_size", size)
    img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    image["input_size"] = (own.get("in_chans", channels), *img_size)
    image["num_classes"] = own.get("num_classes", image.get("num_classes", 1000))
    return image | stems_and_heads([timm_cfg(anchor) for anchor in anchors])
