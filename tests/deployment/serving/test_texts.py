"""Networks of texts behind a server: both doors, batches of like length, bounds, overload, reload and refusals."""

import io
import json
import logging
import struct
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from served_texts import WORDS, known, stitched, text, tokenizer
from starlette.testclient import TestClient

pytest.importorskip("transformers", minversion="5.20")

import tiny
from transformers import BertModel

import timm_stitch
from timm_stitch.deployment.serving.config import RequestOptions, ServingConfig
from timm_stitch.deployment.serving.engine import OverloadError
from timm_stitch.deployment.serving.server import HttpServer
from timm_stitch.deployment.serving.text_app import open_app
from timm_stitch.deployment.serving.text_reader import TextReader
from timm_stitch.deployment.serving.text_service import open_service
from timm_stitch.deployment.serving.texts import count_work, make_buckets

CONFIG = ServingConfig(5000.0, most_images=4, most_waiting=8, most_characters=400)


@pytest.fixture(scope="module")
def classifier():
    return known(stitched())


@pytest.fixture(scope="module")
def client(classifier):
    service = open_service(classifier, CONFIG, "net")
    with TestClient(open_app(service, most_bytes=50_000).asgi()) as made:
        made.service = service
        yield made
    service.close()


@pytest.fixture(scope="module")
def embeds():
    service = open_service(stitched(cls=BertModel), ServingConfig(5000.0, policy="fixed"), "net")
    with TestClient(open_app(service).asgi()) as made:
        made.service = service
        yield made
    service.close()


def outputs(model, of, stitch_id):
    batch = tokenizer()(of, return_tensors="pt")
    with torch.inference_mode():
        return model(**{k: v for k, v in batch.items() if k != "token_type_ids"}, stitch_id=stitch_id)


def infer(client, inputs, **more):
    return client.post("/v2/models/net/infer", json={"inputs": inputs, **more})


def tokens(ids, mask=None, **more):
    ids = np.asarray(ids)
    mask = np.ones_like(ids) if mask is None else np.asarray(mask)
    return [
        {"name": "input_ids", "datatype": "INT64", "shape": list(ids.shape), "data": ids.tolist(), **more},
        {"name": "attention_mask", "datatype": "INT64", "shape": list(mask.shape), "data": mask.tolist()},
    ]


def test_a_text_is_classified_as_by_the_network(client):
    answer = client.post("/predict", content=text(9), headers={"content-type": "text/plain"}).json()
    assert (answer["stitch_id"], answer["top1"], answer["late"], answer["batch"]) == (1, 80.0, False, 1)
    chances = outputs(client.service.model, text(9), 1).logits[0].softmax(0)
    best = chances.argsort(descending=True).tolist()
    assert [one["class"] for one in answer["predictions"]] == best
    assert answer["predictions"][0]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)
    assert answer["predictions"][0]["label"] == f"LABEL_{best[0]}"
    listed = client.post("/predict?stitch_id=0&top=1", json={"texts": [text(3), text(20, 5)]}).json()
    assert (listed["stitch_id"], listed["batch"]) == (0, 2)
    for one, of in zip(listed["predictions"], (text(3), text(20, 5)), strict=True):
        chances = outputs(client.service.model, of, 0).logits[0].softmax(0)
        assert [p["class"] for p in one] == [int(chances.argmax())]
        assert one[0]["probability"] == pytest.approx(float(chances.max()), abs=1e-5)


def test_texts_of_mixed_lengths_at_once_get_their_own_logits(client):
    texts = [text(n, n) for n in (1, 2, 15, 16, 17, 30, 33, 64)]
    ids = [tokenizer()(of)["input_ids"] for of in texts]
    service, now = client.service, time.monotonic()
    network = service.engine.deployment.network
    batches = [service.tokenize_soon([of], False, now + 5).result() for of in texts]
    assert [batch.arguments["input_ids"][0].tolist() for batch in batches] == ids
    futures = [service.submit(batch, now + 5 + n, frozenset([1]), now) for n, batch in enumerate(batches)]
    answers = [future.result() for future in futures]
    assert {answer.batch for answer in answers} != {1}  # some shared a call
    for of, answer in zip(texts, answers, strict=True):
        expected = outputs(service.model, of, 1).logits
        assert torch.allclose(answer.logits, expected, atol=1e-5)
    joined = network.join([batches[0], batches[3]])
    assert (len(joined), joined.length) == (2, 16)
    assert joined.arguments["attention_mask"].sum(1).tolist() == [1, 16]


