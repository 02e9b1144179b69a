"""The contract of views, on small members of many families: exact, without copies or changes, cut well."""

import copy

import pytest
import timm
import torch
from torch import nn

from timm_stitch.anchors.view import ImageInputs, View
from timm_stitch.families.timm_models.traced_view import TracedView
from timm_stitch.families.timm_models.views import view_of


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small models run faster so; the tests after these get their threads back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# name, arguments of create_model, image size
MODELS = {
    "test_vit": ({"img_size": 32}, 32),
    "test_vit_relpos": ({"img_size": 32}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "embed_dim": 48, "depth": 4}, 32),
    "deit3_small_patch16_224": ({"img_size": 32, "embed_dim": 48, "depth": 4, "num_heads": 3}, 32),
    "beit_base_patch16_224": ({"img_size": 32, "embed_dim": 48, "depth": 5, "num_heads": 3}, 32),
    "eva02_tiny_patch14_224": ({"img_size": 28, "embed_dim": 48, "depth": 5}, 28),
    "vit_small_patch14_reg4_dinov2": ({"img_size": 28, "embed_dim": 48, "depth": 4, "num_classes": 7}, 28),
    "vit_small_patch16_dinov3": ({"img_size": 32, "embed_dim": 48, "depth": 5, "num_heads": 3, "num_classes": 7}, 48),
    "swin_tiny_patch4_window7_224": ({"img_size": 64, "embed_dim": 24, "window_size": 4}, 64),
    "swinv2_tiny_window8_256": ({"img_size": 64, "embed_dim": 24, "window_size": 4}, 64),
    "test_convnext": ({}, 64),
    "test_resnet": ({}, 64),
    "resnetv2_18": ({}, 64),
    "regnetx_002": ({}, 64),
    "test_efficientnet": ({}, 64),
    "mobilenetv3_small_050": ({}, 64),
    "pvt_v2_b0": ({}, 64),
    "xcit_nano_12_p16_224": ({"depth": 4}, 64),
    "levit_128s": ({}, 224),
    "mobilevit_xxs": ({}, 64),
    "test_coatnet": ({"img_size": 64}, 64),
    "edgenext_xx_small": ({}, 64),
    "hgnetv2_b0": ({"num_classes": 7}, 64),
    "densenet121": ({}, 64),
    "mixer_s32_224": ({"img_size": 64, "num_classes": 7}, 64),
    "poolformer_s12": ({}, 64),
    "cait_xxs24_224": ({"img_size": 32, "depth": 4}, 32),
}


def make(name: str) -> nn.Module:
    """A small model in which every parameter matters."""
    torch.manual_seed(0)
    model = timm.create_model(name, **MODELS[name][0]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.std()) < 1e-3:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module", params=MODELS)
def opened(request: pytest.FixtureRequest) -> tuple[nn.Module, View, int, list[str]]:
    model = make(request.param)
    keys = list(model.state_dict())
    return model, view_of(model), MODELS[request.param][1], keys


def whole(part: View, x: torch.Tensor) -> torch.Tensor:
    return part.head(part.norm(part.run(part.stem(x), 0, part.depth, ImageInputs(x))))


def images(batch: int, side: int) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(batch))


def test_stem_blocks_norm_and_head_equal_the_model(opened: tuple) -> None:
    model, part, side, keys = opened
    model.eval()
    with torch.no_grad():
        for batch in (1, 3):
            x = images(batch, side)
            assert torch.equal(whole(part, x), model(x))
    assert list(model.state_dict()) == keys


def test_each_block_keeps_what_entered_it(opened: tuple) -> None:
    model, part, side, _ = opened
    model.eval()
    x = images(2, side)
    with torch.no_grad():
        h = part.stem(x)
        for index in range(part.depth):
            before = h.clone()
            after = part.run(h, index, index + 1, ImageInputs(x))
            assert torch.equal(h, before)
            layout = part.form_at(index + 1)[0]
            assert after.shape[1 if layout == "NCHW" else -1] == part.widths[index + 1]
            h = after


