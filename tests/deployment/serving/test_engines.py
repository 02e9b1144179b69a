"""Engines behind a server: equal answers, the handover from torch, fallbacks, the cache, and reloads."""

import importlib
import importlib.util
import json
import random
import threading
import time
from pathlib import Path

import pytest
import torch
from served_network import network

from timm_stitch.deployment.serving.backends import compiled, conversions, openvino_engine
from timm_stitch.deployment.serving.backends.compiled import BOUNDS, CompiledBackend
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.deployment.serving.config import RequestOptions, ServingConfig
from timm_stitch.deployment.serving.deployments import arithmetic
from timm_stitch.deployment.serving.engine_profile import profile_engine
from timm_stitch.deployment.serving.service import InferenceService
from timm_stitch.plan.timings import call_times

HAS = {name: importlib.util.find_spec(name) is not None for name in ("openvino", "onnxruntime")}
ENGINES = [pytest.param(e, marks=pytest.mark.skipif(not HAS[e], reason=f"needs {e}")) for e in HAS]
needs_openvino = pytest.mark.skipif(not HAS["openvino"], reason="needs openvino")
pytestmark = pytest.mark.filterwarnings("default")  # an engine's own


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache that the tests of this file share, as servers of one user do."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def served(model, seconds=240, **more):
    """A service whose engine has taken over."""
    service = InferenceService(model, ServingConfig(3000.0, **more), "net")
    wait(service, seconds)
    return service


def wait(service, seconds=240):
    until = time.monotonic() + seconds
    while service.engine.deployment.backend.engine == "torch" and time.monotonic() < until:
        assert service._handover.thread.is_alive() or service.engine.deployment.backend.engine != "torch"
        time.sleep(0.05)


def ask(service, images, stitch_id=None):
    allowed = service.allowed_stitches(RequestOptions(stitch_id=stitch_id))
    now = time.monotonic()
    return service.submit(images, now + 60, allowed, now).result(60)


def reference(model, images, stitch_id):
    with torch.inference_mode():
        return model(images, stitch_id=stitch_id)


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_answers_as_torch_does_with_the_times_that_were_profiled(engine, caplog):
    model, images = network(), torch.randn(3, 3, 32, 32)
    rows = profile_engine(model, engine, batch_sizes=[1, 4], repeats=3)
    assert [row["stitch_id"] for row in rows] == [0, 1, 2]  # those that a server prepares
    assert all(f", {engine} " in row["profiled_on"] and row["precision"] == "fp32" for row in rows)
    assert all(list(call_times(row)) == [1, 4] and row["latency_ms"] > 0 for row in rows)
    assert rows[0]["images_per_s"] == pytest.approx(1e3 / rows[0]["latency_ms"])
    kept = {row["stitch_id"]: row["latency_ms_batch_4"] for row in model.stitch_table() if row["stitch_id"] < 3}
    assert kept == {row["stitch_id"]: row["latency_ms_batch_4"] for row in rows}
    service = served(model, engine=engine)
    assert "latencies of 3 stitches" in caplog.text  # torch's were measured: the engine's are not used for it
    deployment = service.engine.deployment
    assert deployment.backend.engine == engine
    table = deployment.table
    used = {k: 1e3 * table.seconds(n, 4) for n, k in enumerate(table.stitch_ids)}
    assert used == pytest.approx({k: kept[k] for k in used})
    assert list(deployment.backend.ready) == [0, 1, 2]
    assert f"{engine} 2" in deployment.backend.name or f"{engine} 1" in deployment.backend.name
    for stitch_id in [*deployment.backend.ready, 5]:
        answer = ask(service, images, stitch_id)
        assert answer.stitch_id == stitch_id
        torch.testing.assert_close(answer.logits, reference(model, images, stitch_id), atol=1e-5, rtol=0)
    assert arithmetic(deployment, 1) == {"engine": engine, "precision": "fp32"}
    assert arithmetic(deployment, 5) == {"engine": "torch", "precision": "fp32"}  # not in the table
    first = deployment.backend.run(images, 0)
    kept = first.clone()
    deployment.backend.run(2 * images, 0)
    assert torch.equal(first, kept)  # no later call changes it
    assert f"{engine} answers from now on: 3 stitches" in caplog.text
    assert " MB" in caplog.text
    service.close()


@pytest.mark.parametrize("engine", ENGINES)
def test_other_dtypes_shapes_and_failures_run_in_torch(engine, caplog):
    service = served(network(), engine=engine)
    backend, images = service.engine.deployment.backend, torch.randn(2, 3, 32, 32)
    exact = backend.run(images.double(), 0)  # an engine would convert it, or fail
    assert torch.equal(exact, service.engine.deployment.backend.reference.run(images.double(), 0))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        backend.run(torch.randn(1, 3, 40, 40), 0)
    assert backend.run(images[:0], 0).shape == (0, 10)

    def fail(images):
        raise RuntimeError("no kernel\nfor this")

    backend._compiled[1] = fail
    for _ in range(3):
        assert torch.equal(ask(service, images, 1).logits, reference(service.model, images, 1))
    said = f"stitch 1 runs in torch from now on: {engine} failed (RuntimeError: no kernel)"
    assert [r.message for r in caplog.records].count(said) == 1
    assert arithmetic(service.engine.deployment, 1)["engine"] == "torch"
    service.close()


