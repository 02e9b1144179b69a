"""Tools that people use on any model: each beside what it does to a plain timm model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import timm
import torch
from tiny import convnexts, convnexts_of_one_block, vits, vits_of_two_kinds
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointWrapper,
    apply_activation_checkpointing,
)
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

import timm_stitch
from timm_stitch.families.timm_models.views import view_of

STAGED = [
    ("convnext_atto", "convnext_femto"),
    ("resnet10t", "resnet14t"),
    ("regnetx_002", "regnety_002"),
    ("mobilenetv3_small_050", "mobilenetv3_small_075"),
]


KINDS = {
    "vit": (vits, 32),
    "blocks": (convnexts, 64),
    "convnext": (convnexts_of_one_block, 64),
    "other_vit": (vits_of_two_kinds, 64),
}


class Halved(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half: torch.Tensor = self.inner(x) / 2
        return half


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
    for index in range(net.views[1].depth):
        before = net(x, stitch_id=k)
        owner, _, leaf = net.views[1].block_name(index).rpartition(".")
        holder = models[1].get_submodule(owner)
        whole = holder._modules[leaf]
        assert whole is not None
        holder._modules[leaf] = Halved(whole)
        after = net(x, stitch_id=k)
        assert not torch.equal(after, before)
        assert torch.equal(after, models[1](x))
        holder._modules[leaf] = whole


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


@pytest.mark.parametrize("anchors", STAGED)
@torch.no_grad()
def test_features_of_staged_networks_are_of_every_level(anchors: tuple[str, ...]) -> None:
    models = [timm.create_model(name).eval() for name in anchors]
    x = torch.randn(1, 3, 64, 64)
    for k, model in ((0, models[0]), (1, models[1])):
        net = timm_stitch.stitch(models, kernel_size=1).eval()
        plain = timm.create_model(anchors[k], features_only=True).eval()
        ours = net.backbone(net.plan.anchor_id(k))
        assert ours.feature_info.reduction() == plain.feature_info.reduction()
        assert ours.feature_info.channels() == plain.feature_info.channels()
        assert all(
            torch.equal(a, b)
            for a, b in zip(ours(x), model.forward_intermediates(x, intermediates_only=True), strict=True)
        )
    named = timm.create_model("snnet", anchors=list(anchors), kernel_size=1, features_only=True)
    assert named.feature_info.reduction() == timm.create_model(anchors[0], features_only=True).feature_info.reduction()


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
    net.__dict__.pop("_costs")
    with torch.inference_mode():  # where operations reach the counter whole
        assert net.stitch_table() == list(rows.values())


@torch.no_grad()
def test_parametrised_modules_can_be_extracted() -> None:
    anchors, x = vits(), torch.randn(2, 3, 32, 32)
    for anchor in anchors:
        torch.nn.utils.parametrizations.weight_norm(anchor.head)
    net = timm_stitch.stitch(anchors).eval()
    assert torch.equal(net.extract(2)(x), net(x, stitch_id=2))
    assert torch.equal(net.extract(2, copy=True)(x), net(x, stitch_id=2))
    assert len(net.backbone(2)(x)) == 3


@torch.no_grad()
def test_one_classifier_stands_for_all_where_it_is_changed() -> None:
    net = timm_stitch.stitch(vits())
    before = [head.weight.clone() for head in net.get_classifier()]
    net.get_classifier().weight.mul_(0.5)  # as timm's train.py --head-init-scale
    nn.init.constant_(net.get_classifier().bias, -3.0)
    for head, old in zip(net.get_classifier(), before, strict=True):
        assert torch.equal(head.weight, old / 2)
        assert (head.bias == -3).all()
    assert net.get_classifier().in_features == 64
    assert net.set_stitch(0).get_classifier().in_features == 32
    assert net.get_classifier().weight.shape == (10, 32)
    assert len(list(net.get_classifier().parameters())) == 4
    assert isinstance(copy.deepcopy(net.get_classifier()), tuple)


@torch.no_grad()
def test_anchors_of_varying_sizes_take_them_as_the_plain_ones_do() -> None:
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("eva02_tiny_patch14_224", {"num_heads": 2, "depth": 4, "dynamic_img_size": True}),
        ("vit_tiny_patch16_224", {"num_heads": 2, "depth": 4, "dynamic_img_size": True}),
    ]
    for name, options in kinds:
        models = [timm.create_model(name, embed_dim=w, num_classes=10, **options).eval() for w in (32, 64)]
        patch = models[0].patch_embed.patch_size[0]
        net = timm_stitch.stitch(models).eval()
        anchors, alone = (net.plan.anchor_id(0), net.plan.anchor_id(1)), net.extract(2)
        for size in ((6, 4), (5, 5)):
            x = torch.randn(2, 3, size[0] * patch, size[1] * patch)
            for model, k in zip(models, anchors, strict=True):
                assert torch.equal(net(x, stitch_id=k), model(x)), name
            assert torch.equal(net(x, stitch_id=2), alone(x))


def test_anchors_of_any_size_take_the_size_that_is_set() -> None:
    net = timm_stitch.stitch([timm.create_model(name, num_classes=5) for name in ("resnet18", "resnet34")])
    before = net.stitch_table()[0]["macs"]
    net.results.add([{"stitch_id": 0, "top1": 70.0}])
    net.set_input_size(64)
    assert net.image_size == (64, 64)
    assert net.stitch_table()[0]["macs"] < before / 10
    assert "top1" not in net.stitch_table()[0]  # it was measured at the other size


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@torch.no_grad()
def test_scripted_vits_take_every_size_that_the_plain_ones_take() -> None:
    models = vits(dynamic_img_size=True)
    net = timm_stitch.stitch(models, stitch_id=2).eval()
    scripted, plain = torch.jit.script(net), torch.jit.script(models[1])
    for size in ((32, 32), (48, 40)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(scripted(x), net(x))
        assert torch.equal(plain(x), models[1](x))


@pytest.mark.parametrize("names", [("fastvit_t8", "fastvit_t12"), ("repvit_m0_9", "repvit_m1_0")])
@torch.no_grad()
def test_reparameterised_anchors_run(names: tuple[str, str]) -> None:
    net = timm_stitch.stitch([timm.create_model(name, num_classes=10) for name in names]).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
    x = torch.randn(2, 3, 64, 64)
    expected = net(x, stitch_id=2)
    fewer = timm.utils.model.reparameterize_model(copy.deepcopy(net))
    assert len(list(fewer.parameters())) < len(list(net.parameters()))
    torch.testing.assert_close(fewer(x, stitch_id=2), expected)


@pytest.mark.filterwarnings("ignore")  # FSDP's of processes and devices
@pytest.mark.parametrize("flat", [False, True])
def test_the_first_fsdp_wraps_blocks(flat: bool) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        models = vits()
        net, x = timm_stitch.stitch(models).eval(), torch.randn(2, 3, 32, 32)
        policy = ModuleWrapPolicy({type(models[0].blocks[0])})
        for whole, arguments in ((models[1], [{}]), (net, [{"stitch_id": k} for k in net.stitch_ids])):
            expected = [whole(x, **given).detach() for given in arguments]
            wrapped = FullyShardedDataParallel(
                copy.deepcopy(whole), auto_wrap_policy=policy, device_id=torch.device("cpu"), use_orig_params=not flat
            )
            for given, y in zip(arguments, expected, strict=True):
                out = wrapped(x, **given)
                torch.testing.assert_close(out, y)
                out.sum().backward()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["vit", "blocks"])
def test_averaged_weights_take_buffers_too(kind: str) -> None:
    make, size = KINDS[kind]
    net = timm_stitch.stitch(make())
    averaged = torch.optim.swa_utils.AveragedModel(net, use_buffers=True)
    first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    averaged.update_parameters(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(2)
    averaged.update_parameters(net)
    for name, tensor in averaged.module.state_dict().items():
        torch.testing.assert_close(tensor, (first[name] + net.state_dict()[name]) / 2)
    x = torch.randn(2, 3, size, size)
    assert torch.isfinite(averaged(x, stitch_id=2)).all()


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # parameters, which are no modules
def test_a_device_map_may_offload_to_the_disk(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    net = timm_stitch.stitch(vits())
    timm_stitch.save_pretrained(net.eval(), tmp_path / "net")
    memory = {"cpu": sum(p.numel() * 4 for p in net.parameters()) // 2}
    loaded = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "net", device_map="auto", offload_folder=tmp_path / "off", max_memory=memory
    )
    assert any(parameter.is_meta for parameter in loaded.parameters())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, stitch_id=3).logits, net(x, stitch_id=3))
