"""timm's readers whose images come in an order of their own."""

import io
import json
import os
import tarfile

import pytest
import yaml
from PIL import Image
from tiny import deit_specs
from training_run import start_two

from timm_stitch.cli.entry import main
from timm_stitch.data.config import DataConfig
from timm_stitch.data.dataset import open_dataset
from timm_stitch.data.loader import build_loader

pytest.importorskip("webdataset", reason="needs webdataset: pip install webdataset")


@pytest.fixture
def shards(tmp_path):
    """Two shards of ten images for each split."""
    info = {}
    for split in ("train", "validation"):
        names = [f"{split}-{shard}.tar" for shard in range(2)]
        for shard, name in enumerate(names):
            with tarfile.open(tmp_path / name, "w") as tar:
                for label in range(10):
                    file = io.BytesIO()
                    Image.new("RGB", (40, 40), (label * 20, shard * 40, 0)).save(file, "PNG")
                    for kind, data in (("png", file.getvalue()), ("cls", str(label).encode())):
                        entry = tarfile.TarInfo(f"{split}{shard}{label}.{kind}")
                        entry.size = len(data)
                        tar.addfile(entry, io.BytesIO(data))
        info[split] = {"name": split, "num_samples": 20, "filenames": names, "shard_lengths": [10, 10]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": info}))
    return tmp_path


@pytest.fixture
def recipe(shards):
    values = {
        "model": "snnet", "model_args": {"anchors": deit_specs(depth=2)}, "pretrained": False, "init_images": 8,
        "dataset": "wds/x", "data_dir": str(shards), "epochs": 2, "batch_size": 10, "workers": 0, "mixup": 0,
        "cutmix": 0, "output": str(shards / "out"),
    }  # fmt: skip
    (shards / "recipe.yaml").write_text(yaml.safe_dump(values))
    return str(shards / "recipe.yaml")


def test_a_recipe_on_webdataset_shards(shards, recipe, capsys):
    assert main(["train", recipe, "--json"]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 4
    data = ["--dataset", "wds/x", "--data-dir", str(shards), "--json"]
    assert main(["eval", str(shards / "out"), *data, "--stitch-ids", "0"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 20
    assert main(["train", recipe, "--repeated-aug", "3", "--output", str(shards / "two")]) == 1
    assert "repeated_aug must be 1 for wds/" in capsys.readouterr().err


@pytest.mark.parametrize("dataset", ["wds/x", None])
def test_no_more_processes_read_than_there_are_cpus(tmp_path, shards, monkeypatch, dataset):
    """torch warns of more, and the default of a recipe is four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    for n in range(4):
        (tmp_path / "train" / str(n % 2)).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / f"train/{n % 2}/{n}.png")
    for workers, used in ((4, 2), (1, 1), (0, 0)):
        config = DataConfig(dataset=dataset, data_dir=str(tmp_path), batch_size=4, workers=workers)
        loader, _ = build_loader(open_dataset(config, training=True), config, 1)
        assert (loader if dataset is None else loader.loader).num_workers == used


@pytest.mark.slow
def test_two_processes_see_every_image_once(shards, recipe):
    log = json.loads(start_two("-m", "timm_stitch", "train", recipe, "--json")[0])
    assert (log["steps"], log["images"]) == (4, 40)
    command = ("-m", "timm_stitch", "eval", shards / "out", "--dataset", "wds/x", "--data-dir", shards, "--json")
    rows = start_two(*command, "--stitch-ids", "0")[0]
    assert json.loads(rows)["images"] == 20


def spoil(shards, name):
    """Cut an image of a shard short."""
    kept = []
    with tarfile.open(shards / name) as tar:
        for entry in tar:
            kept.append((entry.name, tar.extractfile(entry).read()))
    with tarfile.open(shards / name, "w") as tar:
        for number, (entry_name, data) in enumerate(kept):
            entry = tarfile.TarInfo(entry_name)
            data = b"no image" if number == 6 else data
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_check_reads_a_stream_to_its_end(shards, capsys):
    data = ("check", str(shards), "--dataset", "wds/x")
    assert main([*data]) == 0
    told = capsys.readouterr().out
    assert "train: 20 images of 10 classes; sizes 40x40 (20)" in told
    assert "validation: 20 images of 10 classes; sizes 40x40 (20)" in told
    assert "warning" not in told
    for shard in range(2):
        spoil(shards, f"train-{shard}.tar")
    assert main([*data, "--json"]) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert (found["splits"][0]["images"], found["splits"][0]["read"], found["splits"][0]["missing"]) == (20, 18, 2)
    assert found["warnings"][0].startswith("train: the reader lists 20 images, and 18 came")
    assert "train lacks classes that validation has: 3." in found["warnings"]
    assert "error: 2 images cannot be read: replace or remove them." in told.err


def test_training_says_that_a_stream_is_not_looked_at(shards, recipe, capsys):
    assert main(["train", recipe, "--max-steps", "1"]) == 0
    told = capsys.readouterr()
    assert "train: 20 images as a stream, read as they come: timm-stitch check reads them all." in told.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shards: (shards / "_info.json").unlink(), "split train not found in info"),
        (lambda shards: (shards / "_info.json").write_text('{"splits": {"train": {}}}'), "KeyError 'num_samples'"),
        (lambda shards: (shards / "train-1.tar").unlink(), "error: 10 images cannot be read"),
        (lambda shards: (shards / "train-1.tar").write_bytes(b"no tar"), "train: the reader lists 20 images"),
    ],
)
def test_a_stream_that_is_not_there_is_said_in_a_line(shards, capsys, change, message):
    change(shards)
    assert main(["check", str(shards), "--dataset", "wds/x"]) == 1
    told = capsys.readouterr()
    assert message in told.out + told.err
    assert len([line for line in told.err.splitlines() if line.startswith("error: ")]) == 1
