"""Stitched networks by name as backbones of transformers' models, beside timm's own models."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import timm
import torch
from tiny import images, models

import timm_stitch

pytest.importorskip("transformers", minversion="5.20")
with warnings.catch_warnings():  # of what transformers imports
    warnings.simplefilter("ignore")
    import transformers

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 4, "num_labels": 3,
}  # fmt: skip


def backbone(name: str, indices: tuple[int, ...] = (1, 2, 3, 4)) -> Any:
    return transformers.TimmBackboneConfig(backbone=name, use_pretrained_backbone=False, out_indices=list(indices))


def upernet(name: str, channels: list[int]) -> Any:
    config = transformers.UperNetConfig(
        backbone_config=backbone(name), hidden_size=16, num_labels=3, auxiliary_in_channels=channels[2]
    )
    return transformers.UperNetForSemanticSegmentation(config)


def mask2former(name: str, channels: list[int]) -> Any:
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone(name), hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=1,
        decoder_layers=2, encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2, num_queries=4,
    )  # fmt: skip
    return transformers.Mask2FormerModel(config)


def detr(name: str, channels: list[int]) -> Any:
    config = transformers.DetrConfig(backbone_config=backbone(name), d_model=16, **TINY)
    return transformers.DetrForObjectDetection(config)


def rt_detr(name: str, channels: list[int]) -> Any:
    config = transformers.RTDetrConfig(
        backbone_config=backbone(name, (2, 3, 4)), encoder_in_channels=channels[1:], d_model=16,
        encoder_hidden_dim=16, decoder_in_channels=[16] * 3, **TINY,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


@pytest.mark.parametrize("host", [upernet, mask2former, detr, rt_detr])
@torch.no_grad()
def test_hosts_take_stitched_networks(host: Any) -> None:
    theirs = host("resnet18", [64, 128, 256, 512]).eval()(images(1, 64))
    ours = host("snnet_resnet_18_50", [256, 512, 1024, 2048]).eval()(images(1, 64))
    output = "masks_queries_logits" if host is mask2former else "logits"
    assert ours[output][-1].shape == theirs[output][-1].shape


@torch.no_grad()
def test_backbones_have_the_maps_of_the_stitch() -> None:
    for name, channels in (("resnet18", [64, 128, 256, 512]), ("snnet_resnet_18_50", [256, 512, 1024, 2048])):
        for made in (transformers.TimmBackbone(backbone(name)), transformers.AutoBackbone.from_config(backbone(name))):
            assert made.channels == channels
            assert [h.shape[1:] for h in made.eval()(images(1, 64)).feature_maps] == [
                (c, 64 // r, 64 // r) for c, r in zip(channels, (4, 8, 16, 32), strict=True)
            ]


@torch.no_grad()
def test_pretrained_backbones_are_read_from_folders(tmp_path: Any) -> None:
    args = {"channels": (8, 16, 24, 32)}
    (plain,) = models({"architecture": "resnet18", **args})
    timm.models.save_for_hf(plain, tmp_path / "plain", model_args=args)
    net = timm_stitch.stitch([plain, *models({"architecture": "resnet18", "channels": (8, 24, 32, 48)})]).eval()
    timm_stitch.save_pretrained(net, tmp_path / "stitched")
    for folder, model in (("plain", plain), ("stitched", net)):
        expected = model.forward_intermediates(images(1, 64), intermediates_only=True)[1:]
        name = f"local-dir:{tmp_path / folder}"
        pretrained = transformers.TimmBackbone.from_pretrained(name, out_indices=[1, 2, 3, 4]).eval()
        made = zip(pretrained(images(1, 64)).feature_maps, expected, strict=True)
        assert all(torch.equal(a, b) for a, b in made)
        random = transformers.TimmBackbone(backbone(name)).eval()
        assert random.channels == pretrained.channels == [h.shape[1] for h in expected]
        assert not torch.equal(random(images(1, 64)).feature_maps[-1], expected[-1])