def test_texts_share_calls_with_those_of_their_bucket(client):
    service, now = client.service, time.monotonic()
    network = service.engine.deployment.network
    assert make_buckets(64) == network.buckets == [16, 32, 48, 64]
    assert make_buckets(10) == [10]
    short, long = (service.tokenize_soon([text(n)], False, now + 5).result() for n in (5, 60))
    lock = service.engine._changed
    with lock:  # the engine sees all at once
        futures = [service.submit(batch, now + 5 + n, None, now) for n, batch in enumerate([short, long, short, long])]
        assert service.waiting == 4
        assert len(service.engine._deadlines) == 2 * (network.weights[0] + network.weights[-1])
    assert [future.result().batch for future in futures] in ([2, 2, 2, 2], [1, 2, 1, 2])  # the first may run at once
    assert service.waiting == 0


def test_work_grows_as_multiply_adds_do(classifier):
    lengths = [16, 32, 48, 64]
    macs = {n: classifier.costs(n).cost(classifier.plan[0]).macs for n in lengths}
    ratios = [macs[n] / macs[16] for n in lengths]
    assert ratios[3] > 4  # attention
    assert count_work(classifier, [0], lengths) == [round(ratio) for ratio in ratios]
    quadratic = SimpleNamespace(
        plan=[0], costs=lambda n: SimpleNamespace(cost=lambda stitch: SimpleNamespace(macs=n * (100 + n)))
    )
    assert count_work(quadratic, [0], [16, 128, 512]) == [1, 16, 169]  # attention takes the square


def test_tokens_and_texts_by_the_protocol(client):
    texts = [text(3), text(20, 5)]
    first = infer(client, [{"name": "text", "datatype": "BYTES", "shape": [2], "data": texts}], id="a").json()
    details = first["parameters"]
    assert (first["id"], first["outputs"][0]["shape"], details["stitch_id"]) == ("a", [2, 3], 1)
    logits = np.array(first["outputs"][0]["data"]).reshape(2, 3)
    for row, of in zip(logits, texts, strict=True):
        assert np.allclose(row, outputs(client.service.model, of, 1).logits[0], atol=1e-5)
    batch = tokenizer()(texts, padding=True, return_tensors="np")
    given = tokens(batch["input_ids"], batch["attention_mask"])
    again = infer(client, given).json()
    assert np.allclose(again["outputs"][0]["data"], logits.ravel(), atol=1e-5)
    encoded = b"".join(struct.pack("<I", len(of)) + of.encode() for of in texts)
    ids = batch["input_ids"].astype("<i8").tobytes()
    for inputs, behind in (
        (
            [{"name": "text", "datatype": "BYTES", "shape": [2, 1], "parameters": {"binary_data_size": len(encoded)}}],
            encoded,
        ),
        ([{**given[0], "data": None, "parameters": {"binary_data_size": len(ids)}}, given[1]], ids),
    ):
        inputs[0].pop("data", None)
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True, "stitch_id": 3}}).encode()
        answer = client.post(
            "/v2/models/net/infer", content=head + behind, headers={"inference-header-content-length": str(len(head))}
        )
        length = int(answer.headers["inference-header-content-length"])
        assert json.loads(answer.content[:length])["parameters"]["stitch_id"] == 3
        expected = torch.cat([outputs(client.service.model, of, 3).logits for of in texts])
        assert np.allclose(np.frombuffer(answer.content[length:], "<f4").reshape(2, 3), expected, atol=1e-5)


