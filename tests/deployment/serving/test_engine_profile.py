"""Profiles of engines: by the command line, and what is refused; `test_engines` has servers that use them."""

import json

import pytest
from served_network import network
from test_engines import needs_openvino, own_cache  # noqa: F401 # the fixture
from tiny import deits

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving.engine_profile import profile_engine
from timm_stitch.plan.timings import call_times

pytestmark = pytest.mark.filterwarnings("default")  # an engine's own


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@needs_openvino
def test_profile_of_an_engine_from_the_command_line(tmp_path, capsys):
    model = network()
    timm_stitch.save_pretrained(model, tmp_path / "net")
    arguments = ["profile", str(tmp_path / "net"), "--engine", "openvino", "--stitch-ids", "5", "0", "--repeats", "2"]
    assert main([*arguments, "--batch-sizes", "1", "2", "--save", "--threads", "1"]) == 0
    assert "1 threads, openvino 20" in capsys.readouterr().out
    saved = {row["stitch_id"]: row for row in timm_stitch.from_hub(tmp_path / "net").stitch_table()}
    assert [k for k, row in saved.items() if list(call_times(row)) == [1, 2]] == [0, 5]
    assert saved[1].get("latency_ms") is None  # torch's time is gone, the accuracy is not
    assert saved[1]["top1"] == 75.0
    assert main([*arguments, "--json"]) == 0
    assert [json.loads(line)["stitch_id"] for line in capsys.readouterr().out.splitlines()] == [0, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return timm_stitch.save_pretrained(network(), tmp_path_factory.mktemp("saved") / "net")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--precision", "int8"], "--precision int8 and --calibration are for an engine: add --engine openvino"),
        (["--calibration", "images"], "--precision int8 and --calibration are for an engine"),
        (["--engine", "openvino", "--quick"], "--quick, --compile and --length measure torch, not --engine openvino"),
        (["--engine", "onnxruntime", "--precision", "bf16"], "engine onnxruntime computes in fp32 or int8 here"),
        (["--engine", "openvino", "--precision", "int8"], "precision int8 needs calibration: name a folder"),
        (["--engine", "openvino", "--stitch-ids", "99"], "stitch_ids hold 99, which the plan does not have"),
        (["--engine", "openvino", "--batch-size", "1", "--batch-sizes", "2"], "are both given: give one of them"),
        (["--engine", "cuda-graphs"], "cuda-graphs"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(folder, capsys, given, message):
    assert main(["profile", str(folder), *given]) != 0
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in said


def test_torch_and_unevaluated_networks():
    with pytest.raises(ValueError, match="engine must be openvino, onnxruntime or cuda-graphs, got 'torch'"):
        profile_engine(network(), "torch")
    with pytest.raises(ValueError, match="repeats must be 1 or more"):
        profile_engine(timm_stitch.stitch(deits()), "openvino", repeats=0)
