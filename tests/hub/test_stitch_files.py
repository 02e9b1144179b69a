"""One stitch in a file of its own: it loads again by one call, checked, and is still a plain safetensors file."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from tiny import bert, deit_specs, images, texts

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.hub.stitch_files import KEY


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stitch_files") / "net"
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=3))
    timm_stitch.save_pretrained(model, folder, label_names=["ant", "bee", "cow"])
    return folder


def extract(net, output, stitch_id=5):
    assert main(["extract", str(net), "--stitch-id", str(stitch_id), "--output", str(output)]) == 0
    return output


@pytest.mark.parametrize("load", [timm_stitch.from_hub, timm_stitch.load, lambda path: timm_stitch.load(str(path))])
def test_a_file_of_one_stitch_loads_again(net, tmp_path, load):
    file = extract(net, tmp_path / "5.safetensors")
    small, whole = load(file), timm_stitch.from_hub(net)
    with torch.no_grad():
        assert torch.equal(small(images(2)), whole(images(2), stitch_id=5))
    assert small.stitch_ids == (5,)
    assert small.pretrained_cfg["label_names"] == ["ant", "bee", "cow"]
    assert load_file(file).keys() == whole.extract(5).state_dict().keys()


def test_a_stitch_of_a_stitch_is_saved_with_its_description(net, tmp_path):
    file = extract(extract(net, tmp_path / "5.safetensors"), tmp_path / "again.safetensors")
    with torch.no_grad():
        assert torch.equal(timm_stitch.from_hub(file)(images(2)), timm_stitch.from_hub(net)(images(2), stitch_id=5))


def test_a_network_of_transformers_models_too(tmp_path):
    pytest.importorskip("transformers", minversion="5.20")
    network = timm_stitch.stitch([bert(32, 2), bert(48, 3)]).eval()
    timm_stitch.save_pretrained(network, tmp_path / "net")
    small = timm_stitch.from_hub(extract(tmp_path / "net", tmp_path / "3.safetensors", 3))
    with torch.no_grad():
        assert torch.equal(small(**texts()).logits, network(**texts(), stitch_id=3).logits)


def damaged(file, **changes):
    """The same file with other contents of its description, or other tensors."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        header = json.loads(opened.metadata()[KEY])
    tensors = load_file(file)
    if "tensors" not in changes:
        first = next(iter(tensors))
        tensors[first] = tensors[first] + changes.pop("added", 0)
    save_file(tensors, file, {KEY: json.dumps({**header, **changes})})
    return file


def test_damage_is_named(net, tmp_path):
    file = extract(net, tmp_path / "5.safetensors")
    with pytest.raises(ValueError, match="holds stitch 5, not 6: leave extract out"):
        timm_stitch.from_hub(file, extract=6)
    with pytest.raises(ValueError, match=r"1 tensors of .* are not those"):
        timm_stitch.from_hub(damaged(file, added=1))
    for stitch_id in (6, "5"):
        with pytest.raises(ValueError, match="is garbled: extract the stitch again"):
            timm_stitch.from_hub(damaged(extract(net, file), stitch_id=stitch_id))
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="has no description of its stitch"):
        timm_stitch.from_hub(file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a readable weights file"):
        timm_stitch.from_hub(file)
