"""A network behind a promise: which stitches are deployment, whose times count, and what a promise may say."""

import time

import pytest
import timm
import torch
from served_network import SERVED, known

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.policies import LatencyTable
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.engine import OverloadError
from timm_stitch.deployment.serving.latencies import frontier_stitches, known_rows, latency_rows
from timm_stitch.deployment.serving.service import InferenceService


def test_one_stitch_where_that_is_wanted(model):
    service = InferenceService(known(model), ServingConfig(100.0, policy="fixed", stitch_id=1), "net")
    assert service.table.stitch_ids == [1]
    service.close()
    service = InferenceService(known(model), ServingConfig(6.0, policy="fixed"), "net")
    assert [service.engine.deployment.policy.index] == [1]  # the most expensive within the latency target
    service.close()
    with pytest.raises(OverloadError):
        service.submit(torch.zeros(1, 3, 32, 32), time.monotonic() + 1, None, time.monotonic())


def test_latencies_are_measured_where_none_are_known(model, caplog):
    model.results.add({"stitch_id": k, "top1": top1} for k, (top1, _) in SERVED.items())
    service = InferenceService(model, ServingConfig(1000.0, network="my-net"), "net")
    service.close()
    assert set(service.table.stitch_ids) <= set(SERVED)
    assert service.table.batch_sizes == [1, 2, 4, 8, 16, 32, 64]
    assert "latencies of 3 stitches for 7 batch sizes were measured" in caplog.text
    assert "timm-stitch profile my-net --batch-sizes 1 2" in caplog.text
    model.results.clear()
    with pytest.raises(ValueError, match="no stitch of this network has a known accuracy"):
        InferenceService(model, ServingConfig(1000.0), "net")


@pytest.mark.parametrize(
    "values",
    [
        {"latency_ms": 0.0},
        {"latency_ms": float("nan")},
        {"latency_ms": 10.0, "reserve_ms": 10.0},
        {"latency_ms": 10.0, "policy": "best"},
        {"latency_ms": 10.0, "stitch_id": 3},
        {"latency_ms": 10.0, "most_waiting": 0},
    ],
)
def test_serving_options_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=r"must be|needs policy='fixed'"):
        ServingConfig(**values)


def test_times_that_profile_kept_are_those_that_count(model, tmp_path, caplog):
    before = torch.get_num_threads()
    try:
        model.results.add({"stitch_id": k, "top1": top1} for k, (top1, _) in SERVED.items())
        timm_stitch.save_pretrained(model, tmp_path / "net")
        command = ["profile", str(tmp_path / "net"), "--batch-sizes", "1", "4", "--repeats", "1", "--save"]
        command += ["--json", "--stitch-ids", *map(str, SERVED)]
        assert main([*command, "--threads", str(before + 1)]) == 0
        kept = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True)
        InferenceService(kept, ServingConfig(1000.0)).close()
        assert "were measured" not in caplog.text
        torch.set_num_threads(before)
        InferenceService(
            timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True), ServingConfig(1000.0)
        ).close()
        assert "were measured" in caplog.text
        assert f"--threads {before} --device cpu --save" in caplog.text
    finally:
        torch.set_num_threads(before)


def test_a_file_that_another_program_writes_over_does_not_change_what_is_served(model, tmp_path):
    model.results.add({"stitch_id": k, "top1": top1} for k, (top1, _) in SERVED.items())
    timm_stitch.save_pretrained(model, tmp_path / "net")
    service = InferenceService(timm_stitch.from_hub(tmp_path / "net"), ServingConfig(1000.0))
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        before = service.model(images, stitch_id=1).clone()
        file = tmp_path / "net" / "model.safetensors"
        with file.open("r+b") as written:  # in place, as cp does
            written.write(bytes(file.stat().st_size))
        assert torch.equal(service.model(images, stitch_id=1), before)
    service.close()


def test_which_stitches_an_engine_compiles_does_not_follow_from_times(model):
    # else the next start, whose measurements differ, would convert again
    config = ServingConfig(100.0)
    before = known_rows(known(model), config)
    slow = {row["stitch_id"]: row for row in before}[1]
    model.results.add([{**slow, "latency_ms": 99.0, "latency_ms_batch_1": 99.0, "latency_ms_batch_4": 99.0}])
    assert LatencyTable(latency_rows(model, config)).stitch_ids == [0, 2]
    assert frontier_stitches(known_rows(model, config)) == frontier_stitches(before) == [0, 1, 2]
