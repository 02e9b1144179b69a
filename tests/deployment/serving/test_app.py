"""The web application: answers, options, bounds, overload, health, metrics and the page."""

import io
import json
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from served_network import LABELS, known
from starlette.testclient import TestClient

import timm_stitch
from timm_stitch.deployment.serving.app import HttpApp
from timm_stitch.deployment.serving.config import RequestOptions, ServingConfig
from timm_stitch.deployment.serving.engine import OverloadError, Request
from timm_stitch.deployment.serving.service import InferenceService


@pytest.fixture
def service(model):
    made = InferenceService(
        known(model), ServingConfig(5000.0, most_pixels=10_000, most_images=4, most_waiting=8), "net"
    )
    yield made
    made.close()


@pytest.fixture
def client(service):
    application = HttpApp(service, most_bytes=50_000)
    with TestClient(application.asgi()) as client:
        client.service, client.application = service, application
        yield client


def submit(service, images, options):
    arrived_at = time.monotonic()
    return service.engine.submit(
        Request(images, service.deadline(options, arrived_at), service.allowed_stitches(options), arrived_at)
    )


def file(size=(40, 30), kind="PNG", mode="RGB"):
    data = io.BytesIO()
    Image.effect_noise(size, 60).convert(mode).save(data, kind)
    return data.getvalue()


def test_a_file_is_classified_as_by_the_network(client):
    data = file()
    said = client.post("/predict", content=data)
    assert said.status_code == 200
    found = said.json()
    assert found["stitch_id"] == 2  # there is time for the dearest
    assert (found["top1"], found["late"], found["batch"]) == (80.0, False, 1)
    assert 0 < found["call_ms"] <= found["latency_ms"]
    with torch.inference_mode():
        logits = client.service.model(client.service.read(data), stitch_id=2)[0]
    order = logits.argsort(descending=True)[:5].tolist()
    assert [one["class"] for one in found["predictions"]] == order
    assert [one["label"] for one in found["predictions"]] == [LABELS[n] for n in order]
    best = found["predictions"][0]["probability"]
    assert best == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)
    assert len(client.post("/predict?top=2", content=data).json()["predictions"]) == 2


@pytest.mark.parametrize(
    ("kind", "mode"), [("JPEG", "L"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "1"), ("PNG", "RGBA")]
)
def test_images_of_all_formats_and_modes_are_read(client, kind, mode):
    assert client.post("/predict", content=file(kind=kind, mode=mode)).status_code == 200


def test_a_request_may_say_how_it_is_answered(client):
    table = {row["stitch_id"]: row for row in client.service.model.stitch_table()}
    assert client.post("/predict?stitch_id=5", content=file()).json()["stitch_id"] == 5  # any of the plan's
    within = client.post(f"/predict?macs={table[1]['macs']}", content=file()).json()
    assert within["stitch_id"] in (0, 1)
    assert within["macs"] <= table[1]["macs"]
    assert client.post("/predict?latency_ms=60000", content=file()).json()["stitch_id"] == 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("stitch_id=999", "there is no stitch 999"),
        ("stitch_id=x", "stitch_id must be a whole number, got 'x'"),
        ("macs=1", "the cost of the cheapest stitch, got 1."),
        ("macs=nan", "macs must be a number, got 'nan'"),
        ("latency_ms=-1", "latency_ms must be above 0 and at most 600,000, got -1"),
        ("latency_ms=inf", "latency_ms must be a number, got 'inf'"),
        ("stitch_id=3&macs=1e9", "not both"),
        ("stitch_id=1_0", "stitch_id must be a whole number, got '1_0'"),
        ("stich_id=1", "there is no option 'stich_id': expected latency_ms, stitch_id, macs, top"),
        ("top=1&top=2", "top is given twice"),
        ("top=0", "top must be 1 to 20, got 0"),
        ("top=21", "top must be 1 to 20, got 21"),
    ],
)
def test_request_options_that_cannot_be_met_are_refused(client, query, message):
    said = client.post(f"/predict?{query}", content=file())
    assert said.status_code == 400
    assert message in said.json()["error"]


