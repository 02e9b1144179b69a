"""Dilated anchors (timm's `output_stride`): stages are stages where their resolutions are equal."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from tiny import images

import timm_stitch
from timm_stitch.families.timm_models.views import view_of
from timm_stitch.models.authors_layout import rename

ANCHORS: dict[str, list[dict[str, Any]]] = {
    "resnet": [{"architecture": "resnet18", "channels": c} for c in ((8, 16, 24, 32), (16, 24, 32, 48))],
    "efficientnet": [{"architecture": f"mobilenetv2_{width}"} for width in ("035", "050")],
    "convnext": [
        {"architecture": "convnext_atto", "depths": (2, 2, 2, 2), "dims": dims}
        for dims in ((8, 16, 24, 32), (16, 24, 32, 48))
    ],
}


def made(kind: str, **options: Any) -> list[Any]:
    specs = (dict(spec) for spec in ANCHORS[kind])
    return [timm.create_model(spec.pop("architecture"), **spec, num_classes=5, **options).eval() for spec in specs]


@pytest.mark.parametrize("kind", ANCHORS)
@pytest.mark.parametrize("output_stride", [16, 8])
@torch.no_grad()
def test_dilated_networks_have_timms_levels(kind: str, output_stride: int) -> None:
    models, x = made(kind, output_stride=output_stride), images(1, 64)
    net = timm_stitch.stitch(models).eval()
    for k in net.stitch_ids:
        backbone, stitch = net.backbone(k), net.plan[k]
        maps, info = backbone(x), backbone.feature_info
        assert info.reduction() == [level["reduction"] for level in models[stitch.back].feature_info]
        assert info.channels() == [h.shape[1] for h in maps]
        assert info.reduction() == [64 // h.shape[-1] for h in maps]
        if stitch.is_anchor:
            plain = models[stitch.front].forward_intermediates(x, intermediates_only=True)
            assert all(torch.equal(a, b) for a, b in zip(maps, plain, strict=True))
            assert torch.equal(net(x, stitch_id=k), models[stitch.front](x))
    named = timm.create_model("snnet", anchors=ANCHORS[kind], features_only=True, output_stride=output_stride)
    assert named.feature_info.reduction() == [level["reduction"] for level in models[0].feature_info]


@pytest.mark.parametrize("kind", ANCHORS)
def test_dilation_changes_no_stitch(kind: str) -> None:
    with torch.device("meta"):
        plain = timm_stitch.stitch(made(kind)).plan
        for output_stride in (16, 8):
            plan = timm_stitch.stitch(made(kind, output_stride=output_stride)).plan
            assert (plan.layers, plan.stitches) == (plain.layers, plain.stitches)
            assert [anchor.stages for anchor in plan.anchors] == [anchor.stages for anchor in plain.anchors]
            assert [len(anchor.stage_starts) for anchor in plan.anchors] == [{16: 1, 8: 2}[output_stride]] * 2


@pytest.mark.parametrize("name", ["mobileone_s0", "xception41"])  # a stage of one block; stages that end inside blocks
def test_dilation_changes_no_stage(name: str) -> None:
    with torch.device("meta"):
        plain = view_of(timm.create_model(name)).describe()
        dilated = view_of(timm.create_model(name, output_stride=8)).describe()
    assert dilated.stages == plain.stages
    assert dilated.reductions[-1] == 8


@pytest.mark.parametrize("output_stride", [16, 8])
def test_published_networks_can_be_dilated(output_stride: int) -> None:
    plain = timm.create_model("snnet_resnet_18_50", device="meta").plan
    net = timm.create_model("snnet_resnet_18_50", output_stride=output_stride, device="meta")
    assert (net.plan.layers, net.plan.stitches) == (plain.layers, plain.stitches)
    released = {f"stitch_layers.{stage}.0.{n}.transform.bias": torch.zeros(()) for stage in (0, 1) for n in (0, 1, 2)}
    assert rename(released, net.plan) == rename(released, plain)
    theirs = timm.create_model("resnet50", features_only=True, output_stride=output_stride, device="meta")
    ours = timm.create_model("snnet_resnet_18_50", features_only=True, output_stride=output_stride, device="meta")
    assert ours.feature_info.reduction() == theirs.feature_info.reduction()
    assert ours.feature_info.channels() == theirs.feature_info.channels()


@torch.no_grad()
def test_dilated_networks_take_weights_of_plain_ones_and_are_saved(tmp_path: Any) -> None:
    net, x = timm.create_model("snnet", anchors=ANCHORS["resnet"], num_classes=5, output_stride=8).eval(), images(1, 64)
    plain = timm.create_model("snnet", anchors=ANCHORS["resnet"], num_classes=5)
    net.load_state_dict(plain.state_dict())
    by_name = timm_stitch.from_hub(timm_stitch.save_pretrained(net, tmp_path / "by name"))
    stitched = timm_stitch.stitch(list(net.anchors)).eval()
    by_plan = timm_stitch.from_hub(timm_stitch.save_pretrained(stitched, tmp_path / "by plan"))
    assert by_name.plan == by_plan.plan == net.plan
    for k in net.stitch_ids:
        torch.testing.assert_close(by_name(x, stitch_id=k), net(x, stitch_id=k))
        torch.testing.assert_close(by_plan(x, stitch_id=k), stitched(x, stitch_id=k))


@pytest.mark.parametrize("output_stride", [16, 8])
def test_deeplab_takes_stitched_networks(output_stride: int) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    options = {"encoder_weights": None, "encoder_output_stride": output_stride, "classes": 3}
    ours = smp.DeepLabV3Plus("tu-snnet_resnet_18_50", **options).eval()
    theirs = smp.DeepLabV3Plus("tu-resnet50", **options).eval()
    x = images(1, 64)
    assert ours(x).shape == (1, 3, 64, 64)
    assert [h.shape for h in ours.encoder(x)] == [h.shape for h in theirs.encoder(x)]
