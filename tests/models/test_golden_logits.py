"""Our networks give the logits of the authors' code: sixteen of every stitch, from the file in this folder.

`golden_logits` says what the figures are and how they were made. The first image alone, so that a minute and a half on
two cores is enough; `test_golden` compares all logits of both where the whole figures are.
"""

import os

import golden_logits
import pytest
import timm
import torch

import timm_stitch  # noqa: F401

NETWORKS = golden_logits.read()
TOLERANCE = 1e-4  # on logits of unit scale; what was seen is below 2e-5
# Of the largest network every fifth stitch (between them they use all of its stitching layers), for the whole takes as
# long as the six others together; it has the same plan as snnetv2_deit3_sb. All of them with TIMM_STITCH_ALL_LOGITS=1.
FEWER = {} if os.environ.get("TIMM_STITCH_ALL_LOGITS") else {"snnetv2_deit3_sl": (5, 3)}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_authors(name, record_property):
    weights, expected = NETWORKS[name]
    overlay = {"state_dict": {"model": weights()}}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    del overlay
    assert list(model.stitch_ids) == sorted(expected)
    step, first = FEWER.get(name, (1, 0))
    ids = [k for k in model.stitch_ids if k % step == first]
    assert {layer for k in ids for layer in model.plan[k].layers} == set(range(len(model.stitching_layers)))
    with torch.inference_mode():
        worst = {
            k: (logits[0, golden_logits.classes_of(k)] - expected[k]).abs().max().item()
            for k, logits in model.forward_each(golden_logits.images()[:1], ids)
        }
    record_property("worst", max(worst.values()))
    print(f"{name}: {len(worst)} stitches, worst difference {max(worst.values()):.2g}")
    assert max(worst.values()) < TOLERANCE, worst


def test_every_stitch_has_its_figures():
    assert {name: len(logits) for name, (_, logits) in NETWORKS.items()} == {
        "snnet_deit_tsb": 71, "snnet_levit_192_256": 8, "snnet_resnet18_swin_t": 8, "snnet_resnet_18_50": 10,
        "snnet_swin_tsb": 41, "snnetv2_deit3_sb": 134, "snnetv2_deit3_sl": 134,
    }  # fmt: skip
    for _, logits in NETWORKS.values():
        rows = torch.stack(list(logits.values()))
        assert rows.shape[1] == 16
        assert rows.std() > 0.1
        # Another stitch's row would be noticed: any two differ by far more than the tolerance.
        assert torch.cdist(rows, rows, p=torch.inf).add(torch.eye(len(rows))).min() > 10 * TOLERANCE


def test_names_and_shapes_come_back():
    leaves = {"a.0.weight": "3x4", "a.0.bias": "3", "a.1.weight": "3x4", "a.1.bias": "3", "b.count": "()", "c": "(2)"}
    tree = golden_logits.pack(leaves)
    assert tree == {"a": {"0,1": {"weight": "3x4", "bias": "3"}}, "b": {"count": "()"}, "c": "(2)"}
    assert golden_logits.unpack(tree) == leaves
    assert [golden_logits.read_shape(text) for text in ("3x4", "(2)", "()")] == [[3, 4], [2], []]
