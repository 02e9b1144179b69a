"""Pyramids as backbones inside models of other libraries: every stitch by `set_stitch`, all saved with the host."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from tiny import images, vits_of_depths
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

import timm_stitch
from timm_stitch.families.timm_models.pyramid import Pyramid

CHANNELS = ((8, 16, 24, 32), (16, 24, 32, 48))


@timm.models.register_model
def tiny_stitched(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    anchors = [{"architecture": "resnet18", "channels": channels} for channels in CHANNELS]
    return timm.create_model("snnet", pretrained=pretrained, anchors=anchors, **kwargs)


@timm.models.register_model
def tiny_plain(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return timm.create_model("resnet18", pretrained=pretrained, channels=CHANNELS[-1], **kwargs)


# ── hosts: how each is made with a backbone by name, and the tensors of a call ────────────────────────


def unet(name: str, **backbone: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    widths = {"decoder_channels": (16, 16, 8, 8, 8), "classes": 3}
    return smp.Unet(f"tu-{name}", encoder_weights=None, **widths, **backbone)


def deeplab(name: str, **backbone: Any) -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    widths = {"decoder_channels": 8, "encoder_output_stride": 16, "classes": 3}
    return smp.DeepLabV3Plus(f"tu-{name}", encoder_weights=None, **widths, **backbone)


class WithFpn(nn.Module):
    """A backbone of torchvision's detectors, as its documentation makes them of other backbones."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body, self.out_channels = body, 8
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), 8)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(n), h) for n, h in enumerate(self.body(x))))
        return maps


def faster_rcnn(name: str, **backbone: Any) -> nn.Module:
    body = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4), **backbone)
    sizes = torchvision.models.detection.rpn.AnchorGenerator(((8,), (16,), (32,), (64,)), ((1.0,),) * 4)
    model: nn.Module = torchvision.models.detection.FasterRCNN(
        WithFpn(body), rpn_anchor_generator=sizes, min_size=64, max_size=64, rpn_pre_nms_top_n_test=16,
        rpn_post_nms_top_n_test=4, box_score_thresh=0.0, box_head=nn.Sequential(nn.Flatten(), nn.Linear(8 * 49, 16)),
        box_predictor=torchvision.models.detection.faster_rcnn.FastRCNNPredictor(16, 3),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
    )  # fmt: skip
    return model


def _transformers() -> Any:
    pytest.importorskip("transformers", minversion="5.20")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers
    return transformers


def timm_backbone(name: str) -> Any:
    return _transformers().TimmBackboneConfig(backbone=name, out_indices=[1, 2, 3, 4])


def upernet(name: str, **backbone: Any) -> nn.Module:
    hf = _transformers()
    widths = {"hidden_size": 8, "num_labels": 3, "use_auxiliary_head": False}
    host: nn.Module = hf.UperNetForSemanticSegmentation(hf.UperNetConfig(backbone_config=timm_backbone(name), **widths))
    host.backbone = hf.TimmBackbone(timm_backbone(name), **backbone)
    return host


def mask2former(name: str, **backbone: Any) -> nn.Module:
    hf = _transformers()
    widths = {
        "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 2,
        "encoder_feedforward_dim": 16, "dim_feedforward": 16, "num_attention_heads": 2, "num_queries": 4,
    }  # fmt: skip
    host: nn.Module = hf.Mask2FormerModel(hf.Mask2FormerConfig(backbone_config=timm_backbone(name), **widths))
    host.get_submodule("pixel_level_module").encoder = hf.TimmBackbone(timm_backbone(name), **backbone)
    return host


def run(host: nn.Module, x: Tensor) -> list[Tensor]:
    """The tensors of a call; of the detector the maps, whose shapes do not depend on what it detects."""
    body = host.backbone if isinstance(host, torchvision.models.detection.FasterRCNN) else host
    out = body(x)
    if isinstance(out, Tensor):
        return [out]
    return [h for h in (out.values() if isinstance(out, dict) else out) if isinstance(h, Tensor)]


HOSTS = [unet, deeplab, faster_rcnn, upernet, mask2former]


@pytest.fixture(params=HOSTS, ids=lambda make: make.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    def seeded(name: str, seed: int = 0, **backbone: Any) -> nn.Module:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            host: nn.Module = request.param(name, **backbone).eval()
        for module in host.modules():  # else a batch norm is the identity, and the last of a block zero
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.weight, 0.5, 1.0)
        return host

    return seeded


def pyramid_in(host: nn.Module) -> Pyramid:
    (pyramid,) = (module for module in host.modules() if isinstance(module, Pyramid))
    return pyramid


