"""What every family of anchors must do: views, crossings between layouts, low-rank layers, two-way plans."""

import pytest
import timm
import torch
from tiny import ON_64_PIXELS, on_64_pixels

import timm_stitch
from timm_stitch.anchors.view import ImageInputs
from timm_stitch.families.timm_models.views import view_of
from timm_stitch.network.layers import LowRankStitchingLayer, StitchingLayer
from timm_stitch.plan.stitch_plan import Anchor


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", ON_64_PIXELS)
@torch.no_grad()
def test_a_views_parts_in_a_row_equal_the_model(family, images):
    (model,) = on_64_pixels(family)
    part = view_of(model)
    h = part.stem(images)
    for block in range(part.depth):
        spatial = part.as_map(h, (64, 64), block)
        assert spatial.shape[1] == part.widths[block]
        assert torch.equal(part.from_map(spatial, part.prefix(h, block), block), h)
        h = part.run(h, block, block + 1, ImageInputs(images))
    assert torch.equal(part.head(part.norm(h)), model(images))


@torch.no_grad()
def test_a_back_with_a_class_token_brings_its_own(images):
    model = timm_stitch.stitch(on_64_pixels("vit without class token", "vit")).eval()
    before = model(images, stitch_id=2)
    model.anchors[1].cls_token += 1
    assert not torch.equal(model(images, stitch_id=2), before)


@pytest.mark.parametrize(
    ("front", "back"), [("resnet", "swin"), ("vit without class token", "vit"), ("levit", "levit")]
)
def test_least_squares_recovers_a_map_between_any_layouts(front, back):
    images = torch.randn(80, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model = timm_stitch.stitch(on_64_pixels(front, back), kernel_size=1).eval()
    residuals = timm_stitch.least_squares_init(model, images)
    assert set(residuals) == set(range(len(model.stitching_layers)))
    assert all(residual <= 1 for residual in residuals.values())
    if front == back:
        assert max(residuals.values()) < 1  # the very same model on both sides, one block apart


def test_features_of_staged_networks_are_one_a_level(images):
    args = {"anchors": [{**ON_64_PIXELS[name], "num_classes": 5} for name in ("resnet", "swin")]}
    whole = timm.create_model("snnet", stitch_id=4, num_classes=5, **args)
    features = timm.create_model("snnet", features_only=True, stitch_id=4, **args).eval()
    assert features.feature_info.reduction() == [2, 4, 8, 16, 32]
    widths = [info["num_chs"] for info in whole.feature_info]
    assert [(f.shape[1], f.shape[-1]) for f in features(images)] == list(zip(widths, (32, 16, 8, 4, 2), strict=True))


def test_low_rank_layer_computes_the_merged_map():
    torch.manual_seed(0)
    layer = LowRankStitchingLayer(8, 12, rank=4)
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad
    x = torch.randn(3, 5, 8)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))  # B starts at zero
    torch.nn.init.normal_(layer.lora_B)
    merged = layer.merge()
    assert type(merged) is StitchingLayer
    assert torch.equal(merged(x), layer(x))
    expected = x @ (layer.weight + layer.lora_B @ layer.lora_A / 4).T + layer.bias
    torch.testing.assert_close(layer(x), expected)


@torch.no_grad()
def test_merging_changes_no_logits_and_saves_parameters(images):
    model = timm_stitch.stitch(
        on_64_pixels("vit without class token", "vit without class token"), direction="two_way", rank=4
    ).eval()
    for layer in model.stitching_layers:
        layer.lora_B.normal_()
    before, params = dict(model.forward_each(images)), [row["params"] for row in model.stitch_table()]
    macs = [row["macs"] for row in model.stitch_table()]
    model.merge_low_rank()
    torch.testing.assert_close(dict(model.forward_each(images)), before)
    assert [row["macs"] for row in model.stitch_table()] == macs
    assert all(a < b for a, b in zip([row["params"] for row in model.stitch_table()][2:], params[2:], strict=True))


def vit(name, depth, width):
    return Anchor(name, (width,) * (depth + 1), (16,) * (depth + 1))


@pytest.mark.parametrize("deep", [12, 24])
def test_two_way_is_the_published_plan(deep):
    plan = timm_stitch.plan.enumeration.enumerate_stitches([vit("s", 12, 8), vit("l", deep, 16)], "two_way")
    assert plan.stitch_ids == tuple(k for k in range(135) if k != 13)
    step = deep // 12
    spans = {k: [(s.anchor, s.start, s.stop) for s in plan[k].segments] for k in plan.stitch_ids}
    assert spans[2] == [(0, 0, 1), (1, step, deep)]
    assert spans[12] == [(0, 0, 11), (1, 11 * step, deep)]
    assert spans[14] == [(1, 0, step), (0, 1, 12)]
    assert spans[25] == [(1, 0, step), (0, 1, 2), (1, 2 * step, deep)]
    assert spans[134] == [(0, 0, 10), (1, 10 * step, 11 * step), (0, 11, 12)]
    assert len(plan.layers) == 22


@pytest.mark.parametrize("rank", [-1, 9])
def test_a_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=f"rank must be from 0 .* to the anchors' smallest width 8, got {rank}"):
        timm_stitch.plan.enumeration.enumerate_stitches([vit("s", 12, 8), vit("l", 12, 16)], "two_way", rank=rank)


def test_an_extract_leaves_the_whole_as_it_was_when_its_head_changes(images):
    model = timm_stitch.stitch(on_64_pixels("swin", "swin")).eval()
    model.extract(0).reset_classifier(3)
    assert model(images, stitch_id=0).shape == (2, 10)


def test_a_layer_that_enters_blocks_of_different_layouts():
    """GCViT goes between channels first and last, so what a window's one layer gives differs from block to block."""
    torch.manual_seed(0)
    names = ("gcvit_xxtiny", "gcvit_xtiny")
    model = timm_stitch.stitch([timm.create_model(name, img_size=64, num_classes=5) for name in names]).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found = dict(model.forward_each(x))
        assert all(torch.equal(logits, model(x, stitch_id=k)) for k, logits in found.items())
        ids = [k for k in model.stitch_ids if not model.plan[k].is_anchor][:4]
        mixed = model(x.expand(4, -1, -1, -1), stitch_id=ids)
        torch.testing.assert_close(mixed, torch.cat([found[k] for k in ids]), rtol=0, atol=1e-5)


def test_a_class_token_that_nobody_can_make_is_refused():
    names = ("vit_srelpos_small_patch16_224", "vit_relpos_base_patch16_cls_224")
    anchors = [timm.create_model(name, img_size=64, device="meta") for name in names]
    with pytest.raises(ValueError, match="the second has class or register tokens that the first lacks"):
        timm_stitch.stitch(anchors)
    assert timm_stitch.stitch(anchors[::-1]).num_stitches > 2


def test_a_map_whose_shape_fits_two_layouts_has_that_of_the_other_maps():
    """(64, 28, 12) is 64 channels of 28 x 12, and 64 x 28 positions are as wide as a 224 x 96 image almost too."""
    cfg = {"input_size": (3, 224, 96)}
    model = timm.create_model(
        "convnext_atto", depths=(1, 1, 1, 1), dims=(8, 64, 16, 16), num_classes=2, pretrained_cfg_overlay=cfg
    )
    anchor = view_of(model).describe()
    assert anchor.widths == (8, 8, 64, 64, 16, 16, 16, 16)
    assert anchor.reductions == (4, 4, 8, 8, 16, 16, 32, 32)
