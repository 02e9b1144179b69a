"""Exported files run without this package, give PyTorch's outputs, and hold each weight once."""

import json
import re
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from conftest import anchor_specs, small_anchors

import timm_stitch
from timm_stitch.cli.entry import main

IDS = [3, 5, 20]  # two share most of their weights with each other, one some with them
OLD = "torch 2.6 does not convert BatchNorm" if torch.__version__ < "2.7" else ""
DOCS = Path(__file__).parents[2] / "docs" / "deployment.md"


def resnets():
    channels = [(16, 32, 48, 64), (24, 48, 64, 96)]
    return [timm.create_model("resnet18", channels=c, num_classes=10).eval() for c in channels]


def convnexts():
    sizes = [(16, 32, 48, 64), (24, 48, 64, 96)]
    return [timm.create_model("convnext_atto", dims=d, depths=(2, 2, 2, 2), num_classes=10).eval() for d in sizes]


def swins():
    args = {"img_size": 56, "depths": (2, 2, 2), "num_classes": 10}
    heads = {"swin_tiny_patch4_window7_224": (32, (1, 2, 4)), "swin_small_patch4_window7_224": (48, (1, 2, 4))}
    return [timm.create_model(n, embed_dim=w, num_heads=h, **args).eval() for n, (w, h) in heads.items()]


