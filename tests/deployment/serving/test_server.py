"""`timm-stitch serve` as a process: a client of the protocol, signals, clients that misbehave, and its end."""

import http.client
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from served_texts import WORDS, known, stitched, tokenizer
from tiny import deits

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.deployment.serving.server import listen

ROOT = Path(__file__).parents[3]


def save(folder, seed=0):
    torch.manual_seed(seed)
    model = timm_stitch.stitch(deits()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    model.results.add([{"stitch_id": k, "top1": 70.0 + k} for k in range(3)])
    timm_stitch.profile(model, batch_sizes=[1, 4], stitch_ids=range(3), repeats=2)
    timm_stitch.save_pretrained(model, folder)
    return model


def file():
    data = io.BytesIO()
    Image.effect_noise((40, 30), 60).convert("RGB").save(data, "PNG")
    return data.getvalue()


class Server:
    """A server in a process of its own."""

    def __init__(self, folder, *more):
        command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [*command, "--latency-ms", "3000", "--threads", "1", *more], env=env,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        said = self.process.stdout.readline()
        assert said, self.process.stderr.read()
        self.said = json.loads(said)
        self.at = self.said["url"].removeprefix("http://")

    def ask(self, method="POST", path="/predict", body=None, timeout=60, headers=()):
        connection = http.client.HTTPConnection(self.at, timeout=timeout)
        try:
            connection.request(method, path, body, dict(headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def hears(self, pattern, seconds=60):
        """Wait until the process says so."""
        heard, until = "", time.monotonic() + seconds
        while not re.search(pattern, heard) and time.monotonic() < until:
            if select.select([self.process.stderr], [], [], 0.1)[0]:
                heard += os.read(self.process.stderr.fileno(), 4096).decode()
        return heard

    def end(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("deployment") / "net"
    save(path)
    return path


def kept(folder):
    made = Server(folder)
    yield made
    made.process.kill()
    made.process.wait()
    for stream in (made.process.stdout, made.process.stderr):
        stream.close()


@pytest.fixture(scope="module")
def server(folder):
    yield from kept(folder)


@pytest.fixture
def ending(folder):
    yield from kept(folder)


def test_a_client_of_the_protocol(server, folder):
    client_of = pytest.importorskip("tritonclient.http")
    assert server.said["name"] == "net"
    client = client_of.InferenceServerClient(server.at, network_timeout=60, connection_timeout=60)
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("net")
        assert client.get_model_metadata("net")["inputs"][0]["shape"] == [-1, 3, 32, 32]
        assert client.get_server_metadata()["name"] == "timm_stitch"
        images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
        tensor = client_of.InferInput("image", list(images.shape), "FP32")
        wanted = client_of.InferRequestedOutput("logits", binary_data=True)
        found = {}
        for binary in (True, False):
            tensor.set_data_from_numpy(images, binary_data=binary)
            answer = client.infer("net", [tensor], outputs=[wanted], parameters={"stitch_id": 1}, request_id="7")
            found[binary] = answer.as_numpy("logits")
            said = answer.get_response()
            assert (said["id"], said["parameters"]["stitch_id"], said["parameters"]["top1"]) == ("7", 1, 71.0)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.inference_mode():
            expected = model(torch.from_numpy(images), stitch_id=1).numpy()
        assert np.allclose(found[True], expected, atol=1e-5)
        assert np.allclose(found[False], expected, atol=1e-5)
        files = client_of.InferInput("image", [2], "BYTES")
        files.set_data_from_numpy(np.array([file(), file()], dtype=np.object_))
        assert client.infer("net", [files], timeout=3_000_000).as_numpy("logits").shape == (2, 10)
        files.set_data_from_numpy(np.array([file(), b"no image"], dtype=np.object_))
        with pytest.raises(client_of.InferenceServerException, match="no readable image") as error:
            client.infer("net", [files])
        assert error.value.status() == "400"
    finally:
        client.close()


def test_clients_that_misbehave_and_a_network_that_is_replaced(server, folder):
    status, before = server.ask(body=file())
    assert status == 200
    host, port = server.at.split(":")
    for sent in (
        b"",
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc",
        b"\x16\x03\x01\xff",
        b"G",
    ):
        gone = socket.create_connection((host, int(port)), timeout=60)
        gone.sendall(sent)
        gone.close()
    half = socket.create_connection((host, int(port)), timeout=60)
    half.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nabc")  # and nothing more
    large = socket.create_connection((host, int(port)), timeout=60)
    large.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999\r\n\r\n")
    assert large.recv(100).startswith(b"HTTP/1.1 413 ")  # before anything of it is read
    large.close()
    data = file()
    assert server.ask(body=data)[0] == 200

    save(folder, seed=1)
    server.process.send_signal(signal.SIGHUP)
    assert "the network was reloaded" in server.hears("reloaded|not replaced")
    status, after = server.ask(body=data)
    assert status == 200
    assert json.loads(after)["predictions"] != json.loads(before)["predictions"]
    (folder / "config.json").rename(folder / "elsewhere.json")
    server.process.send_signal(signal.SIGHUP)
    heard = server.hears("reloaded|not replaced")
    assert "the network was not replaced: " in heard
    assert "Traceback" not in heard
    assert server.ask(body=data)[0] == 200
    (folder / "elsewhere.json").rename(folder / "config.json")
    weights = (folder / "model.safetensors").read_bytes()
    for damaged in (weights[:1000], weights[:-1] + bytes([weights[-1] ^ 1])):  # half written, or of another network
        (folder / "model.safetensors").write_bytes(damaged)
        server.process.send_signal(signal.SIGHUP)
        assert "the network was not replaced: " in server.hears("reloaded|not replaced")
        assert json.loads(server.ask(body=data)[1])["predictions"] == json.loads(after)["predictions"]
    (folder / "model.safetensors").write_bytes(weights)
    half.settimeout(30)
    assert half.recv(100).startswith(b"HTTP/1.1 408 ")
    half.close()


def connect(server, sent=b""):
    host, port = server.at.split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(sent)
    return connection


def refused(connection):
    """Read a refusal until the connection ends."""
    with connection, connection.makefile("rb") as stream:
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return head.split(b" ")[1], json.loads(body)["error"], head


def test_idle_connections_lock_nobody_out(folder):
    made = Server(folder, "--max-queue", "20")  # and so 220 connections
    try:
        half = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: "
        idle = [connect(made, half if n % 2 else b"") for n in range(400)]
        for method, path, body in (("GET", "/health", None), ("GET", "/metrics", None), ("POST", "/predict", file())):
            assert made.ask(method, path, body)[0] == 200
        status, error, head = refused(idle[1])
        assert (status, error) == (b"503", "too many connections: try again later.")
        assert b"retry-after: 1" in head
        for connection in idle:
            connection.close()
        assert made.ask(body=file())[0] == 200
    finally:
        made.process.kill()
        made.process.wait()
        made.process.stdout.close()
        made.process.stderr.close()


def test_heads_are_bounded_and_refusals_are_json(server):
    endless = connect(server, b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * (80 << 10))
    slow = connect(server, b"POST /predict HTTP/1.1\r\nHost:")
    assert refused(endless)[0] == b"431"
    assert refused(connect(server, b"\x16\x03\x01\xff\r\n\r\n"))[0] == b"400"
    for headers in (b"Host: evil.example", b"Host: 127.0.0.1\r\nOrigin: http://evil.example"):
        foreign = connect(server, b"POST /predict HTTP/1.1\r\n" + headers + b"\r\nConnection: close\r\n\r\n")
        assert refused(foreign)[0] == b"403"
    assert refused(slow)[0] == b"408"
    assert server.process.poll() is None


def test_an_early_refusal_can_be_read_after_the_whole_body(server):
    connection = http.client.HTTPConnection(server.at, timeout=60)
    connection.request("POST", "/predict", bytes(17 << 20))
    assert connection.getresponse().read().startswith(b'{"error":"the body has 17825792 bytes')
    connection.request("POST", "/predict", file())
    assert connection.getresponse().status == 200
    connection.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_its_answers(ending, number):
    """What was sent before it is answered, and its exit is silent."""
    connections = [http.client.HTTPConnection(ending.at, timeout=60) for _ in range(8)]
    for connection in connections:
        connection.request("POST", "/predict", file())
    time.sleep(0.05)
    assert ending.end(number) == 0
    answered = []
    for connection in connections:
        try:
            answered.append(connection.getresponse().status)
        except ConnectionError:
            answered.append(0)  # it came after the signal
    assert set(answered) <= {200, 503, 0}
    assert ending.process.stderr.read() == ""
    with pytest.raises(OSError, match="refused"):
        ending.ask("GET", "/health")


def test_answers_are_not_held_up_for_what_follows():
    with listen("127.0.0.1", 0) as listening:
        assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # else 40 ms on top of each
        with socket.create_connection(listening.getsockname()), listening.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_port_is_of_one_server():
    def share(port):
        sharing = socket.socket()
        sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sharing.bind(("127.0.0.1", port))
        sharing.listen()
        return sharing

    with listen("127.0.0.1", 0) as ours:
        port = ours.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OSError, match=rf"cannot listen at {host}:{port} \("):
                listen(host, port)
        with pytest.raises(OSError, match="in use"):
            share(port)
    with share(0) as theirs:
        port = theirs.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port}"):
            listen("127.0.0.1", port)


def test_what_cannot_be_served_is_one_line(folder, capsys, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(folder), "--latency-ms", "50", "--port", port]) == 1
        assert f"cannot listen at 127.0.0.1:{port} (" in capsys.readouterr().err
    assert main(["serve", str(folder), "--latency-ms", "-5", "--port", "0"]) == 1
    assert "latency_ms must be positive and finite, got -5.0" in capsys.readouterr().err
    for size in ("0", "-1", "nan", "inf", "1e9"):
        assert main(["serve", str(folder), "--latency-ms", "50", "--port", "0", "--max-body-mb", size]) == 1
        assert "--max-body-mb must be above 0 and at most 1024, got" in capsys.readouterr().err
    assert main(["serve", str(folder), "--latency-ms", "50", "--port", "0", "--threads", "0"]) == 1
    assert "--threads must be 1 or more, got 0" in capsys.readouterr().err
    model = timm_stitch.stitch(deits())
    timm_stitch.save_pretrained(model, tmp_path / "unknown")
    assert main(["serve", str(tmp_path / "unknown"), "--latency-ms", "50", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert "no stitch of this network has a known accuracy" in error
    assert f"timm-stitch eval {tmp_path / 'unknown'} --data-dir" in error


def test_texts_are_answered_by_curl_and_a_reload_keeps_the_tokenizer(tmp_path):
    network = known(stitched())
    timm_stitch.save_pretrained(network, tmp_path / "net")
    server = Server(tmp_path / "net")
    try:
        curl = {"content-type": "application/x-www-form-urlencoded"}  # of its own accord
        status, answer = server.ask(body="w1 w2 w3", headers=curl)
        batch = network.tokenizer("w1 w2 w3", return_tensors="pt")
        answered = json.loads(answer)
        with torch.inference_mode():
            logits = network(input_ids=batch["input_ids"], stitch_id=answered["stitch_id"]).logits
        assert (status, answered["predictions"][0]["class"]) == (200, int(logits.argmax()))
        network.tokenizer = tokenizer([*WORDS[:2], *reversed(WORDS[2:])])
        timm_stitch.save_pretrained(network, tmp_path / "net")
        server.process.send_signal(signal.SIGHUP)
        assert "the new network has another tokenizer" in server.hears("reloaded|not replaced")
        assert json.loads(server.ask(body="w1 w2 w3", headers=curl)[1])["predictions"] == answered["predictions"]
    finally:
        assert server.end() == 0