def test_tritonclient_asks_with_texts(client):
    http = pytest.importorskip("tritonclient.http")
    asked = http.InferInput("text", [2], "BYTES")
    asked.set_data_from_numpy(np.array([text(3), text(20, 5)], dtype=np.object_))
    body, length = http.InferenceServerClient.generate_request_body([asked])
    answer = client.post("/v2/models/net/infer", content=body, headers={"inference-header-content-length": str(length)})
    assert answer.status_code == 200
    about = client.get("/v2/models/net").json()
    assert {tensor["name"]: tensor["datatype"] for tensor in about["inputs"]} == {
        "text": "BYTES", "input_ids": "INT64", "attention_mask": "INT64",
    }  # fmt: skip
    assert about["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 3]}]
    assert about["max_length"] == 64


BAD = {
    "": "a text is empty: give",
    "  \n": "a text is empty: give",
    "a\0b": "NUL",
    "w1 " * 65: "65 tokens, and at most 64",
    "w1" * 300: "600 characters: at most 400",
    b"\xff\xfe": "not valid UTF-8",
}
BAD_JSON = {
    '{"text": "\\ud800"}': "half of a surrogate pair",
    '{"text": 3}': "text must be a text",
    '{"texts": "w1"}': "texts a list",
    '{"texts": []}': "0 texts: 1 to 4",
    '{"texts": ["w1", "w1", "w1", "w1", "w1"]}': "5 texts: 1 to 4",
    '{"text": "w1", "texts": ["w1"]}': "expected",
    '["w1"]': "expected",
    "{": "not JSON",
}


@pytest.mark.parametrize("body", BAD)
def test_a_bad_text_is_refused_in_one_line(client, body):
    answer = client.post("/predict", content=body, headers={"content-type": "text/plain"})
    assert (answer.status_code, BAD[body] in answer.json()["error"]) == (400, True), answer.json()
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize("body", BAD_JSON)
def test_bad_json_is_refused_in_one_line(client, body):
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, BAD_JSON[body] in answer.json()["error"]) == (400, True), answer.json()


def test_options_of_texts(client):
    long, plain = text(70), {"content-type": "text/plain"}
    assert client.post("/predict?truncate=true", content=long, headers=plain).status_code == 200
    for query, reason in (
        ("truncate=maybe", "truncate must be true or false"), ("top=0", "top must be"), ("size=3", "no option 'size'"),
        ("stitch_id=99", "there is no stitch 99"),
    ):  # fmt: skip
        answer = client.post(f"/predict?{query}", content="w1", headers=plain)
        assert (answer.status_code, reason in answer.json()["error"]) == (400, True)
    answer = client.post("/predict", content="w1", headers={"content-type": "text/plain; charset=latin-1"})
    assert "send text/plain in UTF-8" in answer.json()["error"]
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [long]}]
    assert infer(client, inputs).status_code == 400
    assert infer(client, inputs, parameters={"truncate": True}).status_code == 200


