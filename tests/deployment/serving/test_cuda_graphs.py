"""CUDA graphs behind a server: padding, buffers, fallbacks, memory, the handover and reloads.

A recorder for CPUs stands in for that of GPUs. It keeps to the same rules: the operations of one call are recorded by
`make_fx`, and each replay runs them again on the same buffers, without the network's Python code.
"""

import random
import sys
import threading
import time

import pytest
import torch
from served_network import network
from torch.fx.experimental.proxy_tensor import make_fx

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving import latencies
from timm_stitch.deployment.serving.backends import cuda_graphs
from timm_stitch.deployment.serving.backends.conversions import ConversionError
from timm_stitch.deployment.serving.backends.cuda_graphs import CudaGraphsBackend
from timm_stitch.deployment.serving.backends.torch_backend import TorchBackend
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.deployments import arithmetic
from timm_stitch.deployment.serving.service import InferenceService

IMAGES = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class CpuRecorder:
    """Records operations by tracing, and replays them on the same buffers; a recording takes 1 MB by its account."""

    def __init__(self, device=None):
        self.recorded, self.failing, self.replays = [], set(), 0

    def record(self, work, images, logits):
        size = len(images)
        if size in self.failing:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        graph = make_fx(work)(images, logits)
        self.recorded.append((size, (images.data_ptr(), logits.data_ptr())))

        def replay():
            self.replays += 1
            graph(images, logits)

        return replay

    def used_bytes(self):
        return 1_000_000 * len(self.recorded)


def backend_of(model, stitch_ids=(0, 1), sizes=(1, 4), **more):
    backend = CudaGraphsBackend(TorchBackend(model), recorder=CpuRecorder(), **more)
    backend.prepare(stitch_ids, sizes)
    return backend


@pytest.fixture
def on_cpu(monkeypatch):
    """Serve by recordings of a CPU, at few batch sizes."""
    monkeypatch.setattr(latencies, "BATCHES", (1, 8))
    monkeypatch.setattr(cuda_graphs, "CudaRecorder", CpuRecorder)
    handover = sys.modules["timm_stitch.deployment.serving.handover"]
    monkeypatch.setattr(handover, "check_device", lambda model: None)


def wait(service, seconds=120):
    until = time.monotonic() + seconds
    while service.engine.deployment.backend.engine == "torch" and time.monotonic() < until:
        time.sleep(0.01)


def test_batches_are_padded_and_cut_and_no_answer_is_in_a_buffer():
    model = network()
    backend, torch_backend = backend_of(model), TorchBackend(model)
    recorder = backend.recorder
    assert list(backend.ready) == [0, 1]
    assert backend.name == f"{torch_backend.name}, CUDA graphs"
    assert [size for size, _ in recorder.recorded] == [4, 4, 1, 1]  # the largest first
    assert len({addresses for _, addresses in recorder.recorded}) == 1
    draw, answers = random.Random(0), []
    for _ in range(40):
        k, count, start = draw.randrange(2), draw.randint(1, 4), draw.randrange(12)
        before, images = recorder.replays, IMAGES[start : start + count]
        answers.append((backend.run(images, k), torch_backend.run(images, k)))
        assert recorder.replays == before + 1
    for logits, expected in answers:  # no later call has changed them
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    backend.run(torch.full((4, 3, 32, 32), float("nan")), 0)
    assert backend.run(IMAGES[:3], 0).isfinite().all()
    assert not backend._graphs[0, 4].images[3:].any()  # no image of another request stays in the padding


def test_weights_changed_in_place_count_in_recordings():
    model = network()
    backend = backend_of(model, [0], [2])
    with torch.no_grad():
        model.anchors[0].head.bias.add_(1.0)
    torch.testing.assert_close(backend.run(IMAGES[:2], 0), TorchBackend(model).run(IMAGES[:2], 0))


def test_what_fits_no_recording_runs_in_torch():
    model = network()
    backend, torch_backend = backend_of(model, [0, 1], [1, 2]), TorchBackend(model)
    recorder = backend.recorder
    before = recorder.replays
    for images, k in ((IMAGES[:3], 0), (IMAGES[:1], 5), (IMAGES[:2].double(), 0), (IMAGES[:0], 0)):
        assert torch.equal(backend.run(images, k), torch_backend.run(images, k))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        backend.run(torch.randn(1, 3, 40, 40), 0)
    assert recorder.replays == before
    backend.warm([2, 3])  # the buffers grow; what was recorded keeps its own
    for count in (1, 2, 3):
        torch.testing.assert_close(backend.run(IMAGES[:count], 1), torch_backend.run(IMAGES[:count], 1))
    assert recorder.replays > before + 3


def test_what_cannot_be_recorded_runs_in_torch_with_one_warning(caplog):
    model, recorder = network(), CpuRecorder()
    recorder.failing = {4}
    backend = CudaGraphsBackend(TorchBackend(model), recorder=recorder)
    backend.prepare([0, 1], [1, 4])
    warning = (
        "torch runs 2 stitches × batch sizes that were not recorded; the first is stitch 0 on 4 images (RuntimeError: "
        "operation not permitted when stream is capturing)"
    )
    assert [r.message for r in caplog.records] == ["cuda-graphs: 2 of 4 recorded, 2.0 MB in all", warning]
    torch.testing.assert_close(backend.run(IMAGES[:4], 0), TorchBackend(model).run(IMAGES[:4], 0))
    backend.warm([1, 4])  # nothing is tried again
    assert len(caplog.records) == 2


