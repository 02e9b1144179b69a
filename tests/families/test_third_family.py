"""A family that the package does not know needs nothing but its answers to `Family`: the door is one for all."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock
from torchvision_family import TorchvisionFamily

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.families import registry


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", list(registry._FAMILIES))
    registry.register_family(TorchvisionFamily())


@pytest.fixture
def models():
    torch.manual_seed(0)
    return [ResNet(BasicBlock, depths, num_classes=5).eval() for depths in ([1, 1, 1, 1], [2, 2, 2, 2])]


@pytest.fixture
def network(models):
    return timm_stitch.stitch(models).eval()


def test_it_stitches_and_runs(network, models):
    x = torch.randn(4, 3, 64, 64)
    assert (type(network).__name__, network.num_stitches) == ("StitchedResNet", 6)
    for stitch_id, model in enumerate(models):
        assert torch.equal(network(x, stitch_id=stitch_id), model(x))
    timm_stitch.least_squares_init(network, torch.randn(130, 3, 64, 64))
    each = dict(network.forward_each(x))
    for stitch_id in network.stitch_ids:
        assert torch.equal(each[stitch_id], network(x, stitch_id=stitch_id))
        assert torch.equal(each[stitch_id], network.extract(stitch_id)(x))
    ids = [0, 5, 5, 1]
    torch.testing.assert_close(network(x, stitch_id=ids), torch.stack([each[k][i] for i, k in enumerate(ids)]))


def test_costs_are_those_of_its_tensors(network):
    for row in network.stitch_table():
        assert row["params"] == sum(p.numel() for p in network.extract(row["stitch_id"]).parameters())
        assert row["macs"] > 0


def test_it_trains_and_is_evaluated(network):
    data = [(torch.randn(3, 64, 64), n % 5) for n in range(8)]
    timm_stitch.train(
        network, timm_stitch.TrainConfig(batch_size=4, epochs=1, lr=1e-3), train_data=data, progress=False
    )
    rows = timm_stitch.evaluate(network, torch.utils.data.DataLoader(data, 4))
    assert timm_stitch.select(network, rows, macs=1e12) in network.stitch_ids


def test_it_is_saved_and_loads_whole_or_one_stitch_alone(network, tmp_path):
    x = torch.randn(2, 3, 64, 64)
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in network.stitch_ids]
    timm_stitch.save_pretrained(network, tmp_path / "net", results=rows)
    again = timm_stitch.from_hub(tmp_path / "net")
    assert again.results.rows[3]["top1"] == 53.0
    for stitch_id in (0, 2, 5):
        assert torch.equal(again(x, stitch_id=stitch_id), network(x, stitch_id=stitch_id))
        small = timm_stitch.from_hub(tmp_path / "net", extract=stitch_id)
        assert torch.equal(small(x), network(x, stitch_id=stitch_id))
        assert len(small.state_dict()) < len(network.state_dict())
    assert "library_name: timm_stitch" in (tmp_path / "net" / "README.md").read_text()


def test_the_command_line_knows_it(network, tmp_path, capsys):
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in network.stitch_ids]
    folder = str(timm_stitch.save_pretrained(network, tmp_path / "net", results=rows))
    assert main(["plan", folder, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["stitches"]) == 6
    assert main(["select", folder, "--macs", "1e12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stitch_id"] == 5
    assert main(["extract", folder, "--stitch-id", "4", "--output", str(tmp_path / "4.safetensors")]) == 0
    assert main(["frontier", folder]) == 0
    assert main(["profile", folder, "--repeats", "1", "--stitch-ids", "0", "4", "--json"]) == 0


def test_a_family_in_fewer_than_sixty_lines():
    assert len(Path(__file__).with_name("torchvision_family.py").read_text().splitlines()) < 60


def test_models_of_two_families_are_refused(models):
    with pytest.raises(TypeError, match="cannot stitch models of timm and torchvision into one network"):
        timm_stitch.stitch([models[0], tiny.deits()[0]])
