"""The command line: each verb does its work, and fails in one line."""

import json

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import deit_specs

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.data.fields import about, options
from timm_stitch.training.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved network and images of ten classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("cli")
    torch.manual_seed(0)
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs()), root / "net")
    for split in ("train", "validation"):
        for label in range(10):
            (root / "images" / split / f"class{label}").mkdir(parents=True)
            for n in range(2):
                Image.new("RGB", (40, 40), (label * 20, n * 30, 0)).save(root / f"images/{split}/class{label}/{n}.png")
    return root


def run(*argv):
    return main([str(arg) for arg in argv])


def test_help_has_an_example(capsys):
    verbs = (
        "list",
        "plan",
        "init",
        "train",
        "eval",
        "recalibrate",
        "plot",
        "select",
        "profile",
        "frontier",
        "extract",
        "export",
        "convert",
    )
    for verb in (*verbs, "check", "push", "pull", "demo"):
        with pytest.raises(SystemExit) as stop:
            run(verb, "--help")
        assert stop.value.code == 0
        assert f"example: timm-stitch {verb}" in capsys.readouterr().out


def test_list_and_plan_print_what_python_gives(capsys):
    assert run("list", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"snnet_deit_tsb": 71}.items() <= {row["name"]: row["stitches"] for row in rows}.items()
    for row in rows:
        network = timm.create_model(row["name"], device="meta")
        assert (row["stitches"], row["anchors"]) == (network.num_stitches, " + ".join(network.plan.anchor_names))
        assert row["weights"] == ", ".join(tag.partition(".")[2] for tag in timm.list_pretrained(f"{row['name']}.*"))
    names = {row["name"] for row in rows}
    assert names == set(timm.list_models("snnet*")) - {"snnet", "snnet_deit", "snnet_swin"}
    assert run("plan", "deit_tiny_patch16_224", "deit_small_patch16_224") == 0
    assert "deit_tiny_patch16_224[0:8] + deit_small_patch16_224[7:12]" in capsys.readouterr().out
    options = ("--kernel-size", 1, "--direction", "slow_to_fast", "--rank", 4, "--json")
    assert run("plan", "deit_tiny_patch16_224", "deit_small_patch16_224", *options) == 0
    plan = timm_stitch.StitchPlan.from_dict(json.loads(capsys.readouterr().out))
    assert (len(plan), plan.stitches[2].name) == (14, "deit_small_patch16_224[0:1] + deit_tiny_patch16_224[0:12]")
    assert plan.layers[0].rank == 4
    three = ("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224")
    assert run("plan", *three, "--no-nearest", "--stride", 2, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["stitches"]) > 71
    assert run("plan", "snnet_deit", "--json") == 0
    assert len(timm_stitch.StitchPlan.from_dict(json.loads(capsys.readouterr().out))) == 71
    assert run("plan", "--meet", "deit_tiny_patch16_224", "deit_small_patch16_224") == 0
    assert "192" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line", ["train deit_tsb --output net", "init test_vit test_vit2 --output net", "eval snnet_deit_tsb"]
)
def test_images_are_looked_for_before_weights_are_fetched(line, monkeypatch, capsys):
    monkeypatch.setattr("timm_stitch.hub.loading.load", lambda *_, **__: pytest.fail("weights were fetched"))
    monkeypatch.setattr("timm_stitch.training.recipe.load", lambda *_, **__: pytest.fail("weights were fetched"))
    assert run(*line.split(), "--data-dir", "nowhere") == 1
    assert "there is no folder 'nowhere': set data_dir to a folder of class folders." in capsys.readouterr().err


def test_a_network_is_initialised_with_the_plan_that_was_previewed(folder, capsys):
    sources = [folder / f"anchor{n}" for n in range(2)]
    for source, spec in zip(sources, deit_specs(depth=2), strict=False):
        anchor = timm.create_model(spec.pop("architecture"), **spec)
        timm.models.save_for_hf(anchor, source, model_args=spec)
    plan = ("--kernel-size", 1, "--direction", "slow_to_fast")
    images = ("--data-dir", folder / "images", "--split", "train", "--images", 20)
    assert run("init", *sources, *plan, *images, "--output", folder / "own") == 0, capsys.readouterr().err
    stitches = timm_stitch.from_hub(folder / "own").plan.stitches
    assert [stitch.segments[0].anchor for stitch in stitches] == [0, 1, 1, 1][: len(stitches)]


