"""What runs a server's stitches: precisions, whose latencies count, and what answers tell of it."""

import logging

import pytest
import torch
from PIL import Image
from served_network import SERVED, known
from starlette.testclient import TestClient

from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving.app import HttpApp
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.latencies import latency_rows
from timm_stitch.deployment.serving.service import InferenceService


def test_torch_backend_gives_the_logits_of_the_network(model):
    backend, images = TorchBackend(model.eval()), torch.randn(2, 3, 32, 32)
    backend.prepare([0, 1], [1, 2])
    with torch.inference_mode():
        assert torch.equal(backend.run(images, 1), model(images, stitch_id=1))
        short = TorchBackend(model, "bf16").run(images, 1)
        assert short.dtype == torch.float32
        assert 0 < (short - model(images, stitch_id=1)).abs().max() < 0.05
    assert next(model.parameters()).dtype == torch.float32


def test_latencies_of_one_precision_are_never_used_for_another(model):
    known(model.eval())
    config = ServingConfig(20.0, precision="bf16")
    backend = TorchBackend(model, "bf16")
    assert all(row["latency_ms"] == SERVED[row["stitch_id"]][1] for row in latency_rows(model, config))
    rows = latency_rows(model, config, backend)
    assert {row["profiled_on"] for row in rows} == {backend.name}
    assert all(row["latency_ms"] != SERVED[row["stitch_id"]][1] for row in rows)
    assert model.stitch_table()[0]["latency_ms"] == SERVED[0][1]  # the network keeps its own
    model.results.add({**row, "precision": "fp32"} for row in rows)
    assert all(row["latency_ms_batch_1"] != rows[0]["latency_ms_batch_1"] for row in latency_rows(model, config))


def test_autocast_latencies_are_not_those_of_a_server_in_float32(model):
    known(model.eval())
    model.results.add({**row, "precision": "bf16"} for row in model.results.current_rows())
    rows = latency_rows(model, ServingConfig(20.0))
    assert {row["precision"] for row in rows} == {"fp32"}
    assert all(row["latency_ms"] != SERVED[row["stitch_id"]][1] for row in rows)


def test_half_precision_is_refused_on_a_cpu(model):
    with pytest.raises(ValueError, match="fp16 is for GPUs, and the network is on the CPU: use bf16 or fp32"):
        InferenceService(known(model), ServingConfig(100.0, precision="fp16"))
    with pytest.raises(ValueError, match="precision must be one of fp32, bf16, fp16, int8, got 'int4'"):
        ServingConfig(100.0, precision="int4")
    with pytest.raises(ValueError, match="calibration is for a precision other than fp32"):
        ServingConfig(100.0, calibration="images")


@pytest.mark.parametrize("source", ["noise", "folder"])
def test_agreement_with_float32_is_measured_before_serving_and_stands_in_answers(model, tmp_path, caplog, source):
    folder = None
    if source == "folder":
        folder = str(tmp_path)
        (tmp_path / "a").mkdir()
        for number in range(3):
            Image.effect_noise((40, 30), 20 + number).save(tmp_path / "a" / f"{number}.png")
        (tmp_path / "notes.txt").write_text("no image")
    service = InferenceService(known(model), ServingConfig(3000.0, precision="bf16", calibration=folder), "net")
    message = next(r.message for r in caplog.records if "agrees with fp32" in r.message)
    assert "torch in bf16" in message
    assert (f"3 images of {tmp_path};" in message) if folder else ("images of noise, which says little" in message)
    agreement = service.engine.deployment.agreement
    assert set(agreement.each) == set(service.table.stitch_ids)
    assert agreement.images == (3 if folder else 256)
    with TestClient(HttpApp(service).asgi()) as client:
        picture = tmp_path / "picture.png"
        Image.effect_noise((40, 30), 60).save(picture)
        facts = client.post("/predict", content=picture.read_bytes()).json()
        assert (facts["engine"], facts["precision"]) == ("torch", "bf16")
        assert facts["agreement"] == agreement.each[facts["stitch_id"]]
        metrics = client.get("/metrics").text
    assert 'timm_stitch_backend{engine="torch",precision="bf16"} 1.0' in metrics
    assert f"timm_stitch_agreement_ratio {agreement.lowest}" in metrics


def test_float32_is_the_default_and_measures_no_agreement(model, caplog):
    caplog.set_level(logging.WARNING)
    service = InferenceService(known(model), ServingConfig(3000.0), "net")
    assert service.engine.deployment.agreement is None
    assert service.engine.deployment.backend.precision == "fp32"
    assert "agrees" not in caplog.text
    service.close()


def test_a_calibration_folder_without_images_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match="there are no images in"):
        InferenceService(known(model), ServingConfig(3000.0, precision="bf16", calibration=str(tmp_path)))


def test_command_line_refuses_calibration_of_float32(capsys):
    assert main(["serve", "net", "--latency-ms", "5", "--calibration", "images"]) == 1
    assert "calibration is for a precision other than fp32" in capsys.readouterr().err
