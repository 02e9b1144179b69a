"""Our segmentation networks compute what the authors' code computes; each mistake that is easily made would show.

`benchmarks/coverage/dense_golden.py` compares all stitches of all networks; this is the smallest one.
"""

import copy

import pytest
import timm
import torch
from golden_dense import FOLDER, NAMES, TOLERANCE, Golden, differences, fill, image
from torch.nn import functional

from timm_stitch.families.timm_models.meta_build import materialize
from timm_stitch.models.segmentation_weights import rename_segmentation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER.is_dir(), reason=f"needs the golden figures: none in {FOLDER}"),
]
NAME = "snnetv2_setr_ade20k_sl"


@pytest.fixture(scope="module")
def golden():
    return Golden(NAME)


@pytest.fixture(scope="module")
def weights(golden):
    """What the small anchor alone needs."""
    unused = ("backbone.anchors.1.", "backbone.stitch_layers.1.")
    return fill({k: shape for k, shape in golden.shapes.items() if not k.startswith(unused)}, golden.parameters)


@pytest.fixture(scope="module")
def network(weights):
    whole = timm.create_model(NAMES[NAME], device="meta")
    whole.levels_of_output = lambda: range(4)  # all, as in training, for the figures of auxiliary heads
    whole._head_of_output = lambda: whole.head
    small = whole.extract(0)
    own = small.state_dict()
    renamed = rename_segmentation(weights, small.plan, 3)
    small.load_state_dict({k: v for k, v in renamed.items() if k in own})
    return materialize(small).eval()


def test_figures_are_the_authors(network, golden):
    worst = differences(network, golden, 0)
    assert worst.keys() == {"features", "head", "logits", "aux", "slide"}
    assert max(worst.values()) < TOLERANCE, worst


def merged(weights, number):
    layer = f"backbone.stitch_layers.0.{number}.transform."
    low_rank = weights[layer + "lora_B"] @ weights[layer + "lora_A"] / 16
    return weights[layer + "weight"] + low_rank, weights[layer + "bias"]


def leave_out_position_bias(small, weights, monkeypatch):
    for block in small.anchors[0].blocks:
        block.attn.relative_position_bias_table.zero_()


def leave_out_position_embedding(small, weights, monkeypatch):
    small.anchors[0].pos_embed.zero_()


def shift_position_embedding(small, weights, monkeypatch):
    embed = small.anchors[0].pos_embed
    embed.copy_(embed.roll(-1, dims=1))


def leave_out_low_rank(small, weights, monkeypatch):
    small.projections[0][3].weight.copy_(weights["backbone.stitch_layers.0.11.transform.weight"])


def take_the_layer_before(small, weights, monkeypatch):
    matrix, bias = merged(weights, 10)
    small.projections[0][3].weight.copy_(matrix)
    small.projections[0][3].bias.copy_(bias)


def align_corners(small, weights, monkeypatch):
    own = functional.interpolate
    monkeypatch.setattr(
        functional, "interpolate", lambda *args, **kwargs: own(*args, **{**kwargs, "align_corners": True})
    )


MISTAKES = [
    leave_out_position_bias, leave_out_position_embedding, shift_position_embedding, leave_out_low_rank,
    take_the_layer_before, align_corners,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_mistakes_show(network, golden, weights, mistake, monkeypatch):
    small, heads = copy.deepcopy(network), []
    small.head.register_forward_hook(lambda module, args, out: heads.append(out))
    with torch.no_grad():
        mistake(small, weights, monkeypatch)
        small(image(0))
    difference = (heads[0][0, :, 3::16, 5::16] - golden.figures["head.0"]).abs().max().item()
    assert difference > 100 * TOLERANCE
