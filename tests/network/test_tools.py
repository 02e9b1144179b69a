"""Tools that people use on any model: each beside what it does to a plain timm model."""

from __future__ import annotations

import copy
from typing import Any

import accelerate
import pytest
import timm
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)

import timm_stitch
from timm_stitch.anchors.auto import view_of

VIT = {"num_heads": 2, "depth": 4, "img_size": 32, "patch_size": 8, "num_classes": 10}


def vits() -> list[nn.Module]:
    return [timm.create_model("vit_tiny_patch16_224", embed_dim=w, **VIT).eval() for w in (32, 64)]


def convnexts() -> list[nn.Module]:
    return [timm.create_model(n, num_classes=10).eval() for n in ("test_convnext", "test_convnext2")]


def of_two_kinds() -> list[nn.Module]:
    return [timm.create_model(n, num_classes=10, img_size=64).eval() for n in ("test_vit", "test_vit2")]


KINDS = {"vit": (vits, 32), "convnext": (convnexts, 64), "other_vit": (of_two_kinds, 64)}


def replica(net: nn.Module) -> Any:
    """What torch.nn.parallel.replicate makes, with copies in place of another device's tensors."""
    twins: dict[nn.Module, Any] = {m: m._replicate_for_data_parallel() for m in net.modules()}
    for module, twin in twins.items():
        twin._former_parameters = {}
        for name, inner in module._modules.items():
            twin._modules[name] = None if inner is None else twins[inner]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(twin, name, parameter.detach().clone().requires_grad_())
    return twins[net]


def ran(net: nn.Module, kind: type[nn.Module]) -> list[int]:
    """A list that grows whenever a module of a kind runs."""
    found: list[int] = []
    for module in net.modules():
        if isinstance(module, kind):
            module.register_forward_pre_hook(lambda *_: found.append(1))
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_stitching_layers_are_called_as_linear_layers(kind: str) -> None:
    class Adapted(nn.Module):  # what peft puts in the place of a linear layer
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.extra = base, nn.Linear(base.in_features, base.out_features)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == self.base.in_features
            y: torch.Tensor = self.base(x) + self.extra(x)
            return y

    make, size = KINDS[kind]
    net, x = timm_stitch.stitch(make()), torch.randn(2, 3, size, size)
    stitched = [s.stitch_id for s in net.plan if not s.is_anchor]
    before = [net(x, stitch_id=k) for k in stitched]
    for number, layer in enumerate(net.stitching_layers):
        assert isinstance(layer, nn.Linear)
        net.stitching_layers[number] = Adapted(layer)
    assert not any(torch.equal(net(x, stitch_id=k), y) for k, y in zip(stitched, before, strict=True))


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_peft_adapts_every_linear_layer(kind: str) -> None:
    peft = pytest.importorskip("peft")
    make, size = KINDS[kind]
    net, x = timm_stitch.stitch(make()).eval(), torch.randn(2, 3, size, size)
    expected = {k: net(x, stitch_id=k) for k in net.stitch_ids}
    adapted = peft.get_peft_model(net, peft.LoraConfig(target_modules="all-linear"))
    assert all(hasattr(layer, "lora_A") for layer in net.stitching_layers)
    for k, y in expected.items():  # an adapter begins as nothing
        torch.testing.assert_close(adapted(x, stitch_id=k), y)


@pytest.mark.parametrize("kind", KINDS)
def test_replaced_blocks_run(kind: str) -> None:
    make, size = KINDS[kind]
    models = make()
    view = view_of(models[1])
    block = type(view.block(1))
    net, x = timm_stitch.stitch(models), torch.randn(2, 3, size, size)
    apply_activation_checkpointing(net, check_fn=lambda m: isinstance(m, block))
    found, k = ran(net, CheckpointWrapper), net.plan.anchor_id(1)
    net(x, stitch_id=k)
    ours = len(found)
    found.clear()
    models[1](x)
    assert ours == len(found) > 0
    before = net(x, stitch_id=k)
    name = net.views[1].block_name(2)
    owner, _, leaf = name.rpartition(".")
    models[1].get_submodule(owner)._modules[leaf] = nn.Identity()
    after = net(x, stitch_id=k)
    assert not torch.equal(after, before)
    assert torch.equal(after, models[1](x))


