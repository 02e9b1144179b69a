"""One file for devices holds several stitches: a method each, the weights once, the outputs of PyTorch."""

import importlib.util
import sys
from importlib import import_module

import pytest
import torch
from exports import IDS, images, union_bytes
from tiny import deits

import timm_stitch

HERE = [
    f for f, package in (("executorch", "executorch"), ("litert", "litert_torch")) if importlib.util.find_spec(package)
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),  # their packages warn
]
devices = pytest.mark.parametrize(
    "format",
    [
        pytest.param(f, marks=[] if f in HERE else pytest.mark.skip(f"{f} is not installed"))
        for f in ("executorch", "litert")
    ],
)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return timm_stitch.stitch(deits()).eval()


def runner(folder, row):
    """What runs a stitch, as the docs show it."""
    if "method" in row:
        runtime = import_module("executorch.runtime").Runtime.get()
        method = runtime.load_program(folder / row["file"]).load_method(row["method"])
        return lambda x: method.execute([x])[0].clone()
    interpreter = import_module("ai_edge_litert.interpreter").Interpreter(model_path=str(folder / row["file"]))
    run = interpreter.get_signature_runner(row["signature"])
    return lambda x: torch.from_numpy(run(images=x.numpy())["logits"])


@devices
def test_one_file_has_every_stitch_and_each_weight_once(net, format, tmp_path):
    manifest = timm_stitch.export(net, tmp_path / "deploy", IDS, format=format)
    part = "method" if format == "executorch" else "signature"
    file = {"executorch": "stitches.pte", "litert": "stitches.tflite"}[format]
    assert {f.name for f in (tmp_path / "deploy").iterdir()} == {file, "manifest.json"}
    assert [(row["file"], row[part]) for row in manifest["stitches"]] == [(file, f"stitch_{k}") for k in IDS]
    assert manifest["union_bytes"] == union_bytes(net, IDS)
    graphs = 120_000 * len(IDS)  # bytes of what is no weight, which small networks have as much of as large ones
    assert manifest["bytes"] <= 1.02 * manifest["union_bytes"] + graphs
    assert manifest["input"]["shape"] == [1, 3, 32, 32]
    assert manifest["batch"] == {"smallest": 1, "largest": 1}
    for row in manifest["stitches"]:
        run = runner(tmp_path / "deploy", row)
        for x in images(3).split(1):
            with torch.inference_mode():
                torch.testing.assert_close(run(x), net(x, stitch_id=row["stitch_id"]), atol=1e-4, rtol=0)
        assert 0 <= row["max_difference"] <= 1e-4
        with pytest.raises((RuntimeError, ValueError)):
            run(images(2))


@devices
def test_other_batches_are_as_declared(net, format, tmp_path):
    batch = (1, 4) if format == "executorch" else 4
    manifest = timm_stitch.export(net, tmp_path / "deploy", 5, format=format, batch_size=batch)
    assert manifest["batch"] == {"smallest": 1 if format == "executorch" else 4, "largest": 4}
    assert manifest["input"]["shape"][0] == ("batch" if format == "executorch" else 4)
    run = runner(tmp_path / "deploy", manifest["stitches"][0])
    for n in (1, 3, 4) if format == "executorch" else (4,):
        with torch.inference_mode():
            torch.testing.assert_close(run(images(n)), net(images(n), stitch_id=5), atol=1e-4, rtol=0)
    with pytest.raises((RuntimeError, ValueError)):
        run(images(5))


@devices
def test_int8_is_measured_on_images(net, format, tmp_path):
    whole = timm_stitch.export(net, tmp_path / "whole", [3, 5], format=format)
    small = timm_stitch.export(net, tmp_path / "small", [3, 5], format=format, quantize="int8", images=images(40))
    assert small["precision"] == "int8"
    assert small["bytes"] < 0.75 * whole["bytes"]  # of networks this small, much is graph
    for row in small["stitches"]:
        run = runner(tmp_path / "small", row)
        with torch.inference_mode():
            theirs = torch.cat([run(x) for x in images(40).split(1)])
            ours = net(images(40), stitch_id=row["stitch_id"])
        assert row["max_difference"] == pytest.approx(float((theirs - ours).abs().max()), rel=1e-3)
        assert row["agreement"] == pytest.approx(float((theirs.argmax(1) == ours.argmax(1)).double().mean()))
        assert row["compared_images"] == 40
        assert 1e-5 < row["max_difference"] < 0.3 * float(ours.abs().max())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"format": "executorch", "batch_size": (4, 1)},
            r"batch_size=\(4, 1\) does not fit format='executorch': expected",
        ),
        (
            {"format": "litert", "batch_size": (1, 4)},
            r"batch_size=\(1, 4\) does not fit format='litert': expected a number",
        ),
        ({"format": "onnx", "batch_size": (1, 4)}, "expected None for any number or a number, from 1"),
        ({"format": "onnx", "batch_size": 0}, "batch_size=0 does not fit"),
        (
            {"format": "litert", "quantize": "float16"},
            "quantize='float16' does not fit format='litert': expected 'int8'",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_work_begins(net, tmp_path, monkeypatch, arguments, message):
    from timm_stitch.deployment.formats import executorch_file, litert_file

    for module in (executorch_file, litert_file):
        monkeypatch.setattr(module, "check_packages", lambda: None)
    with pytest.raises(ValueError, match=message):
        timm_stitch.export(net, tmp_path / "deploy", 5, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("format", "package"), [("executorch", "executorch"), ("litert", "litert_torch")])
def test_missing_packages_are_named(net, tmp_path, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install '\.\[{format}\]'"):
        timm_stitch.export(net, tmp_path / "deploy", 5, format=format)
    assert not list(tmp_path.iterdir())
