"""Our networks compute what the authors' code computes, with weights in the authors' layout.

The figures were made by running the authors' public code on weights that are a function of the key alone
(GOLDEN/README.md). They lie beside the repository, or where TIMM_STITCH_GOLDEN says; without them the two
tests here are skipped: `test_golden_logits` has sixteen logits of every stitch, `test_published` the tables.
"""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from golden_logits import fill, images, is_filled
from safetensors.torch import load_file

import timm_stitch  # noqa: F401

GOLDEN = Path(os.environ.get("TIMM_STITCH_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
NAMES = sorted(file.stem for file in GOLDEN.glob("snnet*.json"))
TOLERANCE = 1e-3  # on logits of unit scale

pytestmark = pytest.mark.skipif(not NAMES, reason=f"needs the whole golden figures: none in {GOLDEN}")


def authors_weights(golden):
    parameters = set(golden["parameters"])
    return fill(golden["state_dict"], {name for name in golden["state_dict"] if is_filled(name, parameters)})


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_costs_are_the_authors(name):
    golden = json.loads((GOLDEN / f"{name}.json").read_text())["stitches"]
    rows = timm.create_model(name, device="meta").stitch_table()
    assert [row["stitch_id"] for row in rows] == [row["stitch_id"] for row in golden]
    assert [row["published_macs"] for row in rows] == [row["flops_fvcore"] for row in golden]
    if "params" in golden[0]:
        assert [row["published_params"] for row in rows] == [row["params"] for row in golden]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_the_authors(name, tmp_path, record_property):
    file = tmp_path / "authors.pth"
    torch.save({"model": authors_weights(json.loads((GOLDEN / f"{name}.json").read_text()))}, file)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    file.unlink()
    expected = load_file(GOLDEN / f"{name}.logits.safetensors")
    with torch.no_grad():
        worst = {
            stitch_id: (logits - expected[f"logits.{stitch_id}"]).abs().max().item()
            for stitch_id, logits in model.forward_each(images())
        }
    assert set(worst) == {int(key.split(".")[1]) for key in expected}
    record_property("worst", max(worst.values()))
    print(f"{name}: {len(worst)} stitches, worst difference {max(worst.values()):.2g}")
    assert max(worst.values()) < TOLERANCE, worst