@pytest.mark.parametrize(
    ("kind", "holder"), [("vit", "blocks"), ("convnext", "stages.1"), ("convnext", "stages"), ("other_vit", "blocks")]
)
def test_what_holds_the_blocks_may_not_be_replaced_in_silence(kind: str, holder: str) -> None:
    make, size = KINDS[kind]
    net = timm_stitch.stitch(make())
    owner, _, leaf = f"anchors.1.{holder}".rpartition(".")
    holding = net.get_submodule(owner)
    holding._modules[leaf] = nn.Sequential(holding._modules[leaf])
    with pytest.raises(ValueError, match=rf"has no '{holder}.* any more: {holder}.* is now a .*or stitch again"):
        net(torch.randn(1, 3, size, size), stitch_id=net.plan.anchor_id(1))


def test_a_replaced_anchor_is_refused() -> None:
    net = timm_stitch.stitch(vits())
    net.anchors[1] = nn.Sequential(net.anchors[1])
    with pytest.raises(ValueError, match=r"anchors.1 was a VisionTransformer when stitched and is now a Sequential"):
        net(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_run_their_own_anchors(kind: str) -> None:
    make, size = KINDS[kind]
    net, x = timm_stitch.stitch(make()).eval(), torch.randn(2, 3, size, size)
    other = replica(net)
    for k in net.stitch_ids:
        out = other(x, stitch_id=k)
        assert torch.equal(out, net(x, stitch_id=k))
        out.sum().backward()
        assert not any(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_offloaded_weights_are_brought_where_they_are_used(kind: str) -> None:
    make, size = KINDS[kind]
    net, x = timm_stitch.stitch(make()).eval(), torch.randn(2, 3, size, size)
    expected = {k: net(x, stitch_id=k) for k in net.stitch_ids}
    away = copy.deepcopy(net)
    accelerate.cpu_offload(away, torch.device("cpu"))
    assert all(p.is_meta for p in away.parameters())
    for k, y in expected.items():
        assert torch.equal(away(x, stitch_id=k), y)
    assert all(p.is_meta for p in away.parameters())


@pytest.mark.parametrize(
    ("anchors", "levels"),
    [
        (("test_convnext", "test_convnext2"), None),
        (("resnet10t", "resnet14t"), [4, 8, 16, 32]),  # a level inside the stem is no boundary
    ],
)
def test_features_of_staged_networks_are_of_every_level(anchors: tuple[str, ...], levels: Any) -> None:
    plain = timm.create_model(anchors[1], features_only=True).feature_info.reduction()
    net = timm.create_model("snnet", anchors=list(anchors), features_only=True, kernel_size=1)
    assert net.feature_info.reduction() == (levels or plain)
    assert timm_stitch.stitch(convnexts()).backbone().feature_info.reduction() == [4, 8, 16, 32]


def test_segmentation_models_take_staged_networks() -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    unet = smp.Unet("tu-snnet_resnet_18_50", encoder_weights=None, classes=3)
    assert unet(torch.randn(2, 3, 64, 64)).shape == (2, 3, 64, 64)


@pytest.mark.parametrize("name", ["test_vit3", "cait_xxs24_224", "tiny_vit_5m_224"])
def test_costs_of_anchors_with_unusual_heads(name: str) -> None:
    with torch.device("meta"):
        net = timm_stitch.stitch([timm.create_model(name), timm.create_model(name)], kernel_size=1)
    rows = {row["stitch_id"]: row for row in net.stitch_table()}
    assert rows[0]["macs"] == rows[net.plan.anchor_id(1)]["macs"] > 0
    assert rows[0]["params"] == sum(p.numel() for p in net.anchors[0].parameters())
