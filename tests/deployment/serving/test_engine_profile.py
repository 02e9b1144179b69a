"""Profiles of engines: what they measure, who uses the times, and what is refused."""

import json

import pytest
from served_network import network
from test_engines import ENGINES, needs_openvino, own_cache, served  # noqa: F401 # the fixture
from tiny import deits

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving.engine_profile import profile_engine
from timm_stitch.plan.timings import call_times

pytestmark = pytest.mark.filterwarnings("default")  # an engine's own


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_uses_the_times_that_were_profiled_with_its_engine(engine, caplog):
    model = network()
    rows = profile_engine(model, engine, batch_sizes=[1, 4], repeats=3)
    assert [row["stitch_id"] for row in rows] == [0, 1, 2]  # those that a server prepares
    assert all(f", {engine} " in row["profiled_on"] and row["precision"] == "fp32" for row in rows)
    assert all(list(call_times(row)) == [1, 4] and row["latency_ms"] > 0 for row in rows)
    assert rows[0]["images_per_s"] == pytest.approx(1e3 / rows[0]["latency_ms"])
    table = {row["stitch_id"]: row for row in model.stitch_table()}
    assert all(table[row["stitch_id"]]["latency_ms_batch_4"] == row["latency_ms_batch_4"] for row in rows)
    service = served(model, engine=engine)
    assert "latencies of 3 stitches" in caplog.text  # torch's were measured: the engine's are not used for it
    deployment = service.engine.deployment
    assert deployment.backend.engine == engine
    order = deployment.table.stitch_ids
    assert [deployment.table.seconds(order.index(r["stitch_id"]), 4) for r in rows] == pytest.approx(
        [r["latency_ms_batch_4"] / 1e3 for r in rows]
    )
    service.close()


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
