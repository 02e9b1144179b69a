"""What do broken and hostile requests do to a server? Each answer is checked, and right ones stay right.

    python benchmarks/robustness/fuzz_requests.py --requests 5000 --seed 0

A tiny network is served by `timm-stitch serve` and gets requests that begin as good ones (an image file, or tensors and
files by the Open Inference Protocol) and are changed at random in the head, the options, the JSON, the bytes or the
image.
An answer must have a known status other than 500 and be JSON with one line of error. Answers of 200 whose images were
not changed must be the network's own logits of the stitch that they name, as must a good request after each fifth.
The server must stay up, and within `--megabytes` of its memory at the start.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import random
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import timm
import torch
from fuzz import VIT, damage, hostile, mutate
from PIL import Image

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row

STATUSES = {200, 400, 403, 404, 405, 408, 413, 415, 431, 503}
PATHS = ["/predict", "/v2/models/net/infer", "/v2/models/net/versions/1/infer", "/health", "/metrics", "/v2", "/",
         "/x%00", "/predict/../metrics", "/%ff", "*", "//predict", "/v2/models/other/infer"]  # fmt: skip
HEADERS = [
    ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "1_0"), ("Content-Encoding", "gzip"),
    ("Transfer-Encoding", "chunked"), ("Inference-Header-Content-Length", "7"), ("Expect", "100-continue"),
    ("Inference-Header-Content-Length", "\u0662"), ("Host", "evil.example"), ("Origin", "http://evil.example"),
    ("Upgrade", "websocket"), ("Connection", "upgrade"), ("X-A", "a" * 100_000), ("X\tA", "b"),
    ("Content-Type", "\x00"), ("Range", "bytes=0-1"),
]  # fmt: skip


class Server:
    """A server in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 as long as the server
        command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--latency-ms", "5000", "--threads", "1", "--max-pixels", "1000000"],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.port = int(json.loads(self.process.stdout.readline())["url"].rpartition(":")[2])

    def megabytes(self) -> int:
        """Read the memory of the server."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))

    def send(self, request: bytes, seconds: float) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and read one answer: its status (0 if the connection was closed without one), headers and body."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            with contextlib.suppress(OSError):  # it was refused before its end
                connection.sendall(request)
            received = b""
            with contextlib.suppress(ConnectionError):
                if not select.select([connection], [], [], 2.0)[0]:
                    connection.shutdown(socket.SHUT_WR)  # the server waits for the rest of it
                while part := connection.recv(1 << 16):
                    received += part
        received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
        head, _, body = received.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 "):
            return 0, {}, received
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split()[1]), headers, body[: int(headers.get("content-length", len(body)))]


def request_bytes(path: str, body: bytes, headers: list[tuple[str, str]]) -> bytes:
    """Write an HTTP request."""
    names = {name.lower() for name, _ in headers}
    lines = [("Connection", "close")]
    lines += [] if "host" in names else [("Host", "127.0.0.1")]
    lines += [] if {"content-length", "transfer-encoding"} & names else [("Content-Length", str(len(body)))]
    head = "".join(f"{name}: {value}\r\n" for name, value in [*lines, *headers])
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode("utf-8", "replace") + body


class Case:
    """A request and what is known of its answer.

    Args:
        draw: the random numbers.
        tensor: two prepared images.
        file: an image file.
        stitches: the number of stitches.
    """

    def __init__(self, draw: random.Random, tensor: np.ndarray[Any, Any], file: bytes, stitches: int) -> None:
        self.kind = draw.choice(["predict", "json", "binary", "files"])
        self.options: dict[str, Any] = {"stitch_id": draw.randrange(stitches)} if draw.random() < 0.5 else {}
        self.headers: list[tuple[str, str]] = []
        self.file, self.tensor = file, tensor
        image: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": list(tensor.shape)}
        self.behind = b""
        if self.kind == "json":
            image["data"] = [round(float(x), 4) for x in tensor.ravel()]
        elif self.kind == "binary":
            self.behind = tensor.astype("<f4").tobytes()
            image["parameters"] = {"binary_data_size": len(self.behind)}
        elif self.kind == "files":
            image |= {"datatype": "BYTES", "shape": [1], "data": [base64.b64encode(file).decode()]}
        self.json: Any = {"inputs": [image], "parameters": self.options, "outputs": [{"name": "logits"}], "id": "7"}

    def write(self, path: str | None = None) -> bytes:
        """Write the request."""
        if self.kind == "predict":
            query = "&".join(f"{quote(str(k))}={quote(str(v), errors='replace')}" for k, v in self.options.items())
            return request_bytes(path or f"/predict?{query}", self.file, self.headers)
        head = json.dumps(self.json).encode("utf-8", "replace")
        headers = [("Inference-Header-Content-Length", str(len(head)))] if self.behind else []
        return request_bytes(path or PATHS[1], head + self.behind, [*headers, *self.headers])


def change(case: Case, draw: random.Random) -> tuple[bytes, bool, str]:
    """Change a request; returns its bytes, whether its images are as they were, and what was changed."""
    how = draw.choice(["options", "options", "json", "image", "headers", "bytes", "path", "body"])
    if how == "options":
        name = draw.choice(["stitch_id", "latency_ms", "macs", "top", "timeout", "priority", "binary_data_output", "x"])
        case.options[name] = draw.choice([hostile(draw), draw.choice([1.7, True, "1_0", "1e2", " 1", 0, 10**30, 5])])
        return case.write(), True, how
    if how == "json" and case.kind != "predict":
        case.json = mutate(case.json, draw)
        return case.write(), False, how
    if how == "image":
        case.file = damage(case.file, draw)
        if case.kind == "files":
            case.json["inputs"][0]["data"] = [base64.b64encode(case.file).decode()]
        case.behind = damage(case.behind, draw) if case.behind else case.behind
        return case.write(), case.kind == "json", how
    if how == "headers":
        case.headers += [draw.choice(HEADERS)]
        return case.write(), True, how
    if how == "path":
        return case.write(draw.choice(PATHS)), False, how
    raw = case.write()
    if how == "bytes":
        return damage(raw, draw), False, how
    head, _, body = raw.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n" + damage(body, draw), False, "body"


def judge(status: int, headers: dict[str, str], body: bytes, path: str) -> str:
    """Say what is wrong with an answer, empty if nothing is."""
    if status not in STATUSES:
        return f"status {status}"
    if b"Traceback" in body:
        return "a traceback"
    kind = headers.get("content-type", "")
    if status == 200 and not kind.startswith("application/json"):
        known = ("application/octet-stream", "text/plain", "text/html")
        return "" if kind.startswith(known) else f"content-type {kind!r}"
    try:
        answer = json.loads(body, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return f"{status} without JSON: {body[:80]!r}"
    if status != 200 and ("error" not in answer or "\n" in answer["error"] or len(answer["error"]) > 600):
        return f"{status} without a line: {body[:80]!r}"
    if status == 503 and "retry-after" not in headers:
        return "503 without Retry-After"
    return ""


def check_logits(headers: dict[str, str], body: bytes, expected: dict[str, torch.Tensor]) -> str:
    """Compare the logits or probabilities of an answer with the network's own, of the stitch that it names."""
    length = headers.get("inference-header-content-length")
    answer = json.loads(body[: int(length)] if length else body)
    if "predictions" in answer:
        own = expected["file"][answer["stitch_id"]][0].softmax(0)
        wrong = [p for p in answer["predictions"] if abs(float(own[p["class"]]) - p["probability"]) > 1e-4]
        return f"probabilities {wrong}" if wrong else ""
    output = answer["outputs"][0]
    data = np.frombuffer(body[int(length) :], "<f4") if length else np.array(output["data"])
    own = expected["tensor" if output["shape"][0] == 2 else "file"][answer["parameters"]["stitch_id"]]
    right = np.allclose(data.reshape(output["shape"]), own.numpy(), atol=1e-3)
    return "" if right else "logits of another network"