def test_a_recording_that_gives_other_logits_is_not_used(caplog, monkeypatch):
    model = network()
    record = CpuRecorder.record

    def wrong(self, work, images, logits):  # as if an operation had run on the CPU while it was recorded
        work(images, logits)
        fixed = logits.clone()
        return lambda: logits.copy_(fixed) if len(images) == 2 else record(self, work, images, logits)()

    monkeypatch.setattr(CpuRecorder, "record", wrong)
    backend = backend_of(model, [0], [2])
    assert not backend.ready
    assert "its logits differ from torch's by " in caplog.text
    assert torch.equal(backend.run(IMAGES[:2], 0), TorchBackend(model).run(IMAGES[:2], 0))


def test_a_failing_replay_runs_in_torch_from_then_on(caplog):
    backend = backend_of(network(), [0, 1], [2])

    def fail():
        raise RuntimeError("launch failed\nhere")

    backend._graphs[1, 2] = backend._graphs[1, 2]._replace(replay=fail)
    for _ in range(2):
        assert torch.equal(backend.run(IMAGES[:2], 1), backend.reference.run(IMAGES[:2], 1))
    messages = [r.message for r in caplog.records]
    assert messages.count("torch runs stitch 1 on 2 images from now on: RuntimeError: launch failed") == 1
    assert list(backend.ready) == [0]


def test_memory_is_told_and_bounded(caplog):
    backend = backend_of(network(), most_memory_mb=1.5)
    assert "cuda-graphs: 2 of 4 recorded, 2.0 MB in all" in caplog.text
    assert "torch runs 2 stitches × batch sizes" in caplog.text
    assert "stitch 0 on 1 images (2.0 MB are more than most_memory_mb=1.5)" in caplog.text
    assert {size for _, size in backend._graphs} == {4}


def test_closing_frees_everything_and_torch_answers_what_waits():
    backend = backend_of(network())
    replays = backend.recorder.replays
    backend.close()
    assert not backend.ready
    assert backend._buffers is None
    assert torch.equal(backend.run(IMAGES[:2], 0), backend.reference.run(IMAGES[:2], 0))
    assert backend.recorder.replays == replays
    with pytest.raises(ConversionError):
        backend.warm([8])


@pytest.mark.usefixtures("on_cpu")
def test_eight_clients_get_no_wrong_answer_during_a_reload(caplog):
    models = [network(seed) for seed in range(2)]
    right = {(n, k): TorchBackend(m).run(IMAGES, k) for n, m in enumerate(models) for k in range(4)}
    service = InferenceService(models[0], ServingConfig(3000.0, engine="cuda-graphs"), "net")
    wait(service)
    first = service.engine.deployment
    assert arithmetic(first, 1) == {"engine": "cuda-graphs", "precision": "fp32"}
    assert arithmetic(first, 5) == {"engine": "torch", "precision": "fp32"}
    assert list(first.table.batch_sizes) == [1, 8]
    assert (2, 8) in first.backend._graphs  # the table of torch's latencies has no such calls
    wrong, counts, ended = [], [0] * 8, threading.Event()

    def client(number):
        draw = random.Random(number)
        while not ended.is_set():
            count, start, k = draw.randint(1, 4), draw.randrange(12), draw.randrange(4)
            deployment, now = service.engine.deployment, time.monotonic()
            images = IMAGES[start : start + count]
            answer = service.submit(images, now + 60, frozenset([k]), now, deployment).result()
            expected = right[models.index(deployment.network.model), k][start : start + count]
            if answer.stitch_id != k or not torch.allclose(answer.logits, expected, atol=1e-4, rtol=0):
                wrong.append((number, k))
            counts[number] += 1

    clients = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for thread in clients:
        thread.start()
    service.replace(models[1])
    wait(service)
    ended.set()
    for thread in clients:
        thread.join()
    engine = service.engine.deployment.backend.engine
    service.close()
    assert not wrong
    assert min(counts) > 0
    assert engine == "cuda-graphs"
    assert not first.backend._graphs  # freed by the reload
    assert "cuda-graphs answers from now on: 3 stitches" in caplog.text


def test_bf16_is_recorded_as_torch_computes_it():
    reference = TorchBackend(network(), "bf16")
    backend = CudaGraphsBackend(reference, recorder=CpuRecorder())
    backend.prepare([1], [3])
    logits = backend.run(IMAGES[:2], 1)
    assert logits.dtype == torch.float32
    assert (logits - reference.run(IMAGES[:2], 1)).abs().max() < 0.02
    assert backend._graphs[1, 3].images.dtype == torch.bfloat16


def test_a_cpu_is_refused_in_one_line(tmp_path, capsys):
    message = "engine cuda-graphs records what runs on a GPU, and the network is on cpu: use --device cuda, or engine"
    with pytest.raises(ValueError, match=message):
        InferenceService(network(), ServingConfig(100.0, engine="cuda-graphs"))
    timm_stitch.save_pretrained(network(), tmp_path / "net")
    assert main(["serve", str(tmp_path / "net"), "--latency-ms", "50", "--engine", "cuda-graphs"]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if message in line]) == 1
