"""Files of rows say what is true, or the command line says what is wrong with them; a look at images."""

import json
import shutil

import pytest
import timm
import torch
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.data import reports
from timm_stitch.data.config import DataConfig
from timm_stitch.data.look import inspect_split, summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("figures")
    torch.manual_seed(0)
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=3)), root / "net")
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=3)), root / "two")
    for split in ("train", "validation"):
        for label in "abc":
            (root / "images" / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 40), (ord(label), 30, 0)).save(root / f"images/{split}/{label}/0.png")
    return root


def run(*argv):
    return main([str(arg) for arg in argv])


def test_rows_are_neither_lost_nor_mixed(folder, tmp_path, capsys):
    rows, images = tmp_path / "rows.jsonl", ("--data-dir", folder / "images")
    assert run("eval", folder / "net", *images, "--output", rows) == 0
    whole = rows.read_text()
    assert run("eval", folder / "net", *images, "--output", rows, "--stitch-ids", 2) == 1
    assert "rows.jsonl' holds rows of stitches that would be lost (0, 1, " in capsys.readouterr().err
    assert run("eval", folder / "two", *images, "--output", rows, "--resume") == 1
    assert "rows.jsonl' holds rows of other weights (" in capsys.readouterr().err
    assert rows.read_text() == whole
    assert run("eval", folder / "two", *images, "--output", tmp_path / "two.jsonl") == 0
    rows.write_text(whole + (tmp_path / "two.jsonl").read_text())
    for verb in ("plot", "frontier"):
        assert run(verb, rows) == 1
        assert "rows.jsonl' holds rows of 2 different weights (" in capsys.readouterr().err


def test_eval_saves_into_the_folder(folder, capsys):
    assert run("select", folder / "net", "--macs", 1e12) == 1
    assert run("eval", folder / "net", "--data-dir", folder / "images", "--save") == 0
    assert run("select", folder / "net", "--macs", 1e12) == 0
    assert run("eval", "snnet_deit_tsb", "--save") == 1
    assert "--save adds figures to a network's folder, and 'snnet_deit_tsb' is not one" in capsys.readouterr().err


def test_select_by_a_latency_that_was_not_measured_names_the_command(folder, tmp_path, capsys):
    model = timm_stitch.from_hub(folder / "two")
    model.results.add({"stitch_id": k, "top1": 50.0} for k in model.stitch_ids)
    timm_stitch.save_pretrained(model, tmp_path / "net")
    for words in (["select", tmp_path / "net"], ["predict", tmp_path / "net", "cat.jpg"]):
        assert run(*words, "--latency-ms", 20) == 1
        assert capsys.readouterr().err == (
            "error: stitch 0 has no latency_ms yet: measure it by timm_stitch.profile, or timm-stitch profile "
            f"{tmp_path / 'net'} --save.\n"
        )


def test_select_of_a_published_network_needs_no_weights(capsys, monkeypatch):
    def load(names, *, pretrained, device):
        assert (pretrained, device) == (False, "meta")
        return original(names, pretrained=pretrained, device=device)

    original = timm_stitch.load
    monkeypatch.setattr("timm_stitch.hub.loading.load", load)
    assert run("select", "snnet_deit_tsb", "--macs", 3e9, "--json") == 0
    assert json.loads(capsys.readouterr().out)["published_top1"] > 70


def test_list_has_no_network_twice(capsys):
    assert run("list", "--json") == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert "snnet_deit_tsb" in names
    assert not {"snnet_deit", "snnet_swin"} & set(names)