@needs_openvino
def test_stitches_that_share_their_weights_are_compiled_in_parts(caplog):
    model, images = network(), torch.randn(3, 3, 32, 32)
    here = model.results.current_rows()[0]["profiled_on"]
    by_cost = sorted(model.stitch_table()[:12], key=lambda row: row["macs"])  # all are on the frontier
    model.results.add(
        {
            "stitch_id": row["stitch_id"], "top1": 60.0 + n, "latency_ms": 1.0 + n, "batch_size": 1,
            "profiled_on": here, "precision": "fp32", "latency_ms_batch_1": 1.0 + n, "latency_ms_batch_2": 2.0 + n,
        }
        for n, row in enumerate(by_cost)
    )  # fmt: skip
    service = served(model, engine="openvino")
    backend = service.engine.deployment.backend
    assert "in parts that they share" in caplog.text
    assert backend.name.endswith("parts")
    assert sorted(backend.ready) == list(range(12))
    for stitch_id in range(13):
        answer = ask(service, images, stitch_id)
        torch.testing.assert_close(answer.logits, reference(model, images, stitch_id), atol=1e-5, rtol=0)
    union = sum(t.nbytes for t in {k: v for i in range(12) for k, v in model.extract(i).state_dict().items()}.values())
    assert (backend.folder / "weights.bin").stat().st_size < 1.1 * union
    service.close()


@needs_openvino
def test_second_start_converts_and_measures_nothing_and_damage_is_mended(monkeypatch):
    first = served(network(), engine="openvino")
    folder = first.engine.deployment.backend.folder
    first.close()
    converted = []
    convert = conversions._convert
    monkeypatch.setattr(conversions, "_convert", lambda *args: (converted.append(1), convert(*args)))
    measured = []
    handover = importlib.import_module("timm_stitch.deployment.serving.handover")
    measure = handover.measure
    monkeypatch.setattr(handover, "measure", lambda *args, **more: (measured.append(1), measure(*args, **more))[1])
    model, images = network(), torch.randn(2, 3, 32, 32)
    served(model, engine="openvino").close()
    assert (converted, measured) == ([], [])
    weights = folder / "weights.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 255
    weights.unlink()
    weights.write_bytes(data)
    service = served(model, engine="openvino")
    assert converted == [1]
    torch.testing.assert_close(ask(service, images, 0).logits, reference(model, images, 0), atol=1e-5, rtol=0)
    service.close()
    latencies = next(folder.glob("latencies-*.json"))
    latencies.write_text(json.dumps({"rows": [{"stitch_id": 0}], "digest": "0"}))
    served(model, engine="openvino").close()
    assert converted == [1]
    assert len(measured) == 2


@needs_openvino
def test_openvino_in_bf16_is_within_its_bound_and_its_agreement_is_measured(caplog):
    model, images = network(), torch.randn(4, 3, 32, 32)
    try:
        service = served(model, engine="openvino", precision="bf16")
    except ValueError as error:
        pytest.skip(str(error))
    logits, expected = ask(service, images, 2).logits, reference(model, images, 2)
    difference = (logits - expected).abs().max() / max(1, expected.abs().max())
    assert 1e-5 < difference < BOUNDS["bf16"]
    assert "openvino in bf16 agrees with fp32:" in caplog.text
    assert "agreement" in arithmetic(service.engine.deployment, 2)
    service.close()


@needs_openvino
def test_eight_clients_get_no_wrong_answer_while_the_network_is_reloaded():
    models = [network(seed) for seed in range(2)]
    images = torch.randn(32, 3, 32, 32)
    assert not torch.allclose(reference(models[0], images, 0), reference(models[1], images, 0), atol=1e-2)
    right = {(n, k): reference(m, images, k) for n, m in enumerate(models) for k in range(4)}
    service = served(models[0], engine="openvino")
    wrong, counts, ended = [], [0] * 8, threading.Event()

    def client(number):
        draw = random.Random(number)
        while not ended.is_set():
            count, start, k = draw.randint(1, 4), draw.randrange(28), draw.randrange(4)
            deployment = service.engine.deployment
            now = time.monotonic()
            answer = service.submit(images[start : start + count], now + 60, frozenset([k]), now, deployment).result()
            model = models.index(deployment.network.model)
            expected = right[model, answer.stitch_id][start : start + count]
            if answer.stitch_id != k or not torch.allclose(answer.logits, expected, atol=1e-4, rtol=0):
                wrong.append((number, model, k))
            counts[number] += 1

    clients = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in clients:
        thread.start()
    engines = set()
    for reload in range(4):
        service.replace(models[(reload + 1) % 2])
        engines.add(service.engine.deployment.backend.engine)
        wait(service, 120)
        engines.add(service.engine.deployment.backend.engine)
        time.sleep(0.1)
    ended.set()
    for thread in clients:
        thread.join()
    service.close()
    assert not wrong
    assert min(counts) > 0
    assert engines == {"torch", "openvino"}


