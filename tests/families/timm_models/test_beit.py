"""BEiTs as anchors: blocks with a bias by relative position, whose index tables are computed and in no file."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

import timm_stitch
from timm_stitch.families.timm_models.views import view_of


def beit(width, depth):
    torch.manual_seed(width)
    model = timm.create_model(
        "beit_base_patch16_224", img_size=64, embed_dim=width, depth=depth, num_heads=2, num_classes=5, init_values=1.0,
        use_abs_pos_emb=True, use_rel_pos_bias=True,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def beits():
    return [beit(16, 3), beit(24, 6)]


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def test_blocks_are_the_models_own(beits, x):
    view = view_of(beits[0])
    assert (view.depth, view.prefix_tokens, view.tokens, view.image_size) == (3, 1, 17, (64, 64))
    assert [view.block(n) for n in range(3)] == list(beits[0].blocks)
    calls = []
    for block in beits[0].blocks:
        block.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((len(args), kwargs)), with_kwargs=True
        )
    beits[0](x)
    own, calls[:] = list(calls), []
    timm_stitch.stitch(beits)(x, stitch_id=2)
    assert calls
    assert calls == own[: len(calls)]


def test_every_stitch_is_the_model_or_its_extracted_part_bit_for_bit(beits, x):
    network = timm_stitch.stitch(beits, direction="two_way", rank=4).eval()
    with torch.no_grad():
        for anchor, model in enumerate(beits):
            assert torch.equal(network(x, stitch_id=network.plan.anchor_id(anchor)), model(x))
        for stitch_id, out in network.forward_each(x):
            assert torch.equal(out, network(x, stitch_id=stitch_id))
            assert torch.equal(out, network.extract(stitch_id)(x))


def test_replaced_blocks_run(beits, x):
    network = timm_stitch.stitch(beits).eval()

    class Doubled(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, h, shared_rel_pos_bias):
            return 2 * self.block(h, shared_rel_pos_bias=shared_rel_pos_bias)

    beits[1].blocks[5] = Doubled(beits[1].blocks[5])
    with torch.no_grad():
        assert torch.equal(network(x, stitch_id=1), beits[1](x))


def test_index_tables_are_computed_after_loading(beits, x, tmp_path):
    network = timm_stitch.stitch(beits).eval()
    timm_stitch.save_pretrained(network, tmp_path)
    assert not any("index" in name or "k_bias" in name for name in load_file(tmp_path / "model.safetensors"))
    anchors = json.loads((tmp_path / "config.json").read_text())["model_args"]["anchors"]
    assert [(one["embed_dim"], one["depth"], one["use_abs_pos_emb"]) for one in anchors] == [
        (16, 3, True),
        (24, 6, True),
    ]
    with torch.no_grad():
        expected = network(x, stitch_id=3)
        assert torch.equal(timm_stitch.from_hub(str(tmp_path)).eval()(x, stitch_id=3), expected)
        assert torch.equal(timm_stitch.from_hub(str(tmp_path), extract=3).eval()(x), expected)


def test_other_sizes_are_refused_or_set(beits):
    network = timm_stitch.stitch(beits).eval()
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\)"):
        network(torch.randn(1, 3, 96, 96))
    network.set_input_size(96)
    assert network(torch.randn(1, 3, 96, 96), stitch_id=2).shape == (1, 5)