def test_gradients_are_the_models(opened: tuple) -> None:
    model, part, side, _ = opened
    model.train()
    for module in model.modules():
        for rate in ("p", "drop_prob"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    x, found = images(2, side), []
    for run in (model, lambda image: whole(part, image)):
        model.zero_grad(set_to_none=True)
        out = run(x)
        sum(o.square().mean() for o in (out if isinstance(out, tuple) else (out,))).backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-6)
    model.eval()


def test_there_are_three_cuts_or_more(opened: tuple) -> None:
    _, part, *_ = opened
    assert part.depth >= 4
    if isinstance(part, TracedView):
        assert part._usual.partition.middle >= 3
    assert len(part.widths) == len(part.reductions) == part.depth + 1
    assert all(b >= a for a, b in zip(part.reductions, part.reductions[1:], strict=False))


def test_front_and_back_hold_only_their_own_and_meet(opened: tuple) -> None:
    model, part, side, _ = opened
    model.eval()
    x, at = images(2, side), part.depth // 2
    front = part.subset(stem=True, blocks=range(at), norm=False, head=False)
    back = part.subset(stem=False, blocks=range(at, part.depth), norm=True, head=True)
    with torch.no_grad():
        h = front.run(front.stem(x), 0, at, ImageInputs(x))
        assert torch.equal(back.head(back.norm(back.run(h, at, part.depth, ImageInputs(x)))), model(x))
    assert [front.has_block(i) for i in range(part.depth)] == [i < at for i in range(part.depth)]
    held = [{k for k, _ in p.anchor.named_parameters()} for p in (front, back)]
    own = dict(model.named_parameters())
    assert held[0] | held[1] == set(own)
    shared = held[0] & held[1]
    assert sum(own[k].numel() for k in shared) < 0.02 * sum(p.numel() for p in own.values()), shared
    for half in (front, back):
        assert all(p is own[k] for k, p in half.anchor.named_parameters())


@pytest.mark.parametrize("name", ["eva02_tiny_patch14_224", "xcit_nano_12_p16_224", "densenet121", "test_resnet"])
def test_a_view_survives_copies_and_checkpointing(name: str) -> None:
    model = make(name)
    holder = nn.Module()
    holder.anchors, holder.views = nn.ModuleList([model]), [view_of(model)]
    twin = copy.deepcopy(holder).double()
    x = images(2, MODELS[name][1])
    assert twin.views[0].anchor is twin.anchors[0]
    with torch.no_grad():
        assert torch.equal(whole(twin.views[0], x.double()), twin.anchors[0](x.double()))
    part = holder.views[0]
    out = part.head(part.norm(part.run(part.stem(x), 0, part.depth, ImageInputs(x, True))))
    assert torch.equal(out, model(x))


def test_side_inputs_follow_the_size_of_the_image() -> None:
    model = make("vit_small_patch16_dinov3")
    part = view_of(model)
    for shape in ((1, 3, 32, 64), (2, 3, 96, 48)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(whole(part, x), model(x))


def test_a_view_follows_a_resized_model() -> None:
    model = make("swin_tiny_patch4_window7_224")
    part = view_of(model)
    assert part.image_size == (64, 64)
    model.set_input_size(img_size=96)
    part.refresh()
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        assert part.image_size == (96, 96)
        assert torch.equal(whole(part, x), model(x))


def test_a_model_on_the_meta_device_opens() -> None:
    with torch.device("meta"):
        model = timm.create_model("convnext_atto")
    part = view_of(model)
    x = torch.empty(2, 3, 224, 224, device="meta")
    assert whole(part, x).shape == (2, 1000)
    assert view_of(model).widths == part.widths


def test_what_cannot_be_cut_says_why() -> None:
    with pytest.raises(TypeError, match=r"cannot be an anchor.*crosses"):
        view_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="must be a timm model"):
        view_of("resnet18")  # type: ignore[arg-type]
