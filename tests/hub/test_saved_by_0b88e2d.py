"""A network of texts that commit 0b88e2d saved loads, whole and in part, and gives what it gave then.

`saved_by_0b88e2d/made_with.py` says what it is: two classifiers that are BERTs. Its files are not to be made again.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import timm_stitch

hf = pytest.importorskip("transformers", minversion="5.20")

import timm_stitch.text  # noqa: E402 registers its classes with transformers' Auto classes

FOLDER = Path(__file__).parents[1] / "saved_by_0b88e2d" / "bert"


@pytest.fixture(scope="module")
def expected():
    """A batch of texts, and logits by stitch id."""
    tensors = load_file(FOLDER / "expected.safetensors")
    batch = {name: tensors.pop(name) for name in ("input_ids", "attention_mask")}
    return batch, {int(key.removeprefix("logits.")): logits for key, logits in tensors.items()}


def load_by_transformers(folder):
    return hf.AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("load", [timm_stitch.from_hub, load_by_transformers])
@torch.no_grad()
def test_the_whole_network_gives_the_logits_it_gave_when_saved(expected, load):
    batch, logits = expected
    network = load(FOLDER).eval()
    assert (set(network.stitch_ids), network.stitch_id) == (set(logits), 3)
    assert set(network.state_dict()) == set(load_file(FOLDER / "model.safetensors"))
    assert network.config.id2label == {0: "bad", 1: "fair", 2: "good"}
    for stitch_id, before in logits.items():
        torch.testing.assert_close(network(**batch, stitch_id=stitch_id).logits, before)


@torch.no_grad()
def test_each_stitch_alone_gives_the_logits_it_gave_when_saved(expected):
    batch, logits = expected
    for stitch_id, before in logits.items():
        torch.testing.assert_close(timm_stitch.from_hub(FOLDER, extract=stitch_id)(**batch).logits, before)


def test_the_saved_rows_belong_to_the_loaded_weights():
    rows = {row["stitch_id"]: row for row in json.loads((FOLDER / "stitches.json").read_text())["stitches"]}
    table = timm_stitch.from_hub(FOLDER).stitch_table()
    assert {row["stitch_id"]: (row["top1"], row["macs"], row["params"]) for row in table} == {
        k: (row["top1"], row["macs"], row["params"]) for k, row in rows.items()
    }


@torch.no_grad()
def test_the_network_saved_again_is_the_same(expected, tmp_path):
    batch, logits = expected
    network = timm_stitch.from_hub(FOLDER)
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(network, tmp_path / "again"))
    assert again.stitch_table() == network.stitch_table()
    for stitch_id, before in logits.items():
        torch.testing.assert_close(again(**batch, stitch_id=stitch_id).logits, before)