def test_bad_images_are_400_and_the_next_is_answered(client):
    for data in (b"", b"no image", file()[:200], b"\x89PNG\r\n\x1a\n" + bytes(100), b"<svg/>", b"%PDF-1.7"):
        said = client.post("/predict", content=data)
        assert said.status_code == 400, data
        assert "\n" not in said.json()["error"]
    said = client.post("/predict", content=file((200, 51)))
    assert (said.status_code, "10,200 pixels: at most 10,000" in said.json()["error"]) == (400, True)
    assert client.post("/predict", content=file()).status_code == 200


def test_bodies_are_bounded(client):
    assert client.post("/predict", content=bytes(50_001)).status_code == 413
    sent = []

    def endless():
        while len(sent) < 1000:
            sent.append(1)
            yield bytes(1000)

    assert client.post("/predict", content=endless()).status_code == 413  # no content-length
    packed = client.post("/predict", content=file(), headers={"content-encoding": "gzip"})
    assert packed.status_code == 415
    assert client.get("/predict").status_code == 405
    assert client.get("/nothing").status_code == 404


def test_overload_is_503_at_once(client):
    service, held, running = client.service, threading.Event(), threading.Event()
    run = service.engine.deployment.run

    def hold(images, stitch_id):
        running.set()
        assert held.wait(60)
        return run(images, stitch_id)

    service.engine.deployment = service.engine.deployment._replace(run=hold)
    waiting = [submit(service, torch.zeros(1, 3, 32, 32), RequestOptions())]
    assert running.wait(60)
    waiting += [submit(service, torch.zeros(4, 3, 32, 32), RequestOptions(60_000.0)) for _ in range(2)]
    said = client.post("/predict", content=file())
    held.set()
    assert said.status_code == 503
    assert said.headers["retry-after"] == "1"
    assert "8 images wait already" in said.json()["error"]
    assert [len(answer.result(60).logits) for answer in waiting] == [1, 4, 4]
    assert client.post("/predict", content=file()).status_code == 200
    assert 'images_total{outcome="refused",stitch_id=""} 1.0' in client.get("/metrics").text


def test_a_late_event_loop_answers_503(client, monkeypatch):
    monkeypatch.setattr(type(client.application), "lag", property(lambda self: 1e9, lambda self, seconds: None), False)
    said = client.post("/predict", content=file())
    assert (said.status_code, "ms behind" in said.json()["error"]) == (503, True)


def test_images_whose_time_is_over_are_not_read(client):
    with pytest.raises(OverloadError, match="could not be read in time"):
        client.service.read_soon([file()], time.monotonic() - 1).result(60)
    assert client.service.read_soon([file()] * 2, time.monotonic() + 60).result(60).shape == (2, 3, 32, 32)
    said = client.post("/predict?latency_ms=0.000001", content=file())
    assert said.status_code == 503


def test_a_network_that_fails_is_500(client, caplog):
    def fail(images, stitch_id):
        raise RuntimeError("secret of the machine")

    client.service.engine.deployment = client.service.engine.deployment._replace(run=fail)
    said = client.post("/predict", content=file())
    assert said.status_code == 500
    assert "RuntimeError" in said.json()["error"]
    assert "secret" not in said.text


def test_logits_that_are_no_numbers_are_500(client, monkeypatch):
    run = client.service.engine.deployment.run

    def fail(images, stitch_id):
        return run(images, stitch_id).index_fill(1, torch.tensor([3]), float("nan"))

    client.service.engine.deployment = client.service.engine.deployment._replace(run=fail)
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3072}
    for said in (
        client.post("/predict", content=file()),
        client.post("/v2/models/net/infer", json={"inputs": [tensor]}),
    ):
        assert said.status_code == 500
        assert said.json()["error"] == "the network failed: the logits of stitch 2 are not finite numbers."


