"""Replicas under Ray Serve: the config that is written, and two replicas, of which one is killed."""

import http.client
import io
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import deits

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.scale import Scale, serve_config, target_requests_per_replica

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own, when it is imported
TIMES = {0: (70.0, 2.0), 1: (75.0, 4.0), 2: (80.0, 8.0)}  # stitch: accuracy, milliseconds


def rows(times=TIMES):
    return [{"stitch_id": k, "top1": top1, "latency_ms_batch_1": ms} for k, (top1, ms) in times.items()]


def save(folder, **known):
    torch.manual_seed(0)
    model = timm_stitch.stitch(deits()).eval()
    model.results.add([{"stitch_id": k, "top1": top1, **known} for k, (top1, _) in TIMES.items()])
    return model, lambda: timm_stitch.save_pretrained(model, folder)


# ── without Ray ───────────────────────────────────────────────────────────────────────────────────


def test_a_replica_holds_what_its_dearest_stitch_answers_in_time():
    assert target_requests_per_replica(rows(), ServingConfig(100.0, 0.0)) == 9  # of 8 ms each, in three quarters of 100
    assert target_requests_per_replica(rows(), ServingConfig(100.0, 50.0)) == 4  # the reserve is not the network's
    assert (
        target_requests_per_replica(rows(), ServingConfig(8.0, 0.0)) == 1
    )  # stitch 1 answers one in time, stitch 2 none
    assert target_requests_per_replica(rows(), ServingConfig(1.0, 0.0)) == 1
    assert target_requests_per_replica(rows(), ServingConfig(100.0, 0.0, most_waiting=3)) == 3
    batched = [{**row, "latency_ms_batch_4": 2 * row["latency_ms_batch_1"]} for row in rows()]
    assert target_requests_per_replica(batched, ServingConfig(100.0, 0.0)) == 9  # what batches gain is kept for bursts
    with pytest.raises(ValueError, match=r"this network has none: timm-stitch profile my-net .* --replicas"):
        target_requests_per_replica([{"stitch_id": 0, "top1": 70.0}], ServingConfig(100.0, network="my-net"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"least": 0}, "must be 1 or more, the smaller first, got 0 to 1"),
        ({"least": 3, "most": 2}, "must be 1 or more, the smaller first, got 3 to 2"),
        ({"num_cpus": 0}, "num_cpus must be positive, got 0"),
        ({"num_gpus": -1}, "num_gpus must be 0 or more, got -1"),
    ],
)
def test_scales_out_of_range(given, said):
    with pytest.raises(ValueError, match=said):
        Scale(**given)


def test_no_request_waits_where_the_policy_does_not_see_it():
    config = serve_config(["net"], ServingConfig(50.0, most_waiting=70), Scale(2, 2, 1.5, 0.5))
    (deployment,) = config["applications"][0]["deployments"]
    assert deployment["num_replicas"] == 2
    assert "autoscaling_config" not in deployment
    assert deployment["max_ongoing_requests"] > 70
    assert deployment["ray_actor_options"] == {"num_cpus": 1.5, "num_gpus": 0.5}
    assert deployment["backpressure_config"] == {"status_code": 503, "retry_after_s": 1.0}
    assert config["http_options"]["host"] == "127.0.0.1"
    assert yaml.safe_load(yaml.safe_dump(config)) == config  # plain values


# ── with Ray, but none started ────────────────────────────────────────────────────────────────────


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "timm_stitch.deployment.serving.ray_serve", raising=False)
    assert main(["serve", "net", "--latency-ms", "50", "--ray"]) == 1
    assert (
        capsys.readouterr().err
        == "error: serving by replicas needs ray: pip install '.[ray]' in a clone of timm_stitch.\n"
    )


