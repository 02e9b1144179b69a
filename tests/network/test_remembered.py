"""Figures and costs belong to the weights and modules that a network has now, however they were changed."""

import numpy as np
import pytest
import torch
from tiny import vits
from torch import nn

import timm_stitch
from timm_stitch.network import weights
from timm_stitch.network.weights import weights_version


@pytest.fixture
def network():
    model = timm_stitch.stitch(vits()).eval()
    model.remember([{"stitch_id": k, "top1": 50.0 + k} for k in model.stitch_ids])
    return model


def knows(model):
    return "top1" in model.stitch_table()[1]


def prune_by_data(model):
    weight = model.anchors[1].blocks[0].mlp.fc1.weight.data
    weight[torch.arange(len(weight)) % 8 != 0] = 3.0


def change_one_value_by_numpy(model):
    model.anchors[1].blocks[1].attn.qkv.weight.detach().numpy()[-1, -2] += 1e-3


def negate_every_second_value(model):
    model.anchors[1].blocks[0].mlp.fc1.weight.data[:, 1::2] *= -1


def swap_neurons(model):
    weight = model.anchors[1].blocks[0].mlp.fc1.weight.data
    weight.copy_(weight.flip(0))


def replace_an_activation(model):
    model.anchors[1].blocks[0].mlp.act = nn.ReLU()


def change_an_epsilon(model):
    model.anchors[1].blocks[0].norm1.eps = 0.1


def patch_a_forward(model):
    model.anchors[1].blocks[0].mlp.forward = lambda x: x


CHANGES = [
    prune_by_data, change_one_value_by_numpy, negate_every_second_value, swap_neurons, replace_an_activation,
    change_an_epsilon, patch_a_forward,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_figures_are_left_out_once_weights_or_modules_have_changed(network, change):
    assert knows(network)
    change(network)
    assert not knows(network)
    with pytest.raises(ValueError, match="belong to other weights"):
        network.set_budget(macs=1e12)


def test_figures_stay_through_what_changes_no_output(network):
    network.train().set_grad_checkpointing()
    network.eval().set_stitch(2)
    network.anchors[0].register_forward_hook(lambda *args: None)
    network.compile()
    assert knows(network)
    network.forget()
    assert not knows(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool])
@pytest.mark.parametrize("device", ["cpu", "another"])
def test_every_byte_counts_in_the_version_of_weights(dtype, device, monkeypatch):
    monkeypatch.setattr(weights, "_LANES", 3)
    monkeypatch.setattr(weights, "_CHUNK", 8)
    weights._factors.cache_clear()
    holder = nn.Module()
    numbers = np.random.default_rng(0).integers(0, 2 if dtype == torch.bool else 200, 37)
    holder.register_buffer("values", torch.from_numpy(numbers).to(dtype))

    def version():
        return weights_version(holder) if device == "cpu" else str(weights._device_sums(holder.values))

    raw, versions = holder.values.view(torch.uint8).numpy(), {version()}
    for position in range(len(raw)):
        raw[position] ^= 1 if dtype == torch.bool else 128
        versions.add(version())
    weights._factors.cache_clear()
    assert len(versions) == len(raw) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_that_change_places_or_signs_are_another_version_of_weights(dtype, monkeypatch):
    monkeypatch.setattr(weights, "_LANES", 4)  # all rows begin in the same lane
    holder = nn.Module()
    holder.register_buffer("a", torch.ones(8, 8, dtype=dtype))
    holder.register_buffer("b", torch.full((8, 8), 2.0, dtype=dtype))
    holder.a[0, 1] = -1
    before, a, b = weights_version(holder), holder.a.clone(), holder.b.clone()
    for change in (
        lambda: holder.a.copy_(-a),
        lambda: holder.a.copy_(a.flip(0)),
        lambda: holder.a[:2].copy_(a[:2].flip(0)),
        lambda: holder.a[:, 1].neg_(),
        lambda: (holder.a.copy_(b), holder.b.copy_(a)),
    ):
        change()
        assert weights_version(holder) != before
        holder.a.copy_(a)
        holder.b.copy_(b)
        assert weights_version(holder) == before


def test_costs_follow_replaced_modules(network):
    before = network.stitch_table()[1]
    for block in network.anchors[1].blocks:
        block.mlp.fc1, block.mlp.fc2 = nn.Linear(64, 32), nn.Linear(32, 64)
    after, small = network.stitch_table()[1], network.extract(1)
    assert after["params"] == sum(p.numel() for p in small.parameters()) < before["params"]
    assert after["macs"] == small.stitch_table()[0]["macs"] < before["macs"]
    assert network.costs() is network.costs()