def test_values_that_no_prepared_image_has_are_the_clients_fault(client):
    for value, status in ((1e38, 400), (100.0, 200)):
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [value, -value] * 1536}
        said = client.post("/v2/models/net/infer", json={"inputs": [tensor]})
        assert said.status_code == status
        if status == 400:
            assert "the images have values up to 1e+38, for which the logits of stitch 2 are not" in said.text


def test_a_network_that_raises_value_errors_is_500_too(client, caplog):
    def fail(images, stitch_id):
        raise ValueError("there is no stitch 2")

    client.service.engine.deployment = client.service.engine.deployment._replace(run=fail)
    assert client.post("/predict", content=file()).status_code == 500


@pytest.mark.parametrize("value", [1.7, True, "1_0", [1]])
def test_options_of_the_protocol_are_numbers(client, value):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3072}
    said = client.post("/v2/models/net/infer", json={"inputs": [tensor], "parameters": {"stitch_id": value}})
    assert said.status_code == 400
    assert "stitch_id must be a whole number" in said.text or "plain values" in said.text


def test_a_timeout_of_zero_is_none(client):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.0] * 3072}

    def post(parameters, query=""):
        body = {"inputs": [tensor], "parameters": parameters}
        return client.post(f"/v2/models/net/infer{query}", json=body)

    assert post({"timeout": 0}).json()["parameters"]["stitch_id"] == 2
    assert post({"timeout": 60_000_000}).status_code == 200
    assert "timeout must be a number" in post({"timeout": True}).json()["error"]
    assert "not both" in post({"timeout": 5, "latency_ms": 5}).json()["error"]
    assert "there is no option 'priority'" in post({"priority": 1}).json()["error"]
    assert "not in the query" in post({}, "?stitch_id=1").json()["error"]


def test_pages_of_other_sites_are_refused(service):
    with TestClient(HttpApp(service, hosts=[]).asgi(), base_url="http://127.0.0.1:8000") as client:
        assert client.post("/predict", content=file()).status_code == 200
        for headers in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
            said = client.post("/predict", content=file(), headers=headers)
            assert (said.status_code, "--allowed-host" in said.json()["error"]) == (403, True)
        assert client.get("/metrics", headers={"host": "evil.example"}).status_code == 403


def test_a_body_has_at_least_a_byte(service):
    with pytest.raises(ValueError, match="most_bytes must be 1 or more, got 0"):
        HttpApp(service, most_bytes=0)