def images(n, size=32):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def settle(model):
    """Statistics and affine weights other than ones and zeros, so that folding them would show."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def run_onnx(path, x):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def size(folder):
    return sum(file.stat().st_size for file in folder.iterdir() if file.name != "manifest.json")


def union_bytes(model, ids):
    """The parameters and buffers that these stitches use, each once."""
    return sum(t.nbytes for t in {k: v for i in ids for k, v in model.extract(i).state_dict().items()}.values())


@pytest.fixture(scope="module")
def net():
    return timm_stitch.stitch(small_anchors()).eval()


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Unable to find the path of the module")  # torch 2.6
@pytest.mark.parametrize(
    ("anchors", "px", "format"),
    [
        (resnets, 64, "onnx"),
        (convnexts, 64, "onnx"),
        (swins, 56, "onnx"),
        (resnets, 64, "program"),
        (convnexts, 64, "program"),
    ],
)
def test_other_families(anchors, px, format, tmp_path):
    if OLD and (anchors, format) == (resnets, "onnx"):
        pytest.skip(OLD)
    torch.manual_seed(0)
    net = settle(timm_stitch.stitch(anchors())).eval()
    ids = [next(k for k in net.stitch_ids if not net.plan[k].is_anchor), net.plan.anchor_id(1)]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, format=format, image_size=px)
    assert manifest["input"]["shape"] == ["batch", 3, px, px]
    assert (tmp_path / "deploy" / f"weights.{'bin' if format == 'onnx' else 'safetensors'}").stat().st_size <= (
        1.05 * union_bytes(net, ids)
    )
    for row in manifest["stitches"]:
        path = tmp_path / "deploy" / row["file"]
        with torch.inference_mode():
            theirs = run_onnx(path, images(5, px)) if format == "onnx" else run_program(path, images(5, px))
            torch.testing.assert_close(theirs, net(images(5, px), row["stitch_id"]), atol=1e-4, rtol=0)


def block(word):
    """The Python in the docs that has this word."""
    return next(code for code in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL) if word in code)


def run_program(path, x):
    code = block("torch.export").replace("deploy-pt2/stitch-24.pt2", str(path)).replace("deploy-pt2", str(path.parent))
    names = {"images": x}
    exec(code, names)
    return names["logits"]


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


def test_the_docs_session(exported, net):
    names = {"images": images(2)}
    exec(block("onnxruntime").replace("deploy/stitch-24", str(exported[0] / "stitch-5")), names)
    torch.testing.assert_close(torch.from_numpy(names["logits"]), net(images(2), 5), atol=1e-4, rtol=0)


def test_int8_reports_what_it_changes(net, tmp_path):
    x, ids = images(48), [3, 5]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, quantize="int8", images=x)
    assert manifest["precision"] == "int8"
    assert manifest["bytes"] == size(tmp_path / "deploy") < 0.4 * union_bytes(net, ids)
    for row in manifest["stitches"]:
        theirs = torch.cat([run_onnx(tmp_path / "deploy" / row["file"], part) for part in x.split(32)])
        with torch.inference_mode():
            ours = net(x, row["stitch_id"])
        assert row["agreement"] == pytest.approx((theirs.argmax(1) == ours.argmax(1)).double().mean().item())
        assert row["max_difference"] == pytest.approx((theirs - ours).abs().max().item(), rel=1e-4)
        assert 1e-4 < row["max_difference"] < 0.3 * ours.abs().max()
        assert row["compared_images"] == 48


def test_the_network_is_left_as_it_is(tmp_path):
    net = timm_stitch.stitch(small_anchors()).to(torch.bfloat16).train()
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
        ({"stitch_ids": []}, ValueError, "stitch_ids is empty"),
        ({"format": "tflite"}, ValueError, "format=.tflite. is unknown: expected one of .onnx., .program."),
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


@pytest.mark.skipif(bool(OLD), reason=OLD)
def test_int8_of_convolutions_takes_the_ranges_of_the_images(tmp_path):
    torch.manual_seed(0)
    net, x = settle(timm_stitch.stitch(resnets())).eval(), images(20, 64)
    ids = [3]
    manifest = timm_stitch.export(net, tmp_path / "deploy", ids, quantize="int8", images=x, image_size=64)
    assert manifest["bytes"] < 0.35 * union_bytes(net, ids)
    for row in manifest["stitches"]:
        path = tmp_path / "deploy" / row["file"]
        kinds = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
        with torch.inference_mode():
            theirs, ours = run_onnx(path, x), net(x, row["stitch_id"])
        assert row["max_difference"] == pytest.approx((theirs - ours).abs().max().item(), rel=1e-3)
        assert row["max_difference"] < 0.2 * (ours.max() - ours.min())


@pytest.mark.filterwarnings("ignore:the float32 number")  # which onnxruntime's converter says of weights near zero
def test_float16_halves_the_weights(net, tmp_path):
    x = images(20)
    manifest = timm_stitch.export(net, tmp_path / "deploy", 5, quantize="float16", images=x)
    assert manifest["precision"] == "float16"
    assert manifest["bytes"] < 0.6 * union_bytes(net, [5])
    for row in manifest["stitches"]:
        with torch.inference_mode():
            ours = net(x, row["stitch_id"])
        theirs = run_onnx(tmp_path / "deploy" / row["file"], x)
        assert 0 < row["max_difference"] < 0.01 * float(ours.abs().max())
        torch.testing.assert_close(theirs, ours, atol=2 * row["max_difference"], rtol=0)


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
    with pytest.raises(Exception, match=r"size\(\)\[0\] <= 4"):
        module(images(5))


@pytest.mark.skipif(bool(OLD), reason=OLD)
def test_int8_is_refused_where_it_would_do_little(tmp_path, monkeypatch):
    monkeypatch.setattr("timm_stitch.deployment.formats.onnx_files.is_convolutional", lambda model: False)
    net = timm_stitch.stitch(resnets())
    with pytest.raises(ValueError, match="it quantises linear layers and convolutions, and most of this stitch is"):
        timm_stitch.export(net, tmp_path / "deploy", 1, quantize="int8", images=images(2, 64), image_size=64)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_left_alone(net, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds something: this needs a folder of its own"):
        timm_stitch.export(net, tmp_path, 3)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    timm_stitch.export(net, tmp_path / "empty", 3, format="program")
    assert (tmp_path / "empty" / "stitch-3.pt2").exists()


def test_missing_packages_are_named(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'timm_stitch\[export\]'"):
        timm_stitch.export(net, tmp_path / "deploy", 3)
    timm_stitch.export(net, tmp_path / "deploy", 3, format="program")


def test_the_command(tmp_path, capsys):
    from PIL import Image

    torch.manual_seed(0)
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=anchor_specs()), tmp_path / "net")
    for label in range(10):
        (tmp_path / "images" / f"class{label}").mkdir(parents=True)
        Image.new("RGB", (40, 40), (label * 20, 99, 0)).save(tmp_path / "images" / f"class{label}" / "a.png")
    command = ["export", str(tmp_path / "net"), "--stitch-ids", "3"]
    assert main([*command, "--output", str(tmp_path / "deploy")]) == 0
    out = capsys.readouterr().out
    assert "stitch-3.onnx" in out
    assert "bytes" in out.splitlines()[-1]
    more = ["--quantize", "int8", "--data-dir", str(tmp_path / "images"), "--images", "8", "--json"]
    assert main([*command, "--output", str(tmp_path / "int8"), *more]) == 0
    assert json.loads(capsys.readouterr().out)["stitches"][0]["compared_images"] == 8
    assert main([*command, "--output", str(tmp_path / "deploy")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_another_image_size_has_its_own_costs(tmp_path):
    net = timm_stitch.stitch(resnets())
    row = net.stitch_table()[1]
    net.remember([{"stitch_id": 1, "top1": 70.0}])
    manifest = timm_stitch.export(net, tmp_path / "deploy", 1, format="program", image_size=(64, 96))
    assert manifest["input"]["shape"] == ["batch", 3, 64, 96]
    assert manifest["stitches"][0]["params"] == row["params"]
    assert manifest["stitches"][0]["macs"] == pytest.approx(row["macs"] * 64 * 96 / 224**2, rel=0.01)
    assert "top1" not in manifest["stitches"][0]
    assert net.image_size == (224, 224)
    assert net.results.rows
