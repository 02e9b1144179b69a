"""A saved network with one bit changed: refused, or the same network with a warning; never another one in silence."""

import random

import pytest
import timm
import torch
from tiny import bert, deit_specs

import timm_stitch

NETWORKS = {
    "timm": lambda: timm.create_model("snnet", anchors=deit_specs(depth=2)[:2]),
    "transformers": lambda: timm_stitch.stitch([bert(16, 2), bert(32, 2)]),
}


@pytest.fixture(scope="module", params=NETWORKS)
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("flips") / request.param
    network = NETWORKS[request.param]()
    rows = [{"stitch_id": stitch_id, "top1": 50.0 + stitch_id} for stitch_id in network.stitch_ids]
    timm_stitch.save_pretrained(network, folder, results=rows)
    return folder


def flips(file, count):
    """The contents of a file with one bit changed, `count` times; the file is as it was afterwards."""
    content, rng = file.read_bytes(), random.Random(0)
    try:
        for _ in range(count):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            yield file.write_bytes(changed)
    finally:
        file.write_bytes(content)


def test_weights_with_a_flipped_bit_are_refused(saved):
    for _ in flips(saved / "model.safetensors", 120):
        with pytest.raises((ValueError, OSError), match=r"^[^\n]*model\.safetensors[^\n]*$"):
            timm_stitch.from_hub(saved)


def load(folder, extract=None):
    """The network, or None if it is refused in one line."""
    try:
        return timm_stitch.from_hub(folder, extract=extract)
    except (ValueError, OSError) as error:
        return None if len(str(error).splitlines()) == 1 else error


def test_a_stitch_of_weights_with_a_flipped_bit_is_refused_if_the_bit_is_its_own(saved):
    network = timm_stitch.from_hub(saved)
    stitch_id, refused = network.stitch_ids[len(network.plan) // 2], 0
    expected = load(saved, stitch_id).state_dict()
    for _ in flips(saved / "model.safetensors", 120):
        stitch = load(saved, stitch_id)
        refused += stitch is None
        if stitch is not None:
            own = stitch.state_dict()
            assert own.keys() == expected.keys()
            assert all(torch.equal(own[name], expected[name]) for name in own if isinstance(own[name], torch.Tensor))
    assert 20 < refused < 120


@pytest.mark.parametrize("name", ["config.json", "stitches.json"])
@pytest.mark.parametrize("extract", [None, 0])
def test_damage_in_the_other_files_is_refused_or_reported(saved, caplog, name, extract):
    load(saved, extract)
    assert not caplog.text
    for _ in flips(saved / name, 60):
        caplog.clear()
        network = load(saved, extract)
        if network is not None:
            assert isinstance(network, torch.nn.Module), network
            assert "was edited or damaged" in caplog.text or "loads without its rows" in caplog.text


def test_a_stitch_of_damaged_weights_loads_unverified(saved):
    file = saved / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # a bit of the last tensor
    refused = [
        stitch_id for stitch_id in timm_stitch.from_hub(saved, verify=False).stitch_ids if not load(saved, stitch_id)
    ]
    assert refused
    with pytest.raises(
        ValueError, match=r"model\.safetensors \(e\.g\. .* are not those that stitches\.json was written"
    ):
        timm_stitch.from_hub(saved, extract=refused[0])
    timm_stitch.from_hub(saved, extract=refused[0], verify=False)
    file.write_bytes(content)