def test_health_and_metadata(client):
    assert client.get("/health").json()["ready"]
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/models/net/ready").status_code == 200
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data", "classification"]
    assert client.get("/v2/models/net").json()["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    client.service.engine.close(1.0)
    assert client.get("/health").status_code == 503
    assert client.post("/predict", content=file()).status_code == 503


def test_inference_in_json(client):
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": [2, 3, 32, 32], "data": images.ravel().tolist()}
    with TestClient(HttpApp(client.service).asgi()) as roomy:
        said = roomy.post("/v2/models/net/infer", json={"inputs": [tensor], "parameters": {"stitch_id": 1}}).json()
    with torch.inference_mode():
        expected = client.service.model(torch.from_numpy(images), stitch_id=1)
    assert torch.allclose(torch.tensor(said["outputs"][0]["data"]).reshape(2, 10), expected, atol=1e-5)
    assert (said["parameters"]["stitch_id"], said["parameters"]["top1"]) == (1, 75.0)
    bad = client.post("/v2/models/net/versions/1/infer", json={"inputs": []})
    assert (bad.status_code, "expected one input" in bad.json()["error"]) == (400, True)


def test_metrics_count_images_and_errors(client):
    for _ in range(3):
        client.post("/predict", content=file())
    client.post("/predict", content=b"")
    text = client.get("/metrics").text
    assert 'timm_stitch_images_total{outcome="met",stitch_id="2"} 3.0' in text
    assert 'timm_stitch_requests_total{status="200"} 3.0' in text
    assert 'timm_stitch_requests_total{status="400"} 1.0' in text
    assert "timm_stitch_request_seconds_count 3.0" in text
    assert "timm_stitch_batch_images_count 3.0" in text
    assert "timm_stitch_expected_accuracy_percent 80.0" in text
    assert "timm_stitch_loop_lag_seconds" in text
    recent = client.get("/recent").json()
    assert [one["stitch_id"] for one in recent["stitches"]] == [0, 1, 2]
    assert sum(second["met"] for second in recent["seconds"]) == 3
    assert {second["top1"] for second in recent["seconds"]} == {80.0}
    assert "<svg" in client.get("/").text


def test_another_network_is_served_if_clients_need_not_know(client, anchors):
    other = known(timm_stitch.stitch(anchors).eval())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    other.results.clear()
    before = client.post("/predict", content=file()).json()
    client.service.replace(known(other))
    after = client.post("/predict", content=file()).json()
    assert before["predictions"] != after["predictions"]
    unknown = timm_stitch.stitch(anchors).eval()
    unknown.pretrained_cfg = {**unknown.pretrained_cfg, "label_names": LABELS}
    with pytest.raises(ValueError, match="known accuracy"):
        client.service.replace(unknown)
    assert (client.service.labels, client.service.accuracy[2]) == (LABELS, 80.0)  # nothing of it stays
    wrong = known(timm_stitch.stitch(anchors).eval())
    wrong.reset_classifier(7)
    with pytest.raises(ValueError, match="has 7 classes, the old one"):
        client.service.replace(wrong)


def test_a_network_with_other_classes_or_preparation_is_refused(client, anchors):
    other = known(timm_stitch.stitch(anchors).eval())
    config = other.pretrained_cfg
    other.pretrained_cfg = {**config, "label_names": LABELS[1:] + LABELS[:1]}
    with pytest.raises(ValueError, match="class 0 of the new network is 'kind 1', it was 'kind 0'"):
        client.service.replace(other)
    other.pretrained_cfg = {**config, "mean": (0.1, 0.1, 0.1)}
    with pytest.raises(ValueError, match="the new network prepares images with mean="):
        client.service.replace(other)
    other.pretrained_cfg = {**config, "interpolation": "nonsense"}
    with pytest.raises(Exception, match="nonsense"):
        client.service.replace(other)
    assert client.service.labels == LABELS
    assert client.post("/predict?top=1", content=file()).json()["predictions"][0]["label"].startswith("kind ")


def test_an_answer_is_of_one_network(client, anchors):
    """A request that waits while its network is replaced is answered by it, with its stitches."""
    held, running = threading.Event(), threading.Event()
    last = max(client.service.stitches)
    engine, run = client.service.engine, client.service.engine.deployment.run

    def hold(images, stitch_id):
        running.set()
        assert held.wait(60)
        return run(images, stitch_id)

    engine.deployment = engine.deployment._replace(run=hold)
    answers = []
    sending = threading.Thread(
        target=lambda: answers.append(client.post(f"/predict?stitch_id={last}", content=file()).json())
    )
    sending.start()
    assert running.wait(60)
    client.service.replace(known(timm_stitch.stitch(anchors[:2]).eval()))  # it has fewer stitches
    held.set()
    sending.join(60)
    assert answers[0]["stitch_id"] == last
    assert answers[0]["stitch"]
    assert f"there is no stitch {last}" in client.post(f"/predict?stitch_id={last}", content=file()).json()["error"]


def test_the_page_says_nothing_unescaped(client):
    page = client.get("/").text
    assert "innerHTML" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert json.loads(client.get("/recent").text)["name"] == "net"
