"""An anchor is what its owner made of it, before stitching or after: its forward, hooks and containers by each door."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from tiny import convnexts, images, models, resnets, swins, vits
from torch import Tensor, nn

import timm_stitch

Change = Callable[[nn.Module], None]
densenets = {"architecture": "densenet121", "growth_rate": 8, "block_config": (2, 2, 2, 2)}
mobilenets = [{"architecture": name} for name in ("mobilenetv3_small_050", "mobilenetv3_small_075")]
# Makers of two anchors, the size of images, and a module that holds the last blocks.
KINDS: dict[str, tuple[Callable[[], list[nn.Module]], int, str]] = {
    "vit": (vits, 32, "blocks"),
    "convnext": (convnexts, 64, "stages.3"),
    "resnet": (resnets, 64, "layer4"),
    "swin": (swins, 56, "layers.2"),
    "mobilenet": (lambda: models(*mobilenets), 64, "blocks.5"),
    "densenet": (lambda: models(densenets, densenets), 64, "features.denseblock4"),
}


class Normalised(nn.Module):
    """Mixed into the class of a model: a classifier that takes images of 0 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward((x - 0.45) / 0.225)
        return out


class HalvedSequential(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        half: Tensor = super().forward(x) * 0.5
        return half


def in_a_subclass(model: nn.Module) -> None:
    model.__class__ = type("Normalised", (Normalised, type(model)), {})


def on_the_object(model: Any) -> None:
    plain = type(model).forward_features
    model.forward_features = MethodType(lambda self, x, **more: plain(self, (x - 0.45) / 0.225, **more), model)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stitched(kind: str) -> tuple[Any, list[nn.Module], Tensor, str]:
    make, size, holder = KINDS[kind]
    anchors = make()
    torch.manual_seed(0)
    return timm_stitch.stitch(anchors, kernel_size=1).eval(), anchors, images(3, size), holder


def by_all_doors(net: Any, x: Tensor, k: int) -> dict[str, Tensor]:
    """The logits of a stitch, by every door that gives some."""
    other = next(i for i in net.stitch_ids if i != k)
    rows = net(torch.cat([x, x[:1]]), stitch_id=[k] * len(x) + [other])[: len(x)]
    return {
        "forward": net(x, stitch_id=k),
        "forward_each": net.forward_several(x, [k])[k],
        "forward_each, of many": dict(net.forward_each(x, [other, k]))[k],
        "rows of ids": rows,
        "rows of one id": net(x, stitch_id=[k] * len(x)),
        "features and head": net.forward_head(net.forward_features(x, stitch_id=k), stitch_id=k),
        "extract": net.extract(k)(x),
        "copy of extract": copy.deepcopy(net.extract(k))(x),
        "deepcopy": copy.deepcopy(net)(x, stitch_id=k),
    }


def ids_for_hooks(net: Any, kind: str, x: Tensor) -> list[int]:
    """The second anchor's stitch, and one that ends in it; DenseNet's container is in the middle of what that runs."""
    stitched = next(s.stitch_id for s in net.plan if s.anchors == (0, 1))
    if kind == "densenet":
        with pytest.raises(ValueError, match=r"hooks on 'features.denseblock4' cannot run in a stitch"):
            net(x, stitch_id=stitched)
        return [net.plan.anchor_id(1)]
    return [net.plan.anchor_id(1), stitched]


def equal(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [in_a_subclass, on_the_object])
@torch.no_grad()
def test_a_forward_of_its_own_runs_whenever_it_was_given(kind: str, change: Change) -> None:
    net, anchors, x, _ = stitched(kind)
    stitch_ids = [k for k in net.stitch_ids if net.plan[k].is_anchor or len(net.plan[k].segments) == 2]
    expected = {k: net((x - 0.45) / 0.225, stitch_id=k) for k in stitch_ids}
    for anchor in anchors:
        change(anchor)
    for k in stitch_ids[:4]:
        for door, y in by_all_doors(net, x, k).items():
            assert equal(y, expected[k]), door
    again = timm_stitch.stitch(anchors, kernel_size=1).eval()
    assert again.plan == net.plan
    again.load_state_dict(net.state_dict())
    for k in stitch_ids[:4]:
        assert equal(again(x, stitch_id=k), expected[k])


@torch.no_grad()
def test_a_replaced_container_runs_or_is_named(kind: str) -> None:
    net, anchors, x, holder = stitched(kind)
    owner, _, leaf = holder.rpartition(".")
    inside = anchors[1].get_submodule(owner)
    plain = getattr(inside, leaf)
    if type(plain).forward is not nn.Sequential.forward:
        pytest.skip("its containers are classes of their own")
    setattr(inside, leaf, HalvedSequential(*plain.children()))
    k = net.plan.anchor_id(1)
    for door, y in by_all_doors(net, x, k).items():
        assert equal(y, anchors[1](x)), door
    stitch = next(s for s in net.plan if s.anchors == (0, 1))
    if kind == "resnet":  # recorded, its layer is one block
        with pytest.raises(ValueError, match=r"anchors.1 has changed since it was stitched \(layer4 was replaced\)"):
            net(x, stitch_id=stitch.stitch_id)
        return
    ours = net(x, stitch_id=stitch.stitch_id)
    setattr(inside, leaf, plain)
    assert not equal(ours, net(x, stitch_id=stitch.stitch_id))


@torch.no_grad()
def test_more_blocks_than_were_stitched_are_the_anchors_alone() -> None:
    net, anchors, x, _ = stitched("vit")
    blocks: Any = anchors[1].blocks
    blocks.append(copy.deepcopy(blocks[0]))
    assert equal(net(x), anchors[1](x))
    k = next(s.stitch_id for s in net.plan if s.anchors == (0, 1))
    refusal = r"anchors.1 has changed since it was stitched \(blocks.4 was replaced\), and "
    for door in (net, net.forward_features, net.forward_intermediates, lambda x, stitch_id: net.extract(stitch_id)):
        with pytest.raises(ValueError, match=refusal):
            door(x, stitch_id=k)
    assert equal(net.forward_several(x, [net.plan.anchor_id(1)])[net.plan.anchor_id(1)], anchors[1](x))
    del blocks[-1]
    assert net(x, stitch_id=k).shape == (3, 10)


@torch.no_grad()
def test_hooks_on_containers_run_once_in_each_door(kind: str) -> None:
    net, anchors, x, holder = stitched(kind)
    ran: list[nn.Module] = []
    module = anchors[1].get_submodule(holder)
    module.register_forward_hook(lambda m, args, out: ran.append(m) or out * 0.5)
    for k in ids_for_hooks(net, kind, x):
        expected = anchors[1](x) if net.plan[k].is_anchor else net(x, stitch_id=k)
        for door, y in by_all_doors(net, x, k).items():
            assert equal(y, expected), door
        ran.clear()
        net(x, stitch_id=k)
        assert ran == [module]


@torch.no_grad()
def test_a_hook_on_the_row_of_blocks_scales_what_a_stitch_runs_of_it() -> None:
    net, anchors, x, _ = stitched("vit")
    stitch = next(s for s in net.plan if s.anchors == (0, 1))
    features = net.executor.advance(stitch, 0, len(stitch.steps) - 1, None, net.prepare_inputs(x, [stitch]))[0]
    back: Any = anchors[1]
    back.blocks.register_forward_hook(lambda m, args, out: out * 0.5)
    assert equal(net(x, stitch_id=stitch.stitch_id), back.forward_head(back.norm(features * 0.5)))


@pytest.mark.parametrize("k", [0, 1, -1])
@torch.no_grad()
def test_hooks_on_anchors_run_in_each_door(kind: str, k: int) -> None:
    net, anchors, x, _ = stitched(kind)
    stitch = net.plan.stitches[k]
    plain = net(x, stitch_id=stitch.stitch_id)
    handle = anchors[stitch.back].register_forward_hook(lambda m, args, out: -out)
    for door, y in by_all_doors(net, x, stitch.stitch_id).items():
        if door != "features and head":  # as in timm, which calls no hooks of the model there
            assert equal(y, -plain), door
    handle.remove()
    assert equal(net(x, stitch_id=stitch.stitch_id), plain)


def test_backward_hooks_on_anchors_and_containers_run_and_see_the_module(kind: str) -> None:
    net, anchors, x, holder = stitched(kind)
    seen: list[tuple[str, nn.Module]] = []
    module = anchors[1].get_submodule(holder)
    for name, where in (("anchor", anchors[1]), ("container", module)):
        where.register_full_backward_hook(lambda m, *_, name=name: seen.append((name, m)))
        where.register_full_backward_pre_hook(lambda m, *_, name=name: seen.append((name, m)))
    for k in ids_for_hooks(net, kind, x):
        seen.clear()
        net(x.requires_grad_(), stitch_id=k).sum().backward()
        assert sorted(seen, key=lambda pair: pair[0]) == [("anchor", anchors[1])] * 2 + [("container", module)] * 2


def test_hooks_run_where_activations_are_recomputed(kind: str) -> None:
    net, anchors, x, holder = stitched(kind)
    anchors[1].get_submodule(holder).register_forward_hook(lambda m, args, out: out * 0.5)
    expected = {k: net(x, stitch_id=k) for k in ids_for_hooks(net, kind, x)}
    net.set_grad_checkpointing()
    for k, y in expected.items():
        assert torch.equal(net(x, stitch_id=k), y)


@torch.no_grad()
def test_settings_of_an_anchor_act_as_they_are_now() -> None:
    net, anchors, x, _ = stitched("convnext")
    before = net(x)
    anchors[1].note = "of the user"
    assert torch.equal(net(x, stitch_id=1), net.extract(1)(x))
    anchors[1].stages[3].register_module("downsample", nn.Conv2d(48, 64, 2, 2))  # was it before
    assert torch.equal(net(x), anchors[1](x))
    assert not torch.equal(net(x), before)
    k = next(s.stitch_id for s in net.plan if s.anchors == (0, 1))
    assert torch.equal(net(x, stitch_id=k), dict(net.forward_each(x))[k])


def test_a_network_with_hooks_is_pickled(kind: str) -> None:
    net, _, x, _ = stitched(kind)
    with torch.no_grad():
        for network in (net, net.extract(1)):
            again = pickle.loads(pickle.dumps(network))
            assert torch.equal(again(x), network(x))


def test_a_scripted_model_is_refused_in_words() -> None:
    scripted = [torch.jit.script(anchor) for anchor in resnets()]
    with pytest.raises(TypeError, match=r"is compiled by TorchScript \(ResNet\): stitch the model itself"):
        timm_stitch.stitch(scripted)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
@torch.no_grad()
def test_an_extracted_network_holds_modules_only_and_is_pickled(kind: str) -> None:
    net, _, x, _ = stitched(kind)
    stitch = next(s for s in net.plan.stitches[::-1] if s.anchors == (0, 1))
    alone = net.extract(stitch.stitch_id)
    for module in alone.modules():
        assert None not in module._modules.values()
    assert len(list(alone.stitching_layers)) == 1 == len(alone.stitching_layers)
    assert alone.stitching_layers[stitch.layers[0]] is net.stitching_layers[stitch.layers[0]]
    with pytest.raises(IndexError, match="is not in this extracted network, which holds"):
        alone.stitching_layers[10_000]
    assert torch.equal(pickle.loads(pickle.dumps(alone))(x), net(x, stitch_id=stitch.stitch_id))
    assert alone.extract().stitch_table() == alone.stitch_table()


@pytest.mark.parametrize("after", [False, True])
@torch.no_grad()
def test_a_first_layer_for_other_images_takes_them(after: bool) -> None:
    anchors: list[Any] = resnets()
    net: Any = timm_stitch.stitch(anchors, kernel_size=1).eval() if after else None
    for anchor in anchors:
        anchor.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    net = net or timm_stitch.stitch(anchors, kernel_size=1).eval()
    x = torch.randn(2, 4, 64, 64)
    assert torch.equal(net(x), anchors[1](x))
    assert net(x, stitch_id=1).shape == (2, 10)
    with pytest.raises(
        ValueError, match=r"\(2, 5, 64, 64\) do not fit.* For 5 channels create the anchors with in_chans=5"
    ):
        net(torch.randn(2, 5, 64, 64))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@torch.no_grad()
def test_an_image_size_that_was_set_on_the_anchors_is_theirs(name: str) -> None:
    small = {"embed_dim": 32, "num_heads": 2} if name.startswith("vit") else {}
    small = {"embed_dim": 16, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 2, 2)} if "swin" in name else small
    anchors: list[Any] = models(*({"architecture": name, "img_size": 128, **small} for _ in range(2)))
    net = timm_stitch.stitch(anchors, kernel_size=1).eval()
    net(images(1, 128))
    for anchor in anchors:
        anchor.set_input_size(img_size=(64, 64))
    x = images(2, 64)
    assert torch.equal(net(x), anchors[1](x))
    k = next(s.stitch_id for s in net.plan if s.anchors == (0, 1))
    assert torch.equal(net(x, stitch_id=k), dict(net.forward_each(x))[k])
    with pytest.raises(ValueError, match=r"\(1, 3, 128, 128\) do not fit: expected \(B, 3, 64, 64\)"):
        net(images(1, 128))