BAD_TENSORS = {
    "negative": (tokens([[3, -1]]), "input_ids' has -1, and the network knows tokens 0 to 98"),
    "beyond the vocabulary": (tokens([[3, 99]]), "input_ids' has 99"),
    "mask of another shape": (tokens([[3, 4]], [[1]]), "attention_mask' has shape"),
    "mask of twos": (tokens([[3, 4]], [[1, 2]]), "must hold 1 for a token and 0 for padding"),
    "mask of nothing": (tokens([[3, 4]], [[0, 0]]), "leaves a text without a token"),
    "floats": (tokens([[3, 4]], datatype="FP32"), "has datatype 'FP32'"),
    "floats as int64": (tokens([[3.5, 4]]), "not 2 whole numbers"),
    "too long": (tokens([[3] * 65]), "texts of 65 tokens: 1 to 64"),
    "too many": (tokens([[3]] * 5), "5 texts: 1 to 4"),
    "a huge number": (tokens([[3, 4]])[:1] and [{**tokens([[3, 4]])[0], "data": [3, 1 << 70]}, tokens([[3, 4]])[1]],
                      "no int64"),
    "one row": (tokens([3, 4]), "has datatype 'INT64' and shape [2]"),
    "no mask": (tokens([[3]])[:1], "expected 'text'"),
    "images": ([{"name": "image", "datatype": "BYTES", "shape": [1], "data": ["a"]}], "expected 'text'"),
    "a number as text": ([{"name": "text", "datatype": "BYTES", "shape": [1], "data": [3]}], "not 1 texts"),
    "an unknown field": (tokens([[3]], more=1), "'more' is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors_are_refused_in_one_line(client, name):
    inputs, reason = BAD_TENSORS[name]
    answer = infer(client, inputs)
    assert (answer.status_code, reason in answer.json()["error"]) == (400, True), answer.json()


def test_overload_is_503_and_counted(client):
    service, now = client.service, time.monotonic()
    with service.engine._changed:
        batch = service.tokenize_soon([text(3)] * 4, False, now + 5).result()
        futures = [service.submit(batch, now + 5, None, now) for _ in range(2)]
        with pytest.raises(OverloadError, match="8 texts wait already"):
            service.submit(batch, now + 5, None, now)
    assert all(len(future.result().logits) == 4 for future in futures)
    late = client.post("/predict?latency_ms=0.001", content="w1", headers={"content-type": "text/plain"})
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")
    assert 'texts_total{outcome="refused",stitch_id=""}' in client.get("/metrics").text
    assert 'texts_total{outcome="met",stitch_id="1"}' in client.get("/metrics").text
    assert "texts a second" in client.get("/").text


def test_tokenizing_is_bounded(client):
    reader, network = TextReader(100, 2, 1), client.service.engine.deployment.network
    with pytest.raises(OverloadError, match="0 texts wait to be tokenized"):
        reader.read_soon(["w1"] * 3, network, False, time.monotonic() + 5)
    with pytest.raises(OverloadError, match="could not be tokenized in time"):
        reader.read_soon(["w1"], network, False, time.monotonic() - 1).result()
    assert len(reader.read_soon(["w1"] * 2, network, False, time.monotonic() + 5).result()) == 2
    reader.close()
    with pytest.raises(OverloadError, match="shutting down"):
        reader.read_soon(["w1"], network, False, time.monotonic() + 5)


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_embeddings_are_pooled_from_the_last_layer(embeds, pooling):
    network = embeds.service.engine.deployment.network
    network.endpoint.pooling = pooling
    texts = [text(3), text(20, 5)]
    answer = embeds.post("/predict", json={"texts": texts}).json()
    wide = {k for k in embeds.service.model.stitch_ids if embeds.service.model.plan[k].back == 1}
    assert answer["stitch_id"] in embeds.service.stitches.keys() == wide  # embeddings have one width
    for one, of in zip(answer["embeddings"], texts, strict=True):
        states = outputs(embeds.service.model, of, answer["stitch_id"]).last_hidden_state[0]
        expected = {"mean": states.mean(0), "first": states[0], "last": states[-1]}[pooling]
        assert np.allclose(one, expected, atol=1e-5)
    network.endpoint.pooling = "mean"


def test_embeddings_by_the_protocol(embeds):
    single = embeds.post("/predict", content="w1 w2", headers={"content-type": "text/plain"}).json()
    answer = infer(embeds, [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["w1 w2"]}]).json()
    assert answer["outputs"][0]["name"] == "embeddings"
    assert np.allclose(answer["outputs"][0]["data"], single["embedding"], atol=1e-6)
    assert embeds.get("/v2/models/net").json()["outputs"][0] == {
        "name": "embeddings", "datatype": "FP32", "shape": [-1, 48],
    }  # fmt: skip
    assert "no option 'top'" in embeds.post("/predict?top=2", content="w1").json()["error"]
    assert "there is no stitch 0" in embeds.post("/predict?stitch_id=0", content="w1").json()["error"]


def refuse_listening(monkeypatch):
    """Let a server try its port, and listen no more."""
    tried = []

    def listen(host, port):
        assert not tried, "it listens"
        tried.append(port)
        return io.BytesIO()

    monkeypatch.setattr("timm_stitch.deployment.serving.server.listen", listen)


def without_tokenizer():
    network = known(stitched())
    network.tokenizer = None
    return network


@pytest.mark.parametrize(
    ("make", "more", "reason"),
    [
        (lambda: stitched(tiny.llama), {}, "call a network of another kind by transformers.pipeline"),
        (without_tokenizer, {}, "this network has no tokenizer"),
        (
            lambda: stitched(),
            {},
            "no stitch of this network has a known accuracy to choose it by: evaluate it, model.res",
        ),
        (lambda: known(stitched()), {"engine": "openvino"}, "engine openvino runs classifiers of images"),
        (lambda: known(stitched()), {"max_length": 65}, "max_length must be at most 64"),
        (lambda: timm_stitch.stitch([tiny.hf_vit(), tiny.hf_vit(48)]), {}, "call a network of another kind"),
    ],
)
def test_what_is_not_served_is_refused_before_anything_listens(make, more, reason, monkeypatch):
    refuse_listening(monkeypatch)
    with pytest.raises(ValueError, match=reason):
        HttpServer(make, ServingConfig(5000.0, **more), port=0)


def test_reload_serves_other_weights_and_refuses_another_tokenizer():
    service = open_service(known(stitched()), CONFIG)
    try:
        with TestClient(open_app(service).asgi()) as client:
            before = client.post("/predict", content="w1 w2").json()
            new = known(stitched(seed=3))
            service.replace(new)
            after = client.post("/predict", content="w1 w2").json()
            assert after["predictions"] != before["predictions"]
            other = known(stitched())
            other.tokenizer = tokenizer([*WORDS[:2], *reversed(WORDS[2:])])
            with pytest.raises(ValueError, match="the new network has another tokenizer: start another server"):
                service.replace(other)
            other = known(stitched())
            other.config.id2label = {0: "a", 1: "b", 2: "c"}
            with pytest.raises(ValueError, match="class 0 of the new network is 'a', it was 'LABEL_0'"):
                service.replace(other)
            other = known(stitched())
            other.tokenizer.model_max_length = 32
            with pytest.raises(ValueError, match="another max_length 32, not 64"):
                service.replace(other)
            assert client.post("/predict", content="w1 w2").json()["predictions"] == after["predictions"]
            assert service.model is new
    finally:
        service.close()


def test_bf16_agrees_on_the_lines_of_a_file(tmp_path, caplog):
    (tmp_path / "lines.txt").write_text("\n".join(text(n, n) for n in range(1, 30)) + "\n")
    lines = str(tmp_path / "lines.txt")
    config = ServingConfig(5000.0, policy="fixed", stitch_id=1, precision="bf16", calibration=lines)
    service = open_service(known(stitched()), config)
    try:
        agreement = service.engine.deployment.agreement
        assert (agreement.images, agreement.kind) == (29, "texts")
        assert 0 < agreement.largest_difference < 0.5
        assert "29 texts of " in caplog.text
        with TestClient(open_app(service).asgi()) as client:
            answer = client.post("/predict", content=text(9)).json()
        assert answer["precision"] == "bf16"
        assert answer["agreement"] == agreement.each[answer["stitch_id"]] > 0.8
    finally:
        service.close()
    (tmp_path / "lines.txt").write_text("\n")
    with pytest.raises(ValueError, match="there are no texts in"):
        open_service(known(stitched()), config)


def test_times_that_profile_measured_are_used(caplog):
    network = stitched()
    network.results.add({"stitch_id": k, "top1": 50.0 + k} for k in network.stitch_ids)
    rows = timm_stitch.profile(network, batch_sizes=[1, 4], length=16, repeats=1)
    assert rows[0]["profiled_on"].endswith(", texts of 16 tokens")
    assert rows[0]["macs"] == network.costs().cost(network.plan[0]).macs  # of the network's own length
    open_service(network, ServingConfig(5000.0)).close()
    assert "were measured" not in caplog.text
    timm_stitch.profile(network, batch_sizes=[1, 4], repeats=1)  # of longer texts, which do not count
    with caplog.at_level(logging.WARNING):
        open_service(network, ServingConfig(5000.0)).close()
    assert "--length 16 --save" in caplog.text
    with pytest.raises(ValueError, match="length=65 is out of range"):
        timm_stitch.profile(network, length=65)


def test_a_policy_of_one_stitch(classifier):
    service = open_service(classifier, ServingConfig(5000.0, policy="fixed", stitch_id=3))
    assert service.table.stitch_ids == [3]
    assert service.allowed_stitches(RequestOptions(macs=1e9)) == frozenset([3])
    service.close()