# ── what holds in each ────────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_switching_stitches_in_a_host_changes_no_shape(make: Callable[..., nn.Module]) -> None:
    host, x = make("tiny_stitched", stitches="all"), images(1, 64)
    ids = pyramid_in(host).stitch_ids
    first, maps = {}, {}
    for n in range(200):
        k = ids[n % len(ids)]
        assert timm_stitch.set_stitch(host, k) is host
        out = run(host, x)
        assert [h.shape for h in out] == [h.shape for h in first.setdefault(k, out)]
        assert all(map(torch.equal, out, first[k]))
        maps.setdefault(k, pyramid_in(host)(x)[-1])
    assert len({tuple(h.shape for h in out) for out in first.values()}) == 1
    assert len({float(last.sum()) for last in maps.values()}) == len(ids) > 10  # and each is another


@torch.no_grad()
def test_the_widest_anchor_in_a_host_is_the_plain_model_in_it(make: Callable[..., nn.Module]) -> None:
    host, plain = make("tiny_stitched", stitches="all"), make("tiny_plain", seed=1)
    inside = ".network.anchors.1."
    weights = {key.replace(inside, "."): value for key, value in host.state_dict().items()
               if inside in key or not (".network." in key or ".projections." in key)}  # fmt: skip
    plain.load_state_dict(weights)
    x, pyramid = images(1, 64), pyramid_in(host)
    timm_stitch.set_stitch(host, pyramid.plan.anchor_id(1))
    assert all(map(torch.equal, run(host, x), run(plain, x)))
    if isinstance(host, torchvision.models.detection.FasterRCNN):
        ours, theirs = host([x[0]])[0], plain([x[0]])[0]
        assert len(ours["boxes"]) > 0
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    timm_stitch.set_stitch(host, 0)
    assert not all(map(torch.equal, run(host, x), run(plain, x)))


def test_gradients_in_a_host_reach_what_the_stitch_uses(make: Callable[..., nn.Module]) -> None:
    host = make("tiny_stitched", stitches="all")
    pyramid = pyramid_in(host)
    for k in pyramid.stitch_ids[::3]:
        host.zero_grad(set_to_none=True)
        sum(h.square().mean() for h in run(timm_stitch.set_stitch(host, k), images(1, 64))).backward()
        reached = {name for name, p in pyramid.named_parameters() if p.grad is not None}
        used = {name for name, _ in pyramid.extract(k).named_parameters()}
        assert reached <= used
        assert {name for name in used if not name.startswith("projections.")} <= reached
        assert all(torch.isfinite(p.grad).all() for p in host.parameters() if p.grad is not None)


@torch.no_grad()
def test_a_host_is_saved_with_all_stitches(make: Callable[..., nn.Module], tmp_path: Any) -> None:
    host, other, x = make("tiny_stitched", stitches="all"), make("tiny_stitched", seed=1, stitches="all"), images(1, 64)
    torch.save(host.state_dict(), tmp_path / "host.pt")
    assert not all(map(torch.equal, run(host, x), run(other, x)))
    other.load_state_dict(torch.load(tmp_path / "host.pt", weights_only=True))
    for k in pyramid_in(host).stitch_ids:
        both = run(timm_stitch.set_stitch(host, k), x), run(timm_stitch.set_stitch(other, k), x)
        assert all(map(torch.equal, *both))


# ── the backbone itself ───────────────────────────────────────────────────────────────────────────────


