"""What version 0.1.0 saved loads, whole and in part, and gives what it gave then.

`saved_by_0_1_0/made_with.py` says what the two networks are. Their files are not to be made again: weights there hold a
tensor `stitched_norm`, which says whether stitched paths run the final norm.
"""

import json
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import timm_stitch

FOLDERS = {
    folder.name: folder for folder in (Path(__file__).parents[1] / "saved_by_0_1_0").iterdir() if folder.is_dir()
}
FOLDERS.pop("__pycache__", None)


@pytest.fixture(params=sorted(FOLDERS))
def folder(request):
    return FOLDERS[request.param]


@pytest.fixture
def expected(folder):
    """Images, and logits by stitch id."""
    tensors = load_file(folder / "expected.safetensors")
    return tensors.pop("images"), {int(key.removeprefix("logits.")): logits for key, logits in tensors.items()}


def rows_of(folder):
    return {row["stitch_id"]: row for row in json.loads((folder / "stitches.json").read_text())["stitches"]}


def test_these_are_the_files_of_0_1_0():
    assert sorted(FOLDERS) == ["deit_two_way_without_norm", "resnet"]
    for name, folder in FOLDERS.items():
        with safe_open(folder / "model.safetensors", "pt") as weights:
            assert weights.get_tensor("stitched_norm").item() is (name == "resnet")


def load_whole(folder):
    return timm_stitch.from_hub(folder, verify=True)


def load_as_timm_does(folder):
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


@pytest.mark.parametrize("load", [load_whole, load_as_timm_does])
def test_the_whole_network_gives_the_logits_it_gave_when_saved(folder, expected, load):
    images, logits = expected
    model = load(folder)
    assert set(model.stitch_ids) == set(logits)
    with torch.no_grad():
        for stitch_id, before in logits.items():
            torch.testing.assert_close(model(images, stitch_id=stitch_id), before)


def test_each_stitch_alone_gives_the_logits_it_gave_when_saved(folder, expected):
    images, logits = expected
    for stitch_id, before in logits.items():
        with torch.no_grad():
            torch.testing.assert_close(timm_stitch.from_hub(folder, extract=stitch_id)(images), before)


def test_the_final_norm_is_as_it_was_saved(expected, folder):
    if folder.name != "deit_two_way_without_norm":
        assert load_whole(folder).stitched_norm
        return
    images, logits = expected
    other = timm.create_model(f"local-dir:{folder}", pretrained=True, stitched_norm=True).eval()
    assert other.stitched_norm
    assert not load_whole(folder).stitched_norm
    with torch.no_grad():
        for stitch in other.plan:
            after = other(images, stitch_id=stitch.stitch_id)
            assert stitch.is_anchor == torch.allclose(after, logits[stitch.stitch_id], atol=1e-3)


def test_the_saved_rows_belong_to_the_loaded_weights(folder):
    rows = rows_of(folder)
    model = load_whole(folder)
    assert {row["stitch_id"]: row["top1"] for row in model.stitch_table()} == {
        k: row["top1"] for k, row in rows.items()
    }
    for budget in sorted(row["macs"] for row in rows.values()):
        chosen = rows[timm_stitch.select(model, macs=budget)]
        assert chosen["macs"] <= budget
        assert chosen["top1"] == max(row["top1"] for row in rows.values() if row["macs"] <= budget)


def test_saved_again_it_is_the_same_network(folder, expected, tmp_path):
    images, logits = expected
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(load_whole(folder), tmp_path / "again"))
    assert again.stitch_table() == load_whole(folder).stitch_table()
    with torch.no_grad():
        for stitch_id, before in logits.items():
            torch.testing.assert_close(again(images, stitch_id=stitch_id), before)


def test_changed_weights_are_still_refused(folder, tmp_path):
    """The fingerprint of 0.1.0 is of names, shapes and values: that it is believed is no free pass."""
    copy = Path(shutil.copytree(folder, tmp_path / "net"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-40:] = bytes(40)
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match="weights"):
        load_whole(copy)
