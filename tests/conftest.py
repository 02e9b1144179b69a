"""Small anchors, built on the spot: three DeiTs of six blocks on 32-pixel images."""

import pytest
import timm
import torch

import timm_stitch

SIZES = {"deit_tiny_patch16_224": (32, 1), "deit_small_patch16_224": (64, 2), "deit_base_patch16_224": (96, 3)}
SMALL = {"img_size": 32, "patch_size": 8, "num_classes": 10, "depth": 6}


def small_anchors(**kwargs):
    torch.manual_seed(0)
    return [
        timm.create_model(name, embed_dim=width, num_heads=heads, **{**SMALL, **kwargs}).eval()
        for name, (width, heads) in SIZES.items()
    ]


def anchor_specs(**kwargs):
    return [
        {"architecture": name, "embed_dim": width, "num_heads": heads, **{**SMALL, **kwargs}}
        for name, (width, heads) in SIZES.items()
    ]


@pytest.fixture
def anchors():
    return small_anchors()


@pytest.fixture
def model(anchors):
    return timm_stitch.stitch(anchors).eval()


@pytest.fixture
def images():
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