def test_options_that_contradict_each_other_are_refused(capsys):
    pytest.importorskip("ray")
    for given, said in (
        (["--replicas", "2"], "--replicas needs --ray"),
        (["--ray", "--replicas", "2", "--max-replicas", "3"], "give --replicas, or --min-replicas and --max-replicas"),
        (["--ray", "--min-replicas", "2"], "--min-replicas needs --max-replicas"),
        (["--ray", "--replicas", "0"], "must be 1 or more, the smaller first, got 0 to 0"),
    ):
        assert main(["serve", "net", "--latency-ms", "50", *given]) == 1
        assert said in capsys.readouterr().err


def test_the_config_that_is_written_is_rays(tmp_path, capsys, monkeypatch):
    pytest.importorskip("ray")
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.chdir(tmp_path)
    model, write = save("net")
    write()
    wanted = ["serve", "net", "--latency-ms", "100", "--reserve-ms", "0", "--ray-config", "serve.yaml"]
    assert main([*wanted, "--max-replicas", "8"]) == 1
    assert "this network has none" in capsys.readouterr().err
    model.results.add([{"stitch_id": k, "latency_ms_batch_1": ms, "latency_ms": ms, "batch_size": 1,
                     "profiled_on": "cpu", "precision": "fp32"} for k, (_, ms) in TIMES.items()])  # fmt: skip
    write()
    assert main([*wanted, "--max-replicas", "8", "--num-gpus", "0.5"]) == 0
    assert "serve deploy serve.yaml" in capsys.readouterr().out
    config = yaml.safe_load(Path("serve.yaml").read_text(encoding="utf-8"))
    application = config["applications"][0]
    assert application["args"]["model"] == [str(tmp_path / "net")]  # a replica works elsewhere
    read = ServeDeploySchema.model_validate(config)
    (deployment,) = read.applications[0].deployments
    scaled = deployment.autoscaling_config
    assert (scaled["min_replicas"], scaled["max_replicas"], scaled["target_ongoing_requests"]) == (1, 8, 9)
    assert deployment.ray_actor_options.num_gpus == 0.5

    from timm_stitch.deployment.serving.ray_serve import NETWORK, build

    assert f"{build.__module__}:{build.__name__}" == application["import_path"]
    assert NETWORK.name == deployment.name
    build(application["args"])  # takes them


