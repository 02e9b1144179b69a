"""Checkpoints of timm's train.py wherever anchors are named: their model, classes, preparation and averaged weights."""

import argparse

import pytest
import timm
import torch
from timm.utils import CheckpointSaver, ModelEmaV3
from tiny import images

import timm_stitch
from timm_stitch.cli.entry import main

SIZES = ({"embed_dim": 32, "num_heads": 2}, {"embed_dim": 48, "num_heads": 3})


def train_run(folder, number, averaged=True, **more):
    """A checkpoint as timm's train.py saves it, and the model whose weights it should give."""
    torch.manual_seed(number)
    kwargs = {"img_size": 32, "depth": 2, **SIZES[number]}
    model = timm.create_model("deit_tiny_patch16_224", num_classes=4, **kwargs).eval()
    average = ModelEmaV3(model)
    for parameter in average.module.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    args = argparse.Namespace(
        model="deit_tiny_patch16_224", num_classes=None, gp=None, in_chans=None, mean=[0.1, 0.2, 0.3], std=None,
        crop_pct=0.8, interpolation="", model_kwargs=kwargs,
    )  # fmt: skip
    for name, value in more.items():
        setattr(args, name, value)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    folder.mkdir()
    saver = CheckpointSaver(
        model, optimizer, args, average if averaged else None, checkpoint_dir=str(folder), recovery_dir=str(folder)
    )
    saver.save_checkpoint(0, metric=1.0)
    return folder / "model_best.pth.tar", average.module if averaged else model


@pytest.fixture
def runs(tmp_path):
    return [train_run(tmp_path / "a", 0), train_run(tmp_path / "b", 1, averaged=False)]


def test_checkpoints_are_anchors_with_their_weights(runs, tmp_path, capsys):
    paths = [str(path) for path, _ in runs]
    network = timm_stitch.load(paths).eval()
    x = images(2)
    for number, (_, model) in enumerate(runs):
        with torch.no_grad():
            assert torch.equal(network(x, stitch_id=number), model(x))
    assert network.pretrained_cfg["mean"] == [0.1, 0.2, 0.3]
    assert network.pretrained_cfg["crop_pct"] == 0.8
    timm_stitch.save_pretrained(network, tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(timm_stitch.from_hub(tmp_path / "net")(x), network(x))
    assert main(["plan", *paths, "--json"]) == 0
    assert main(["plan", "--meet", *paths]) == 0
    assert timm_stitch.load("snnet", anchors=paths).num_stitches == network.num_stitches
    assert timm_stitch.load(paths, num_classes=7).num_classes == 7


def test_a_checkpoint_beside_a_folder(tmp_path):
    first, second = runs = [train_run(tmp_path / "a", 0, mean=None), train_run(tmp_path / "b", 1, mean=None)]
    timm.models.save_for_hf(second[1], str(tmp_path / "folder"), model_args={"img_size": 32, "depth": 2, **SIZES[1]})
    network = timm_stitch.load([str(first[0]), str(tmp_path / "folder")]).eval()
    with torch.no_grad():
        for number, (_, model) in enumerate(runs):
            assert torch.equal(network(images(2), stitch_id=number), model(images(2)))


def test_a_stitched_network_that_timm_trained(tmp_path):
    anchors = [{"architecture": "deit_tiny_patch16_224", "img_size": 32, "depth": 2, **size} for size in SIZES]
    model = timm.create_model("snnet", anchors=anchors, num_classes=4).eval()
    args = argparse.Namespace(model="snnet", model_kwargs={"anchors": anchors, "num_classes": 4})
    torch.save({"arch": "snnet", "args": args, "state_dict": model.state_dict()}, tmp_path / "last.pth.tar")
    network = timm_stitch.load(str(tmp_path / "last.pth.tar")).eval()
    with torch.no_grad():
        assert torch.equal(network(images(2), stitch_id=3), model(images(2), stitch_id=3))


def test_a_checkpoint_keeps_the_size_of_its_images(tmp_path):
    # timm would resample the position embeddings to the model's own size without a word
    paths, models = [], []
    for name, args in (("test_vit", argparse.Namespace(img_size=64)), ("test_vit2", None)):
        models.append(timm.create_model(name, num_classes=4, img_size=64).eval())
        paths.append(str(tmp_path / f"{name}.pth.tar"))
        torch.save({"arch": name, "args": args, "state_dict": models[-1].state_dict()}, paths[-1])
    network, x = timm_stitch.load(paths).eval(), torch.randn(2, 3, 64, 64)
    assert network.image_size == (64, 64)
    for number, model in enumerate(models):
        with torch.no_grad():
            assert torch.equal(network(x, stitch_id=number), model(x))
    # a convolutional network has no positions: the run's size is that of its images
    saved = {"arch": "test_resnet", "state_dict": timm.create_model("test_resnet").state_dict()}
    torch.save({**saved, "args": argparse.Namespace(input_size=[3, 96, 80])}, tmp_path / "net.pth.tar")
    assert timm_stitch.load([str(tmp_path / "net.pth.tar")] * 2, kernel_size=1).image_size == (96, 80)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            {"arch": "test_resnet", "state_dict": {}, "args": argparse.Namespace(img_size=1e9)},
            "names images of 1000000000.0: expected a height and a width up to 65,536",
        ),
        (
            {"arch": "test_vit", "state_dict": {"pos_embed": torch.zeros(1, 8, 64)}},
            "has 8 positions, those of no square image",
        ),
        ({"state_dict": {"x": torch.zeros(1)}}, "names no model: expected a checkpoint of timm's train.py"),
        ({"arch": "nothing", "state_dict": {"x": torch.zeros(1)}}, "a checkpoint of 'nothing', which timm lacks"),
        ({"arch": "resnet18", "state_dict": {"x": print}}, "is not a readable checkpoint"),
        (
            {"arch": "resnet18", "state_dict": {}, "args": argparse.Namespace(model_kwargs={"checkpoint_path": "x"})},
            "has arguments that read other files (checkpoint_path)",
        ),
    ],
)
def test_other_files_are_refused_in_one_line(contents, message, tmp_path, capsys):
    file = str(tmp_path / "x.pth.tar")
    torch.save(contents, file)
    assert main(["plan", file, file]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_checkpoint_where_one_network_is_expected_names_the_command(tmp_path, capsys):
    a, b = (str(train_run(tmp_path / name, number)[0]) for number, name in enumerate("ab"))
    assert main(["predict", a, b, "cat.jpg"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: '{a}' is one network, not a stitchable one: name several to stitch them. ")
    assert f"such as predict, stitch them first: timm-stitch init {a} OTHER --output net." in error