@torch.no_grad()
def test_levels_are_those_of_timm_and_indices_choose_among_them() -> None:
    every = timm.create_model("tiny_stitched", features_only=True, stitches="all").eval()
    plain = timm.create_model("tiny_plain", features_only=True)
    assert every.feature_info.reduction() == plain.feature_info.reduction() == [2, 4, 8, 16, 32]
    assert every.feature_info.channels() == plain.feature_info.channels()
    for indices in ((1, 3), [-1, 1], 2, (4,)):
        some = timm.create_model("tiny_stitched", features_only=True, stitches="all", out_indices=indices).eval()
        taken = [n % 5 for n in (range(3, 5) if indices == 2 else sorted(n % 5 for n in indices))]
        info = some.feature_info
        assert list(info.out_indices) == taken
        assert len(info.info) == 5
        for get in ("channels", "reduction", "module_name", "get_dicts"):
            assert getattr(info, get)() == [getattr(every.feature_info, get)()[n] for n in taken]
        some.network.load_state_dict(every.network.state_dict())
        for level, n in enumerate(taken):
            some.projections[0][level] = every.projections[0][n]
        for k in some.stitch_ids:
            maps = every(images(1, 64), stitch_id=k)
            assert all(map(torch.equal, some(images(1, 64), stitch_id=k), [maps[n] for n in taken]))
    dilated = timm.create_model("tiny_stitched", features_only=True, stitches="all", output_stride=16)
    assert dilated.feature_info.reduction() == [2, 4, 8, 16, 16]
    assert [64 // h.shape[-1] for h in dilated(images(1, 64), stitch_id=3)] == [2, 4, 8, 16, 16]
    ids = [0, 4, 1]
    rows = every(images(3, 64), stitch_id=ids)  # one id an image
    for n, k in enumerate(ids):
        alone = every(images(3, 64)[n : n + 1], stitch_id=k)
        assert all(torch.allclose(a[n], b[0], atol=1e-5) for a, b in zip(rows, alone, strict=True))


@torch.no_grad()
def test_indices_of_networks_without_stages_are_blocks_of_the_largest_anchor() -> None:
    net, x = timm_stitch.stitch(vits_of_depths(4, 8)).eval(), images(1, 32)
    specs = [dict(anchor._model_args, architecture="vit_tiny_patch16_224") for anchor in net.anchors]
    large = net.plan.anchor_id(1)
    for indices in ((2, 5, 7), 3, None):
        pyramid = timm.create_model("snnet", anchors=specs, features_only=True, stitches="all", out_indices=indices)
        pyramid.eval().network.load_state_dict(net.state_dict(), strict=False)
        taken = {3: (5, 6, 7), None: (1, 3, 5, 7)}.get(indices, indices)
        assert pyramid.out_indices == pyramid.feature_info.out_indices == taken
        assert pyramid.feature_info.module_name() == [f"network.anchors.1.blocks.{n}" for n in taken]
        expected = net.backbone(large, taken)(x)
        assert all(map(torch.equal, pyramid(x, stitch_id=large), expected))
        small = net.backbone(0, [n // 2 for n in taken])(x)  # blocks at the same part of the depth
        assert all(map(torch.equal, pyramid(x, stitch_id=0), small))
    with pytest.raises(ValueError, match=r"got \(8,\): this network has 8 blocks in the largest anchor"):
        timm.create_model("snnet", anchors=specs, features_only=True, stitches="all", out_indices=(8,))


@pytest.mark.parametrize(
    ("name", "reductions"),
    [
        ("snnet_swin_tsb", [4, 8, 16, 32]),
        ("snnet_resnet_18_50", [2, 4, 8, 16, 32]),
        ("snnet_resnet18_swin_t", [4, 8, 16, 32]),
        ("snnet_efficientnet_lite_012", [2, 4, 8, 16, 32]),
        ("snnet_deit_tsb", [16, 16, 16, 16]),
    ],
)
def test_registered_networks_have_pyramids(name: str, reductions: list[int]) -> None:
    pyramid = timm.create_model(name, features_only=True, stitches="all", device="meta", stitch_id=4)
    assert isinstance(pyramid, Pyramid)
    assert pyramid.feature_info.reduction() == reductions
    assert pyramid.stitch_id == 4
    assert pyramid.default_cfg["architecture"] == name
    assert not any("head" in key for key in pyramid.state_dict())


def test_arguments_that_make_no_pyramid_are_refused() -> None:
    for options in ({"stitches": "all"}, {"stitches": 3, "features_only": True}, {"stitches": "some"}):
        with pytest.raises(ValueError, match="stitches must be 'all', and features_only True, got stitches="):
            timm.create_model("tiny_stitched", **options)
    with pytest.raises(ValueError, match=r"got \(5,\): this network has 5 levels"):
        timm.create_model("tiny_stitched", features_only=True, stitches="all", out_indices=(5,))
    with pytest.raises(ValueError, match="takes no feature_cls"):
        timm.create_model("tiny_stitched", features_only=True, stitches="all", feature_cls="fx")
    with pytest.raises(ValueError, match="takes no features_only, stitches"):
        timm.create_model("snnetv2_setr_deit3_sl", features_only=True, stitches="all", device="meta")


def test_set_stitch_reaches_every_network_in_a_host_or_says_why_not() -> None:
    first, second = (timm.create_model("tiny_stitched", features_only=True, stitches="all") for _ in range(2))
    host = nn.ModuleDict({"a": nn.Sequential(first), "b": second})
    timm_stitch.set_stitch(host, 3)
    assert first.stitch_id == second.stitch_id == 3
    assert timm_stitch.set_stitch(first, 2) is first
    assert first.stitch_id == 2
    host["c"] = timm.create_model("tiny_stitched", features_only=True, stitch_id=1)
    with pytest.raises(ValueError, match="holds stitch 1 alone, got stitch_id=4: make it with stitches='all'"):
        timm_stitch.set_stitch(host, 4)
    assert (first.stitch_id, second.stitch_id) == (2, 3)  # none was set
    with pytest.raises(ValueError, match=r"stitch_id=99 is not in this plan: expected an int from 0 to \d+"):
        timm_stitch.set_stitch(second, 99)
    with pytest.raises(ValueError, match=r"Linear has no stitchable network inside: make its backbone by"):
        timm_stitch.set_stitch(nn.Linear(1, 1), 0)
    with pytest.raises(TypeError, match="set_stitch needs a model, got str"):
        timm_stitch.set_stitch("net", 0)  # type: ignore[type-var]