def test_the_resource_for_kuberay_holds_such_a_config():
    pytest.importorskip("ray")
    from ray.serve.schema import ServeDeploySchema

    text = (ROOT / "examples/kuberay.yaml").read_text(encoding="utf-8")
    resource, closed = yaml.safe_load_all(text)
    assert (resource["apiVersion"], resource["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(resource["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    application = config["applications"][0]
    args = application["args"]
    ours = serve_config(args["model"], ServingConfig(**args["promise"]), Scale(), name=args["name"])["applications"][0]
    assert set(args) <= set(ours["args"]) | {"device"}
    assert application["import_path"] == ours["import_path"]
    fixed = ("name", "max_ongoing_requests", "max_queued_requests", "backpressure_config")
    assert [application["deployments"][0][key] for key in fixed] == [ours["deployments"][0][key] for key in fixed]
    cluster = resource["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        labels = group["template"]["metadata"]["labels"]
        assert labels == closed["spec"]["podSelector"]["matchLabels"]


# ── two replicas ──────────────────────────────────────────────────────────────────────────────────


def file():
    data = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(data, "PNG")
    return data.getvalue()


class Replicas:
    """A process that serves by Ray."""

    def __init__(self, folder, log):
        self.mark = f"TIMM_STITCH_TEST={uuid.uuid4()}"
        key, _, value = self.mark.partition("=")
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), key: value}
        command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--latency-ms", "5000", "--ray", "--replicas", "2", "--max-queue", "16"], env=env,
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert select.select([self.process.stdout], [], [], 300)[0], "no replica started"
        self.at = json.loads(self.process.stdout.readline())["url"].removeprefix("http://")

    def ask(self, path="/predict", body=None):
        connection = http.client.HTTPConnection(self.at, timeout=120)
        try:
            connection.request("POST", path, body)
            answer = connection.getresponse()
            return answer.status, answer.read(), dict(answer.getheaders())
        finally:
            connection.close()

    def pids(self, name="ray::ServeReplica"):
        """Of its processes that call themselves so."""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                own = self.mark.encode() in (folder / "environ").read_bytes().split(b"\0")
                if own and (folder / "cmdline").read_text().startswith(name):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("replicas")
    model, write = save(folder / "net")
    timm_stitch.profile(model, batch_sizes=[1, 4], stitch_ids=TIMES, repeats=2)
    write()
    with open(folder / "log.txt", "w") as log:
        made = Replicas(folder / "net", log)
        made.model = model
        yield made
        made.process.terminate()
        status = made.process.wait(120)
    left = made.pids("")
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert (status, left) == (0, [])
    made.process.stdout.close()


@pytest.mark.slow
def test_replicas_answer_as_one_server_does(deployment):
    client_of = pytest.importorskip("tritonclient.http")
    client = client_of.InferenceServerClient(deployment.at, network_timeout=60, connection_timeout=60)
    try:
        assert client.is_server_ready()
        assert client.is_model_ready("net")
        images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
        tensor = client_of.InferInput("image", list(images.shape), "FP32")
        tensor.set_data_from_numpy(images)
        answer = client.infer("net", [tensor], parameters={"stitch_id": 1})
        assert answer.get_response()["parameters"]["stitch_id"] == 1
        with torch.inference_mode():
            expected = deployment.model(torch.from_numpy(images), stitch_id=1).numpy()
        assert np.allclose(answer.as_numpy("logits"), expected, atol=1e-5)
        many = client_of.InferInput("image", [17, 3, 32, 32], "FP32")  # more than may wait
        many.set_data_from_numpy(np.zeros((17, 3, 32, 32), np.float32))
        with pytest.raises(client_of.InferenceServerException, match="try again later") as error:
            client.infer("net", [many])
        assert error.value.status() == "503"
    finally:
        client.close()
    assert len(deployment.pids()) == 2


@pytest.mark.slow
def test_wishes_and_refusals_come_through(deployment):
    for stitch_id in (0, 2):
        status, body, _ = deployment.ask(f"/predict?stitch_id={stitch_id}&top=1", file())
        assert status == 200
        assert json.loads(body)["stitch_id"] == stitch_id
    status, body, _ = deployment.ask("/predict", b"no image")
    assert (status, "no readable image" in body.decode()) == (400, True)
    images = np.zeros((17, 3, 32, 32)).tolist()
    asked = {"inputs": [{"name": "image", "shape": [17, 3, 32, 32], "datatype": "FP32", "data": images}]}
    status, body, headers = deployment.ask("/v2/models/net/infer", json.dumps(asked))
    assert (status, headers.get("retry-after")) == (503, "1"), body


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_its_own_requests_alone(deployment):
    data, until = file(), time.monotonic() + 8
    answers = []  # when asked, status

    def keep_asking():
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                status = deployment.ask("/predict", data)[0]
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            answers.append((began, status))

    before = deployment.pids()
    assert len(before) == 2
    clients = [threading.Thread(target=keep_asking) for _ in range(8)]
    for client in clients:
        client.start()
    time.sleep(1.5)
    os.kill(before[0], signal.SIGSTOP)  # so that it has some
    time.sleep(0.5)
    os.kill(before[0], signal.SIGKILL)
    killed = time.monotonic()
    for client in clients:
        client.join(120)
    assert not any(client.is_alive() for client in clients)
    lost = [began for began, status in answers if status != 200]
    assert {status for _, status in answers} <= {200, 500, 502, 503}  # each has an answer
    assert 0 < len(lost) <= 8  # what it had at once, of eight clients
    assert max(lost) < killed + 2
    assert sum(began > killed + 2 for began, _ in answers) > 8
    while len(deployment.pids()) < 2 and time.monotonic() < killed + 120:
        time.sleep(0.5)
    after = deployment.pids()
    assert len(after) == 2
    assert before[0] not in after
    assert [deployment.ask("/predict", data)[0] for _ in range(20)] == [200] * 20
