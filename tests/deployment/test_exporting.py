"""Exported files run without this package, give PyTorch's outputs, and hold each weight once."""

import json
import sys
from pathlib import Path

import onnx
import pytest
import timm
import torch
from exports import IDS, block, images, run_onnx, run_program, size, union_bytes
from tiny import deit_specs, deits, resnets

import timm_stitch
from timm_stitch.cli.entry import main


@pytest.fixture(scope="module")
def net():
    return timm_stitch.stitch(deits()).eval()


@pytest.fixture(scope="module")
def exported(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "deploy"
    return folder, timm_stitch.export(net, folder, IDS)


def test_onnx_gives_the_outputs_of_pytorch(net, exported):
    folder, manifest = exported
    for row in manifest["stitches"]:
        onnx.checker.check_model(folder / row["file"])
        for n in (1, 2, 7):
            with torch.inference_mode():
                torch.testing.assert_close(
                    run_onnx(folder / row["file"], images(n)), net(images(n), row["stitch_id"]), atol=1e-4, rtol=0
                )
        assert 0 <= row["max_difference"] <= 1e-4


def test_weights_are_on_disk_once(net, exported):
    folder, manifest = exported
    union = union_bytes(net, IDS)
    apart = sum(union_bytes(net, [i]) for i in IDS)
    assert apart > 1.3 * union
    assert manifest["union_bytes"] == union
    assert manifest["bytes"] == size(folder) <= 1.05 * union
    assert (folder / "weights.bin").stat().st_size <= union
    assert {file.name for file in folder.iterdir()} == {
        *("manifest.json", "weights.bin", "stitch-3.onnx", "stitch-5.onnx", "stitch-20.onnx")
    }


def test_files_say_nothing_of_this_machine(exported):
    for file in exported[0].iterdir():
        assert str(Path(timm_stitch.__file__).parent).encode() not in file.read_bytes(), file
        assert b"site-packages" not in file.read_bytes(), file


def test_manifest_says_which_file_and_how_to_feed_it(net, exported):
    folder, manifest = exported
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert manifest["input"] == {"name": "images", "dtype": "float32", "shape": ["batch", 3, 32, 32]}
    assert manifest["output"]["shape"] == ["batch", 10]
    assert manifest["batch"] == {"smallest": 1, "largest": None}
    assert manifest["labels"] == [f"class {i}" for i in range(10)]
    assert manifest["to_share_weights"] == {"session_config": {"session.disable_prepacking": "1"}}
    assert manifest["preprocessing"]["mean"] == list(net.anchors[0].pretrained_cfg["mean"])
    table = {row["stitch_id"]: row for row in net.stitch_table()}
    assert [row["stitch_id"] for row in manifest["stitches"]] == IDS
    for row in manifest["stitches"]:
        assert row.items() >= table[row["stitch_id"]].items()
        assert row["file"] == f"stitch-{row['stitch_id']}.onnx"


def test_several_programs_share_weights_as_the_docs_say(net, tmp_path):
    manifest = timm_stitch.export(net, tmp_path / "deploy", IDS, format="program")
    weights = (tmp_path / "deploy" / "weights.safetensors").stat().st_size
    assert weights <= 1.05 * union_bytes(net, IDS)
    for row in manifest["stitches"]:
        assert row["file"] == f"stitch-{row['stitch_id']}.pt2"
        with torch.inference_mode():
            for n in (1, 5):
                theirs = run_program(tmp_path / "deploy" / row["file"], images(n))
                torch.testing.assert_close(theirs, net(images(n), row["stitch_id"]), atol=1e-5, rtol=0)


def test_one_program_is_whole(net, tmp_path):
    net.set_stitch(9)
    manifest = timm_stitch.export(net, tmp_path / "deploy", format="program")
    assert [file.name for file in sorted((tmp_path / "deploy").iterdir())] == ["manifest.json", "stitch-9.pt2"]
    assert [row["stitch_id"] for row in manifest["stitches"]] == [9]
    module = torch.export.load(tmp_path / "deploy" / "stitch-9.pt2").module()
    torch.testing.assert_close(module(images(3)), net(images(3), 9), atol=1e-5, rtol=0)


def test_the_session_in_the_docs_runs(exported, net):
    names = {"images": images(2)}
    exec(block("onnxruntime").replace("deploy/stitch-2", str(exported[0] / "stitch-5")), names)
    torch.testing.assert_close(torch.from_numpy(names["logits"]), net(images(2), 5), atol=1e-4, rtol=0)


def test_the_network_is_left_as_it_is(tmp_path):
    net = timm_stitch.stitch(deits()).to(torch.bfloat16).train()
    net.compile()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    timm_stitch.export(net.extract(5), tmp_path / "part", format="program")
    timm_stitch.export(net, tmp_path / "deploy", 5, format="program")
    assert net.training
    assert next(net.parameters()).dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"stitch_ids": [99]}, ValueError, "99"),
        ({"stitch_ids": []}, ValueError, "stitch_ids must have one id or more"),
        ({"format": "tflite"}, ValueError, "format must be one of .onnx., .program.*, got .tflite."),
        ({"quantize": "int4"}, ValueError, "quantize='int4' does not fit format='onnx': expected 'int8' or"),
        ({"quantize": "int8"}, ValueError, "quantize='int8' with no images: give images"),
        (
            {"quantize": "int8", "format": "program", "images": images(2)},
            ValueError,
            "quantize='int8' does not fit format='program'",
        ),
        (
            {"quantize": "int8", "images": images(2, 40)},
            ValueError,
            r"images of shape \(3, 40, 40\) do not fit files",
        ),
        ({"image_size": 40}, ValueError, r"image_size=\(40, 40\) does not fit: these anchors take \(32, 32\)"),
        ({"tolerance": 1e-12}, ValueError, "stitch 34 as onnx differs from PyTorch by up to .* more than tolerance"),
    ],
)
def test_errors_leave_nothing_behind(net, tmp_path, arguments, error, message):
    net.set_stitch(net.stitch_ids[-1])
    with pytest.raises(error, match=message):
        timm_stitch.export(net, tmp_path / "deploy", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_fixed_batch_is_the_only_one(net, tmp_path):
    manifest = timm_stitch.export(net, tmp_path / "deploy", 5, batch_size=2)
    assert manifest["input"]["shape"] == [2, 3, 32, 32]
    torch.testing.assert_close(
        run_onnx(tmp_path / "deploy" / "stitch-5.onnx", images(2)), net(images(2), 5), atol=1e-4, rtol=0
    )
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        run_onnx(tmp_path / "deploy" / "stitch-5.onnx", images(3))
    timm_stitch.export(net, tmp_path / "range", 5, format="program", batch_size=(2, 4))
    module = torch.export.load(tmp_path / "range" / "stitch-5.pt2").module()
    torch.testing.assert_close(module(images(4)), net(images(4), 5), atol=1e-5, rtol=0)
    with pytest.raises(Exception, match=r"size\(\)\[0\] <= 4|shape\[0\] to be <= 4"):
        module(images(5))


def test_a_folder_in_use_is_left_alone(net, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty: give a new or empty folder"):
        timm_stitch.export(net, tmp_path, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    timm_stitch.export(net, tmp_path / "empty", 3, format="program")
    assert (tmp_path / "empty" / "stitch-3.pt2").exists()


def test_missing_packages_are_named(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install '\.\[export\]'"):
        timm_stitch.export(net, tmp_path / "deploy", 3)
    timm_stitch.export(net, tmp_path / "deploy", 3, format="program")


def test_the_export_command_writes_files_and_refuses_a_full_folder(tmp_path, capsys):
    from PIL import Image

    torch.manual_seed(0)
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(depth=3)), tmp_path / "net")
    for label in range(10):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        Image.new("RGB", (40, 40), (label * 20, 99, 0)).save(tmp_path / "images" / f"class{label}" / "a.png")
    command = ["export", str(tmp_path / "net"), "--stitch-ids", "3", "4"]
    assert main([*command, "--output", str(tmp_path / "deploy")]) == 0
    out = capsys.readouterr().out
    assert "stitch-3.onnx" in out
    assert "bytes" in out.splitlines()[-1]
    more = ["--quantize", "int8", "--data-dir", str(tmp_path / "images"), "--images", "8", "--json"]
    assert main([*command, "--output", str(tmp_path / "int8"), *more]) == 0
    assert json.loads(capsys.readouterr().out)["stitches"][1]["compared_images"] == 8
    assert main([*command, "--output", str(tmp_path / "deploy")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_another_image_size_has_its_own_costs(tmp_path):
    net = timm_stitch.stitch(resnets())
    row = net.stitch_table()[1]
    net.results.add([{"stitch_id": 1, "top1": 70.0}])
    manifest = timm_stitch.export(net, tmp_path / "deploy", 1, format="program", image_size=(64, 96))
    assert manifest["input"]["shape"] == ["batch", 3, 64, 96]
    assert manifest["stitches"][0]["params"] == row["params"]
    assert manifest["stitches"][0]["macs"] == pytest.approx(row["macs"] * 64 * 96 / 224**2, rel=0.01)
    assert "top1" not in manifest["stitches"][0]
    assert net.image_size == (224, 224)
    assert net.results.rows


@pytest.mark.parametrize("size", [32, (32, 48)])
def test_anchors_of_any_image_size_export_without_resampling(size, tmp_path):
    anchors = [
        timm.create_model(name, img_size=size, patch_size=8, dynamic_img_size=True, depth=2, num_classes=4)
        for name in ("vit_tiny_patch16_224", "vit_small_patch16_224")
    ]
    net = timm_stitch.stitch(anchors).eval()
    timm_stitch.export(net, tmp_path / "deploy", 2, format="program")
    operations = {str(node.target) for node in torch.export.load(tmp_path / "deploy" / "stitch-2.pt2").graph.nodes}
    assert "aten.linear.default" in operations
    assert not [name for name in operations if "upsample" in name]
    assert net.anchors[0].dynamic_img_size  # the network itself is as before
    assert net(images(1, 64)).shape == (1, 4)


def test_whatever_a_converter_raises_is_one_line(net, tmp_path, monkeypatch, capsys):
    def refuse(job, model):
        raise NotImplementedError("Lowering not found:\naten._upsample")

    monkeypatch.setattr("timm_stitch.deployment.formats.onnx_files._exported", refuse)
    timm_stitch.save_pretrained(net, tmp_path / "net")
    assert main(["export", str(tmp_path / "net"), "--output", str(tmp_path / "deploy"), "--stitch-ids", "3"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == (
        "error: this network cannot be exported as onnx: try another format, such as program "
        "(NotImplementedError: Lowering not found: aten._upsample)."
    )
    assert not (tmp_path / "deploy").exists()