def test_the_way_from_init_to_extract(folder, capsys):
    images = ("--data-dir", folder / "images")
    assert run("init", folder / "net", *images, "--split", "train", "--images", 20, "--output", folder / "init") == 0
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: local-dir:{folder / 'init'}\ninit_images: 20\nbatch_size: 10\nworkers: 0\nwarmup_epochs: 0\n"
    )
    out = ("--output", folder / "trained")
    assert run("train", recipe, *images[:0], "--data-dir", folder / "images", "--epochs", 1, "--lr", "1e-3", *out) == 0
    rows = folder / "rows.jsonl"
    assert run("eval", folder / "trained", *images, "--output", rows, "--stitch-ids", 0, 1, 9) == 0
    more = ("--stitch-ids", 1, 2, "--resume", "--passes", 2)
    assert run("eval", folder / "trained", *images, "--output", rows, *more) == 0
    assert sorted(row["stitch_id"] for row in timm_stitch.read_rows(rows)) == [0, 1, 2, 9]
    capsys.readouterr()
    assert run("select", folder / "trained", "--results", rows, "--macs", "1e9", "--json") == 0
    assert json.loads(capsys.readouterr().out)["stitch_id"] in (0, 1, 2, 9)
    assert run("plot", rows, "--output", folder / "curve.png") == 0
    assert (folder / "curve.png").exists()
    beside = ("snnet_deit_tsb", folder / "trained")
    assert run("plot", rows, "--beside", beside[0], "--output", folder / "both.png", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["path"] == str(folder / "both.png")
    assert run("plot", "snnet_swin_tsb", "--output", folder / "published.png") == 0
    assert run("plot", rows, "--beside", beside[1], "--output", folder / "no.png") == 1
    assert "has no row with a top1" in capsys.readouterr().err
    assert run("extract", folder / "trained", "--stitch-id", 9, "--output", folder / "9.safetensors") == 0


def test_recalibrate_for_all_or_for_one(folder, capsys):
    specs = [{"architecture": name, "num_classes": 10} for name in ("resnet18", "resnet34")]
    torch.manual_seed(0)
    model = timm.create_model("snnet", anchors=specs)
    timm_stitch.save_pretrained(model, folder / "resnets")
    images = ("--data-dir", folder / "images", "--split", "train", "--images", 8, "--batch-size", 4)
    assert run("recalibrate", folder / "resnets", *images, "--output", folder / "again") == 0
    again = timm.create_model(f"local-dir:{folder / 'again'}", pretrained=True).state_dict()
    before = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], again[key])}
    assert changed
    assert all(key.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for key in changed)
    one = ("--stitch-id", model.stitch_ids[-1], "--output", folder / "one.safetensors", "--json")
    assert run("recalibrate", folder / "resnets", *images, *one) == 0
    capsys.readouterr()
    alone = load_file(folder / "one.safetensors")
    assert alone.keys() == model.extract(model.stitch_ids[-1]).state_dict().keys()
    assert any(not torch.equal(alone[key], again[key]) for key in alone if key in changed)
    assert run("recalibrate", folder / "net", *images, "--output", folder / "none") == 1
    assert "has no BatchNorm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("plan", "snnet_nothing"), "there is no folder and no model 'snnet_nothing': expected a folder"),
        (("plan", "resnet18"), "is one network, not a stitchable one"),
        (("convert", "nowhere.pth", "snnet_deit_tsb", "--output", "x"), "there is no weights file 'nowhere.pth'"),
        (("plot", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_errors_are_one_line(capsys, argv, message):
    assert run(*argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


def test_unknown_fields_and_arguments(folder, capsys):
    recipe = folder / "bad.yaml"
    recipe.write_text("model: snnet_deit_tsb\n")
    assert run("train", recipe, "--learning-rate", "3") == 1
    assert "unknown fields learning_rate" in capsys.readouterr().err
    assert run("train", recipe, "--learning-rate=3", "--lr", "1e-3") == 1
    error = capsys.readouterr().err
    assert "unknown fields learning_rate: the fields are accumulate, " in error
    assert error.count("\n") == 1
    assert run("train", recipe, "more") == 1
    assert "cannot read more: give fields as --name value" in capsys.readouterr().err
    assert run("list", "--nonsense") == 2


def test_the_help_of_train_describes_every_field(capsys):
    with pytest.raises(SystemExit):
        run("train", "--help")
    shown = " ".join(capsys.readouterr().out.split())
    for name, field in (options(Recipe) | options(timm_stitch.TrainConfig)).items():
        assert f"--{name.replace('_', '-')} VALUE {field.metadata['help']} ({about(field)})" in shown, name
    assert "--epochs VALUE passes over the images (int, 1 or more, default 50)" in shown
    assert "--hflip VALUE chance of a horizontal flip (float, 0 to 1, default 0.5)" in shown
    assert "(no or bf16 or fp16, default no)" in shown


def test_fields_are_read_as_people_write_them(monkeypatch):
    given = {}
    monkeypatch.setattr(
        "timm_stitch.training.recipe.train_recipe", lambda recipe, values, device: (None, given.update(values))
    )
    monkeypatch.setattr("timm_stitch.data.processes.rank", lambda: 1)
    words = "--epochs=30 --lr 1e-4 --data_dir 2012 --teacher null --crop-scale [0.5,1] --group-bias -0.5 --model 7"
    words += " --sampling resource --distillation none --output net"
    assert run("train", "deit_tsb", *words.split(), "--model-args", "{rank: 4}", "--pretrained=false") == 0
    assert given == {
        "epochs": 30, "lr": 1e-4, "data_dir": "2012", "teacher": None, "crop_scale": [0.5, 1], "group_bias": -0.5,
        "sampling": "resource", "distillation": "none", "model": "7", "model_args": {"rank": 4}, "pretrained": False,
        "output": "net",
    }  # fmt: skip


def test_rows_of_other_images_are_not_resumed(folder, tmp_path, capsys):
    """The same files under other labels: as many images, other rows."""
    for label in range(10):
        (tmp_path / "other" / f"class{label}").mkdir(parents=True)
        for n in range(2):
            source = folder / f"images/validation/class{(label + 1) % 10}/{n}.png"
            (tmp_path / "other" / f"class{label}" / f"{n}.png").write_bytes(source.read_bytes())
    kept = tmp_path / "rows.jsonl"

    def losses(images):
        arguments = ("eval", folder / "net", "--data-dir", images, "--stitch-ids", 0, "--output", kept, "--resume")
        assert run(*arguments, "--json") == 0
        return json.loads(capsys.readouterr().out)["loss"]

    first = losses(folder / "images")
    assert losses(tmp_path / "other") != first
    assert losses(folder / "images") == first
    assert len(kept.read_text().splitlines()) == 2  # the third was taken from the file


def test_images_of_more_classes_than_the_network_are_refused(folder, tmp_path, capsys):
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(num_classes=5)), tmp_path / "five")
    assert run("eval", tmp_path / "five", "--data-dir", folder / "images") == 1
    error = capsys.readouterr().err
    assert "the images have 10 classes, the network 5: create it with num_classes=10" in error
    assert error.count("\n") == 1


def test_a_path_of_digits_stays_a_path(folder, capsys):
    assert (
        run(
            "train",
            "deit_tsb",
            "--data-dir",
            2012,
            "--model",
            folder / "net",
            "--model-args",
            "{}",
            "--output",
            folder / "no",
        )
        == 1
    )
    error = capsys.readouterr().err
    assert "there is no folder '2012': set data_dir" in error