@needs_openvino
def test_too_much_memory_is_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match=r"would take about \d\.\d MB for 3 stitches, more than most_memory_mb=0\.1"):
        InferenceService(network(), ServingConfig(3000.0, engine="openvino", most_memory_mb=0.1))


@needs_openvino
def test_a_network_that_cannot_be_converted_stays_in_torch(monkeypatch, caplog):
    monkeypatch.setattr(conversions, "_PROCESS", "timm_stitch.no_such_module")
    model = network(7)
    service = InferenceService(model, ServingConfig(3000.0, engine="openvino"))
    service._handover.thread.join(60)
    assert "torch stays: the network was not converted: " in caplog.text
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(ask(service, images, 0).logits, reference(model, images, 0))
    service.close()


def test_engines_that_do_not_fit_are_refused(monkeypatch, caplog):
    model = network()
    with pytest.raises(
        ValueError, match="engine must be one of torch, openvino, onnxruntime, cuda-graphs, auto, got 'tvm'"
    ):
        ServingConfig(100.0, engine="tvm")
    with pytest.raises(ValueError, match="most_memory_mb must be positive"):
        ServingConfig(100.0, most_memory_mb=0)
    with pytest.raises(ValueError, match="engine onnxruntime computes in fp32 or int8 here, got precision bf16"):
        InferenceService(model, ServingConfig(100.0, engine="onnxruntime", precision="bf16"))
    monkeypatch.setitem(importlib.import_module("sys").modules, "openvino", None)
    with pytest.raises(ImportError, match=r"OpenVINO needs openvino: pip install '\.\[openvino\]'"):
        InferenceService(model, ServingConfig(100.0, engine="openvino"))
    service = InferenceService(model, ServingConfig(100.0, engine="auto"))
    assert "torch serves: OpenVINO needs openvino" in caplog.text
    assert service.engine.deployment.backend.engine == "torch"
    service.close()


@needs_openvino
@pytest.mark.parametrize("pays", [False, True])
def test_no_call_of_the_engine_is_larger_than_it_is_warm_for(monkeypatch, pays):
    """Each part keeps the memory of its largest call, so one large request would cost gigabytes for ever."""
    monkeypatch.setattr(CompiledBackend, "_do_batches_pay", lambda self, location: pays)
    sizes = []

    class Compiler:
        FORMATS, SHARES_PARTS = openvino_engine.FORMATS, True
        version = staticmethod(openvino_engine.version)

        @staticmethod
        def compile_stitch(*arguments):
            run = openvino_engine.compile_stitch(*arguments)

            def noted(images):
                sizes.append(len(images))
                return run(images)

            return noted

    model, images = network(), torch.randn(7, 3, 32, 32)
    backend = CompiledBackend(TorchBackend(model), Compiler, "openvino", 1, "here", "parts")
    backend.prepare([0, 5], [1, 4])
    sizes.clear()
    for stitch_id in (0, 5):
        torch.testing.assert_close(
            backend.run(images, stitch_id), reference(model, images, stitch_id), atol=1e-5, rtol=0
        )
    assert set(sizes) == ({4, 3} if pays else {1})
    assert backend.most_images == (None if pays else 1)
    backend.warm([8])
    sizes.clear()
    backend.run(images, 0)
    assert set(sizes) == ({7} if pays else {1})


@pytest.mark.parametrize(("alone", "together", "pays"), [(1.0, 8.0, False), (1.0, 4.0, True)])
def test_batches_pay_if_they_take_less_time_than_their_images(monkeypatch, alone, together, pays):
    clock = [0.0]

    class Compiler:
        FORMATS, SHARES_PARTS, version = {"fp32": "none"}, False, staticmethod(lambda: "none 1")

        @staticmethod
        def compile_stitch(*arguments):
            def run(images):
                clock[0] += alone if len(images) == 1 else together
                return images

            return run

    monkeypatch.setattr(compiled.time, "perf_counter", lambda: clock[0])
    backend = CompiledBackend(TorchBackend(network()), Compiler, "none", 1, "here", "whole")
    backend.folder = Path("nowhere")
    assert backend._do_batches_pay({"file": "stitch"}) == pays
    assert not backend._files  # what was compiled to try it is gone


@needs_openvino
def test_table_holds_single_images_where_batches_do_not_pay(monkeypatch):
    monkeypatch.setattr(CompiledBackend, "_do_batches_pay", lambda self, location: False)
    service = served(network(), engine="openvino")
    deployment = service.engine.deployment
    assert deployment.backend.engine == "openvino"
    assert deployment.table.batch_sizes == [1]
    assert deployment.table.seconds(0, 8) == pytest.approx(8 * deployment.table.seconds(0, 1))
    images = torch.randn(8, 3, 32, 32)  # of one request, which runs as a whole
    torch.testing.assert_close(ask(service, images, 0).logits, reference(service.model, images, 0), atol=1e-5, rtol=0)
    service.close()