def test_check_tells_what_is_wrong_with_images(folder, tmp_path, capsys):
    assert run("check", folder / "images") == 0
    assert "train: 3 images of 3 classes; sizes 40x40 (3); modes RGB (3)" in capsys.readouterr().out
    for split, classes in (("train", "ab"), ("validation", "b")):
        for label in classes:
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("L", (8, 8)).save(tmp_path / split / label / "0.png")
    (tmp_path / "train/a/1.png").write_bytes(b"no image")
    (tmp_path / "train/a/2.webp").write_bytes(b"")
    assert run("check", tmp_path / "none") == 1
    assert "error: there is no folder" in capsys.readouterr().err
    assert run("check", tmp_path, "--json") == 1
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert "error: 1 images cannot be read" in told.err
    first = found["splits"][0]
    assert (first["passed_over"], first["modes"], first["classes"]) == ({".webp": 1}, {"L": 2}, ["a", "b"])
    text = "\n".join(found["warnings"])
    for part in ("train/a/1.png' cannot be read", "1 files (.webp) are skipped", "validation lacks classes"):
        assert part in text


def test_anchors_of_ones_own(folder, tmp_path, capsys):
    for spec in deit_specs(depth=2, num_classes=3)[:2]:
        anchor = timm.create_model(spec["architecture"], **{k: v for k, v in spec.items() if k != "architecture"})
        kept = {k: v for k, v in spec.items() if k not in ("architecture", "num_classes")}
        timm.models.save_for_hf(anchor, tmp_path / spec["architecture"], model_args=kept)
    names = (tmp_path / "deit_tiny_patch16_224", f"local-dir:{tmp_path / 'deit_small_patch16_224'}")
    assert run("plan", *names) == 0
    assert "deit_small_patch16_224" in capsys.readouterr().out
    assert run("init", *names, "--data-dir", folder / "images", "--images", 3, "--output", tmp_path / "net") == 0
    assert len(timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).plan.anchors) == 2


def test_training_looks_at_the_images_before_the_first_step(folder, tmp_path, capsys, caplog):
    images = shutil.copytree(folder / "images", tmp_path / "images")
    (images / "train" / "a" / "notes.txt").write_text("no image")
    shutil.rmtree(images / "validation" / "b")
    net = timm_stitch.from_hub(folder / "net")
    values = {"data_dir": str(images), "batch_size": 2, "max_steps": 1, "auto_augment": None, "workers": 0}
    config = timm_stitch.TrainConfig(**values, evaluate_every=1)
    timm_stitch.train(net, config)
    out = capsys.readouterr()
    assert "train: 3 images of 3 classes; sizes 40x40 (3); modes RGB (3)" in out.out + out.err
    assert "train: 1 files (.txt) are skipped" in caplog.text
    assert "validation lacks classes that train has: b." in caplog.text
    timm_stitch.save_pretrained(net, tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "config.json").read_text())["label_names"] == ["a", "b", "c"]
    (images / "train" / "c" / "0.png").write_bytes(b"no image")
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ValueError, match="1 images cannot be read: replace or remove them"):
        timm_stitch.train(net, timm_stitch.TrainConfig(**values))
    assert "c/0.png" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_look_that_is_cut_short_says_how_many_were_read(folder):
    config = DataConfig(data_dir=str(folder / "images"))
    found = inspect_split(config, training=True, seconds=-1)
    assert (found["images"], found["read"]) == (3, 0)
    assert "of which 0 were read" in summary(found)
    assert sorted(reports.spread(7)) == list(range(7))


def test_init_with_other_classes(folder, tmp_path):
    images = ("--data-dir", folder / "images", "--images", 3, "--output", tmp_path / "new")
    assert run("init", folder / "net", "--num-classes", 7, *images) == 0
    assert timm_stitch.from_hub(tmp_path / "new").num_classes == 7


def test_a_mapping_without_a_blank_is_refused(folder, capsys):
    images = ("--data-dir", folder / "images", "--output", folder / "none")
    assert run("train", "folder", "--model-args", "{num_classes:9}", *images) == 1
    said = capsys.readouterr().err
    assert "'{num_classes:9}' has no space after a colon: write '{num_classes: 9}'" in said
    assert said.count("\n") == 1
