"""A network by the name that people give it."""

import pytest
import timm
import torch
from tiny import deit_specs

import timm_stitch
from timm_stitch.hub.loading import load
from timm_stitch.network.weights import fingerprint


def test_a_folder_a_registered_name_and_several_anchors(tmp_path):
    model = timm.create_model("snnet", anchors=deit_specs(depth=2))
    timm_stitch.save_pretrained(model, tmp_path / "net")
    for name in (tmp_path / "net", str(tmp_path / "net"), [str(tmp_path / "net")]):
        assert fingerprint(load(name)) == fingerprint(model)
    registered = load("snnet_deit_tsb", pretrained=False, device="meta")
    assert registered.num_stitches == 71
    assert {p.device for p in registered.parameters()} == {torch.device("meta")}
    anchors = ["deit_tiny_patch16_224", "deit_small_patch16_224"]
    assert list(load(anchors, pretrained=False, device="meta").plan.anchor_names) == anchors
    assert load("snnet", pretrained=False, anchors=deit_specs(depth=2)).num_stitches == model.num_stitches


def test_anchors_of_ones_own_by_the_name_snnet(tmp_path):
    own = [timm.create_model("resnet10t", num_classes=3), timm.create_model("resnet14t", num_classes=3)]
    for model, name in zip(own, ("small", "large"), strict=True):
        timm.models.save_for_hf(model, tmp_path / name, safe_serialization=True)
    anchors = [f"local-dir:{tmp_path / 'small'}", str(tmp_path / "large")]
    network = load("snnet", anchors=anchors, kernel_size=1, rank=4, drop_path_rate=[0.0, 0.1])
    for mine, model in zip(network.anchors, own, strict=True):
        assert torch.equal(mine.conv1[0].weight, model.conv1[0].weight)
    assert list(network.plan.anchor_names) == ["resnet10t", "resnet14t"]
    assert {layer.rank for layer in network.plan.layers} == {4}
    with pytest.raises(ValueError, match="drop_path_rate has 1 values for 2 anchors"):
        load("snnet", anchors=anchors, drop_path_rate=[0.1])


def test_what_is_not_a_stitchable_network_is_refused():
    with pytest.raises(
        ValueError, match=r"no folder and no model 'snnet_x': expected a folder, hf-hub:USER/NAME or snn"
    ):
        load("snnet_x")
    with pytest.raises(ValueError, match="'resnet18' is one network, not a stitchable one: name several"):
        load("resnet18", pretrained=False)


def test_the_networks_own_arguments_reach_anchors_of_ones_own(tmp_path):
    for width in (32, 64):
        sizes = {"embed_dim": width, "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8, "num_classes": 5}
        model = timm.create_model("vit_tiny_patch16_224", **sizes)
        timm.models.save_for_hf(model, tmp_path / str(width), safe_serialization=True)
    anchors = [str(tmp_path / "32"), str(tmp_path / "64")]
    whole = load("snnet", anchors=anchors)
    plan = whole.plan.to_dict()
    plan["stitches"] = plan["stitches"][:3]
    part = load("snnet", anchors=anchors, plan=plan, touch_unused=True, stitch_id=1)
    assert (part.stitch_ids, part.stitch_id, part.touch_unused) == (whole.stitch_ids[:3], 1, True)
