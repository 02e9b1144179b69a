"""Recipes: every shipped one is read and runs two steps; what is wrong in one is refused by name."""

import json

import pytest
import timm
import torch
import yaml
from dense_run import write_scenes
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.network.weights import fingerprint
from timm_stitch.training.recipe import read_recipe, shipped_recipes

PAPERS = {  # SN-Net and SN-Netv2: epochs, batch, optimiser, learning rate, weight decay, distillation
    "deit_tsb": (50, 1024, "adamw", 1e-4, 0.05, "hard"),
    "deit_tsb_15": (15, 1024, "adamw", 1e-4, 0.05, "hard"),
    "swin_tsb": (50, 1024, "adamw", 1e-3, 0.05, "hard"),
    "resnet_18_50": (30, 1024, "sgd", 0.05, 2e-5, "hard"),
    "resnet18_swin_t": (30, 1024, "sgd", 0.05, 2e-5, "hard"),
    "levit_192_256": (100, 1024, "adamw", 1e-4, 0.025, "hard"),
    "deit3_v2_sb": (50, 512, "lamb", 3e-5, 0.02, "none"),
    "deit3_v2_sl": (50, 512, "lamb", 3e-5, 0.02, "none"),
    "deit3_v2_bl": (50, 512, "lamb", 3e-5, 0.02, "none"),
}
DENSE = ("deit3_v2_setr_ade20k", "deit3_v2_setr_coco_stuff10k", "deit3_v2_dpt_nyu", "segmentation", "depth")
DROP_PATH = {"deit3_v2_sb": [0.05, 0.15], "deit3_v2_sl": [0.05, 0.4], "deit3_v2_bl": [0.15, 0.4], "swin_tsb": 0.2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for label in range(10):
        (root / "train" / f"class{label}").mkdir(parents=True)
        for n in range(2):
            Image.new("RGB", (40, 40), (label * 20, n * 30, 0)).save(root / f"train/class{label}/{n}.png")
    return root


def test_shipped_values_are_those_of_the_papers():
    assert set(shipped_recipes()) == {*PAPERS, *DENSE, "folder"}
    for name, values in PAPERS.items():
        recipe = read_recipe(name)
        c = recipe.config
        assert (c.epochs, c.batch_size, c.opt, c.lr, c.weight_decay, c.distillation) == values, name
        assert c.teacher == ("regnety_160.deit_in1k" if c.distillation == "hard" else None)
        assert recipe.init_images == 100
        assert c.precision == "fp16"
        assert recipe.model_args.get("drop_path_rate") == DROP_PATH.get(name, 0.1 if "deit_tsb" in name else None)
    swin, levit, v2 = (read_recipe(name).config for name in ("swin_tsb", "levit_192_256", "deit3_v2_sl"))
    assert (swin.anchor_lr_scale, swin.stitch_lr_scale, swin.clip_grad) == (0.1, 1.0, 5.0)
    assert (swin.warmup_lr, swin.min_lr) == (1e-6, 1e-5)  # 5e-7 and 5e-6 for 512 images, scaled to 1024
    assert (levit.clip_mode, levit.clip_grad) == ("agc", 0.01)
    for name in ("resnet_18_50", "resnet18_swin_t"):
        c = read_recipe(name).config
        assert (c.anchor_lr_scale, c.warmup, c.erase, c.train_interpolation) == (0.1, 5, 0.6, "random")
        assert c.auto_augment == "rand-m9-mstd0.5-inc1"
    assert v2.min_lr == 1e-5
    assert (v2.sampling, v2.group_width, v2.mixup, v2.cutmix, v2.auto_augment) == ("resource", 1e9, 0, 1, "3a")


@pytest.mark.parametrize("name", sorted(PAPERS))
def test_every_recipe_runs_two_steps(name, folder, tmp_path, capsys):
    recipe = read_recipe(name)
    rate = recipe.model_args.get("drop_path_rate", 0.0)
    anchors = deit_specs(depth=2, in_chans=3)
    anchors = anchors[: len(rate)] if isinstance(rate, list) else anchors
    overrides = {
        "model": "snnet", "model-args": json.dumps({"anchors": anchors, "drop_path_rate": rate}), "pretrained": "false",
        "init-images": 8, "data-dir": folder, "batch-size": 10, "epochs": 1, "warmup-epochs": 0.5, "workers": 0,
        "precision": "no", "distillation": "none", "teacher": "null", "output": tmp_path / "net",
    }  # fmt: skip
    arguments = [part for field, value in overrides.items() for part in (f"--{field}", str(value))]
    assert main(["train", name, "--json", *arguments]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2


def test_shipped_values_of_dense_recipes_are_those_of_the_papers():
    for name, classes, steps in (("ade20k", 150, 160_000), ("coco_stuff10k", 171, 80_000)):
        recipe = read_recipe(f"deit3_v2_setr_{name}")
        c, dense = recipe.config, recipe.dense
        assert (c.batch_size, c.opt, c.lr, c.momentum, c.weight_decay, c.max_steps) == (
            16,
            "sgd",
            0.01,
            0.9,
            5e-4,
            steps,
        )
        assert (c.sched, c.decay_rate, c.min_lr, c.sampling, c.group_width) == ("poly", 0.9, 1e-4, "resource", 1e10)
        assert (c.crop_size, c.short_side, c.scale_range, c.cat_max_ratio) == ((512, 512), 512, (0.5, 2.0), 0.75)
        assert (recipe.init_images, recipe.model_args["drop_path_rate"]) == (50, 0.1)
        assert (dense["head"], dense["num_classes"], dense["tie"]) == ("setr", classes, True)
        assert dense["levels"] == [[4, 7, 9, 11], [9, 14, 19, 23]]
        assert c.reduce_zero_label == (name == "ade20k")
    depth = read_recipe("deit3_v2_dpt_nyu")
    c = depth.config
    assert (c.epochs, c.opt, c.lr, c.anchor_lr_scale, c.sched) == (24, "adamw", 2e-5, 0.1, "onecycle")
    assert (depth.dense["head"], depth.dense["max_depth"]) == ("dpt", 10.0)
    assert depth.dense["levels"] == [[2, 5, 8, 11], [4, 11, 17, 23]]


@pytest.mark.parametrize("name", ["segmentation", "depth"])
def test_recipes_for_ones_own_masks_and_depths_learn_from_the_labels(name):
    config = read_recipe(name).config
    assert (config.sampling, config.inplace_distillation, config.distillation) == ("sandwich", False, "none")


@pytest.mark.parametrize("name", DENSE)
def test_every_dense_recipe_runs_two_steps(name, tmp_path, capsys):
    dense = dict(read_recipe(name).dense, levels=2)
    task = dense.get("task", "segmentation")
    write_scenes(tmp_path / "data", task, count=16)
    if read_recipe(name).config.reduce_zero_label:
        dense["num_classes"] = 150
    model_args = dict.fromkeys(read_recipe(name).model_args) | {"anchors": deit_specs(depth=2)[:2]}
    overrides = {
        "model": "snnet", "model-args": json.dumps(model_args), "dense": json.dumps(dense),
        "pretrained": "false", "init-images": 8, "data-dir": tmp_path / "data", "batch-size": 6, "epochs": 1,
        "warmup-epochs": 0.5, "workers": 0, "precision": "no", "crop-size": "[32, 32]", "short-side": 32,
        "eigen-crop": "false", "output": tmp_path / "net", "evaluate-every": 1,
    }  # fmt: skip
    arguments = [part for field, value in overrides.items() for part in (f"--{field}", str(value))]
    assert main(["train", name, "--json", *arguments]) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["steps"] == 2
    assert main(["eval", str(tmp_path / "net"), "--data-dir", str(tmp_path / "data"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["images"] == 4
    assert ("miou" in row) == (task == "segmentation")


def test_a_dense_recipe_that_does_not_fit_is_refused(tmp_path):
    small = {"model_args": {"anchors": deit_specs(depth=2)}, "pretrained": False, "data_dir": str(tmp_path)}
    with pytest.raises(ValueError, match="dense has unknown arguments heads"):
        timm_stitch.train_recipe("segmentation", small | {"dense": {"heads": 1}}, progress=False)
    with pytest.raises(ValueError, match="init_classifiers=3 has no effect with dense"):
        read_recipe("segmentation", {"init_classifiers": 3})


@pytest.fixture
def small(tmp_path, folder):
    """A recipe for a small network on a few images."""
    values = {
        "model": "snnet", "model_args": {"anchors": deit_specs(depth=2)}, "pretrained": False, "init_images": 8,
        "data_dir": str(folder), "epochs": 1, "batch_size": 10, "warmup_epochs": 0, "workers": 0, "trackers": None,
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "small.yaml"


def test_python_runs_a_recipe_as_the_command_line_does(small, tmp_path, capsys):
    torch.manual_seed(3)
    model, log = timm_stitch.train_recipe(small, {"lr": 1e-3}, progress=False)
    assert (log["steps"], log["images"]) == (2, 20)
    assert isinstance(model, timm_stitch.SNNet)
    assert model.trained["runs"][-1]["lr"] == 1e-3
    torch.manual_seed(3)
    assert main(["train", str(small), "--lr=1e-3", "--output", str(tmp_path / "other"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["loss"] == log["loss"]
    other = timm.create_model(f"local-dir:{tmp_path / 'other'}", pretrained=True)
    assert fingerprint(other) == fingerprint(model)


@pytest.mark.parametrize("kept", [False, True])
def test_a_run_that_is_resumed_is_not_initialised_again(small, tmp_path, monkeypatch, kept):
    if kept:
        timm_stitch.train_recipe(small, {"max_steps": 1}, progress=False)
    initialised = []
    monkeypatch.setattr(
        "timm_stitch.training.recipe.least_squares_init", lambda model, images, **_: initialised.extend(images)
    )
    _, log = timm_stitch.train_recipe(small, {"resume": "auto"}, progress=False)
    assert log["steps"] == 2
    assert sum(map(len, initialised)) == (0 if kept else 8)


def test_another_model_leaves_out_what_made_the_recipes_own(small, tmp_path):
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(depth=2)), tmp_path / "net")
    recipe = read_recipe("folder", {"model": str(tmp_path / "net")})
    assert (recipe.model_args, recipe.init_images) == ({}, 0)  # its trained stitching layers stay
    assert read_recipe("folder", {"model": "snnet"}).model_args["num_classes"] == 10
    assert read_recipe("deit_tsb", {"model": "snnet_deit"}).model_args == {"drop_path_rate": 0.1}
    assert read_recipe("folder", {"model": "snnet_deit", "init_images": 3}).init_images == 3


def test_model_args_are_merged_over_those_of_the_recipe(caplog):
    anchors = deit_specs(depth=2)
    own = {"anchors": anchors, "stitched_norm": False}
    assert read_recipe("deit_tsb", {"model_args": {"stitched_norm": False}}).model_args == {
        "drop_path_rate": 0.1, "stitched_norm": False,
    }  # fmt: skip
    assert read_recipe("deit_tsb", {"model_args": {"drop_path_rate": None}}).model_args == {}
    assert read_recipe("folder", {"model_args": {"num_classes": 5}}).model_args["anchors"]
    assert caplog.text == ""
    other = read_recipe("deit_tsb", {"model": "snnet", "model_args": own})
    assert other.model_args == {"drop_path_rate": 0.1, **own}
    assert "the recipe's model_args {'drop_path_rate': 0.1} apply to 'snnet', too" in caplog.text
    assert read_recipe("folder", {"model": "net"}).model_args == {}
    assert "the recipe's model_args (anchors, num_classes) make its own model: not used for 'net'." in caplog.text


@pytest.mark.parametrize(
    ("recipe", "overrides", "left_out"),
    [
        ("deit_tsb", {"distillation": "none"}, {"teacher": None}),
        ("deit3_v2_sl", {"sampling": "sandwich"}, {"group_width": None}),
        ("deit3_v2_sl", {"groups": 8}, {"group_width": None}),
        ("swin_tsb", {"tune": "stitches"}, {"anchor_lr_scale": 1}),
        ("swin_tsb", {"clip_grad": None, "clip_mode": "norm"}, {}),
        ("levit_192_256", {"clip_grad": None}, {"clip_mode": "norm"}),
        ("folder", {"dense": {"head": "linear"}}, {}),
    ],
)
def test_what_an_override_makes_useless_is_left_out_with_a_warning(recipe, overrides, left_out, caplog):
    config = read_recipe(recipe, overrides).config
    assert {name: getattr(config, name) for name in left_out} == left_out
    cause = next(iter(overrides))
    for name in left_out:
        assert f"the recipe's {name}=" in caplog.text
        assert f" has no effect with {cause}=" in caplog.text
    with pytest.raises(ValueError, match=r"teacher='resnet18' has no effect"):
        read_recipe(recipe, {"distillation": "none", "teacher": "resnet18"})
    if recipe == "folder":
        assert read_recipe(recipe, overrides).init_classifiers == 0


def test_the_authors_average_is_a_field(small, tmp_path, monkeypatch):
    methods = []
    monkeypatch.setattr(
        "timm_stitch.training.recipe.least_squares_init", lambda *_, method, **__: methods.append(method)
    )
    for overrides in ({}, {"init_method": "average", "output": str(tmp_path / "other")}):
        timm_stitch.train_recipe(small, overrides, progress=False)
    assert methods == ["joint", "average"]
    with pytest.raises(ValueError, match="init_method='average' has no effect: set init_images"):
        read_recipe(small, {"init_images": 0, "init_method": "average"})


def test_a_warm_up_is_shortened_with_the_epochs(caplog):
    assert read_recipe("folder", {"epochs": 1}).config.warmup == 0.1
    assert "warmup_epochs is 0.1 instead of 1, in proportion to epochs=1." in caplog.text
    assert read_recipe("deit_tsb", {"epochs": 5}).config.warmup == 0.5
    assert read_recipe("deit_tsb", {"epochs": 15}).config.warmup == 5  # which ends: it stays
    with pytest.raises(ValueError, match=r"warmup_epochs must be below epochs=2, .* got 2"):
        read_recipe("folder", {"epochs": 2, "warmup_epochs": 2})


def test_a_paper_recipe_distils_from_a_timm_teacher(folder, monkeypatch):
    """The teacher is made by its name, with pretrained weights; here a small one stands in for it."""
    config = read_recipe(
        "deit_tsb", {"batch_size": 10, "epochs": 1, "warmup_epochs": 0, "workers": 0, "precision": "no"}
    ).config
    create, asked = timm.create_model, []

    def stand_in(name, pretrained=False, **kwargs):
        asked.append((name, pretrained))
        return create(
            "vit_tiny_patch16_224", num_classes=10, img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=1
        )

    model = create("snnet", anchors=deit_specs(depth=2))
    other = create("snnet", anchors=deit_specs(depth=2, num_classes=12))
    monkeypatch.setattr("timm_stitch.training.distillation.timm.create_model", stand_in)
    config = timm_stitch.TrainConfig.from_dict({**vars(config), "data_dir": str(folder)})
    log = timm_stitch.train(model, config, progress=False)
    assert log["steps"] == 2
    assert asked == [("regnety_160.deit_in1k", True)]
    with pytest.raises(ValueError, match="has 10 classes, the network 12"):
        timm_stitch.train(other, config, progress=False)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("model: snnet\nlearning_rate: 3\n", ValueError, "unknown fields learning_rate"),
        ("model: snnet\nlr: 1e-3\nlr: 1e-4\n", ValueError, "fields given twice: lr"),
        ("model: snnet\nepochs: ten\n", TypeError, "epochs must be of type int, got 'ten'"),
        ("model: snnet\nepochs: 3.5\n", TypeError, "epochs must be of type int, got 3.5"),
        ("model: snnet\nlr: true\n", TypeError, "lr must be of type float, got True"),
        ("model: snnet\ninit_images: -1\n", ValueError, "init_images must be 0 or more, got -1"),
        ("model: snnet\nmodel_args: 3\n", TypeError, "model_args must be of type dict.*, got 3"),
        ("lr: 1e-3\n", ValueError, "names no model"),
        ("- 3\n", ValueError, "is not a recipe: expected a YAML file"),
        ("a: [\n", ValueError, "is not YAML"),
        ("model: snnet\ndistillation: hard\n", ValueError, "distillation='hard' has no teacher"),
        ("model: snnet\nepochs: 3\nwarmup_epochs: 5\n", ValueError, "warmup_epochs must be below epochs=3.*, got 5"),
        ("model: snnet\nsched: step\n", ValueError, "sched must be one of .*cosine.*, got 'step'"),
        ("model: snnet\ndistill_weight: 0.9\n", ValueError, "distill_weight=0.9 has no effect: set distillation"),
        ("model: snnet\nkeep: 5\n", ValueError, "keep=5 has no effect: set output"),
        (
            "model: snnet\ndataset_args: {trust_remote_code: true}\n",
            ValueError,
            "dataset_args must have names of download.*, got trust_remote_code",
        ),
        ("model: snnet\ngroups: 3\n", ValueError, "groups=3 has no effect: set sampling='resource'"),
        (
            "model: snnet\nsampling: resource\ngroups: 3\ngroup_width: 3\n",
            ValueError,
            "group_width=3.* and groups=3 contradict",
        ),
        ("model: snnet\nsampling: importance\n", ValueError, "needs scores"),
        ("model: snnet\ninplace_distillation: true\n", ValueError, "inplace_distillation=True has no effect"),
        ("model: snnet\nclip_mode: agc\n", ValueError, "clip_mode='agc' has no effect: set clip_grad"),
        ("model: snnet\ntune: stitches\nanchor_lr_scale: 0.1\n", ValueError, "anchor_lr_scale=0.1 has no effect"),
        ("model: snnet\nresume: auto\n", ValueError, "resume='auto' has no effect: set output"),
        ("model: snnet\ntemperature: 2\n", ValueError, "temperature=2.* has no effect: set distillation='soft'"),
        ("model: snnet\nmin_lr: 0.1\n", ValueError, "min_lr must be at most lr=.*, got 0.1"),
        (
            "model: snnet\ncrop_scale: [1, 0.5]\n",
            ValueError,
            r"crop_scale must be two positive numbers.*, got \(1.*, 0.5\)",
        ),
        ("model: snnet\ntune: heads\n", ValueError, "tune must be one of all, stitches, got 'heads'"),
    ],
)
def test_bad_recipes_are_refused_by_name(tmp_path, text, error, message):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(error, match=message):
        read_recipe(tmp_path / "recipe.yaml")


def test_an_unknown_recipe_names_the_shipped_ones(capsys):
    with pytest.raises(FileNotFoundError, match=r"there is no recipe 'deit_xl': expected a YAML file, or deit3_v2_bl"):
        read_recipe("deit_xl")
    assert main(["train", "deit_xl"]) == 1
    assert "there is no recipe 'deit_xl'" in capsys.readouterr().err


def test_values_are_read_as_people_write_them(tmp_path):
    (tmp_path / "r.yaml").write_text(
        "model: snnet\nlr: 1e-4\ncrop_scale: [0.5, 1]\nsampling: importance\nscores: {0: 1, 3: 2.5}\n"
    )
    config = read_recipe(tmp_path / "r.yaml", {"epochs": 7}).config
    assert (config.lr, config.crop_scale, config.scores, config.epochs) == (1e-4, (0.5, 1.0), {0: 1, 3: 2.5}, 7)