def main() -> None:
    """Send requests, check their answers, print the outcomes."""
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=5000, help="number of changed requests")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests")
    parser.add_argument("--seconds", type=float, default=20, help="time for one request")
    parser.add_argument("--megabytes", type=float, default=300, help="growth of the server's memory")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scratch = tempfile.TemporaryDirectory()
    folder = Path(scratch.name, "net")
    network = timm.create_model("snnet", anchors=[{**VIT, "embed_dim": w, "num_classes": 10} for w in (32, 64)])
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in range(network.num_stitches)]
    timm_stitch.save_pretrained(network, folder, results=rows)
    tensor = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).round(4).astype(np.float32)
    stream = io.BytesIO()
    Image.effect_noise((60, 40), 60).convert("RGB").save(stream, "PNG")
    prepare = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=network) | {"input_size": (3, 32, 32)}
    )
    image = prepare(Image.open(stream))[None]
    expected: dict[str, Any] = {"tensor": {}, "file": {}}
    with torch.inference_mode():
        for k in range(network.num_stitches):
            expected["tensor"][k] = network.eval()(torch.from_numpy(tensor), stitch_id=k)
            expected["file"][k] = network(image, stitch_id=k)
    server = Server(folder)
    outcomes: dict[str, Counter[str]] = {}
    wrong, compared, slowest = 0, 0, 0.0
    for number in range(args.requests):
        draw = random.Random(f"{args.seed}-{number}")
        for changed in (True, False) if number % 5 == 0 else (True,):
            case = Case(draw, tensor, stream.getvalue(), network.num_stitches)
            raw, intact, how = change(case, draw) if changed else (case.write(), True, "unchanged")
            began = time.monotonic()
            try:
                status, headers, body = server.send(raw, args.seconds)
                unfinished = status == 0 and how in ("bytes", "body", "headers")
                fault = "" if unfinished else judge(status, headers, body, "")
            except (TimeoutError, ConnectionError) as error:
                status, headers, body, fault = -1, {}, b"", f"{type(error).__name__}"
            slowest = max(slowest, time.monotonic() - began)
            is_answer = b'"predictions"' in body or b'"outputs"' in body
            if not fault and status == 200 and intact and is_answer and b'"BYTES"' not in body:
                compared += 1
                fault = check_logits(headers, body, expected)
            if not changed and status != 200:
                fault = f"a good request got {status}: {body[:100]!r}"
            outcomes.setdefault(how, Counter())[str(status)] += 1
            if fault:
                wrong += 1
                print_row({"number": number, "kind": case.kind, "changed": how, "fault": fault})
        if number == 20:
            start = server.megabytes()
    alive, grown = server.process.poll() is None, server.megabytes() - start
    server.process.send_signal(signal.SIGTERM)
    code = server.process.wait(60)
    server.log.seek(0)
    lines = server.log.read().splitlines()
    for how, counts in sorted(outcomes.items()):
        print(f"{how}: {counts.total()}:", ", ".join(f"{n} × {status}" for status, n in counts.most_common()))
    print(
        f"{args.requests} changed requests, {wrong} wrong, {compared} compared with the network, at most "
        f"{slowest:.1f} s, {grown} MB more, alive {alive}, exit {code}, {len(lines)} lines of log"
    )
    for line in lines[:5]:
        print("  ", line[:200])
    scratch.cleanup()


if __name__ == "__main__":
    main()
