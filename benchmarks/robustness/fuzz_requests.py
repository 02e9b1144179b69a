"""What do broken and hostile requests do to a server? Each answer is checked, and right ones stay right.

    python benchmarks/robustness/fuzz_requests.py --requests 5000 --seed 0

A tiny network is served by `timm-stitch serve` and gets requests that begin as good ones (an image file of one of seven
kinds, or tensors and files by the Open Inference Protocol) and are changed at random in the head, the options, the
JSON, the bytes or the image.
An answer must have a known status other than 500 and be JSON with one line of error. Answers of 200 whose images were
not changed must be the network's own logits of the stitch that they name, as must a good request after each fifth.
Health must be 200 after each tenth. The server must stay up, and within `--megabytes` of its memory at the start.
Exits with 1 if anything was wrong. Five thousand requests in runs of two minutes: `--requests 1250 --seed 0` to 3.
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
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import timm
import torch
from fuzz import VIT, damage, hostile, mutate
from PIL import Image, ImageOps

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


HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


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

    def send(self, request: bytes, seconds: float, patience: float = 5.0) -> tuple[int, dict[str, str], bytes]:
        """Send bytes and read one answer: its status (0 if the connection was closed without one), headers and body.

        After some seconds of patience the request is ended, since it may be one whose end is missing.
        """
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            with contextlib.suppress(OSError):  # it was refused before its end
                connection.sendall(request)
            received = b""
            with contextlib.suppress(ConnectionError):
                if not select.select([connection], [], [], patience)[0]:
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
        files: image files by the names of their kinds.
        stitches: the number of stitches.
    """

    def __init__(
        self, draw: random.Random, tensor: np.ndarray[Any, Any], files: dict[str, bytes], stitches: int
    ) -> None:
        self.image = draw.choice(list(files))
        file = files[self.image]
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


def check_logits(headers: dict[str, str], body: bytes, expected: dict[str, Any], image: str) -> str:
    """Compare the logits or probabilities of an answer with the network's own, of the stitch that it names."""
    length = headers.get("inference-header-content-length")
    answer = json.loads(body[: int(length)] if length else body)
    if "predictions" in answer:
        own = expected[image][answer["stitch_id"]][0].softmax(0)
        wrong = [p for p in answer["predictions"] if abs(float(own[p["class"]]) - p["probability"]) > 1e-4]
        return f"probabilities {wrong}" if wrong else ""
    output = answer["outputs"][0]
    data = np.frombuffer(body[int(length) :], "<f4") if length else np.array(output["data"])
    own = expected["tensor" if output["shape"][0] == 2 else image][answer["parameters"]["stitch_id"]]
    right = np.allclose(data.reshape(output["shape"]), own.numpy(), atol=1e-3)
    return "" if right else "logits of another network"


def image_files() -> dict[str, bytes]:
    """Write an image in several formats and modes: those that are decoded in the server, and those that are not."""
    torch.manual_seed(0)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[str, str, dict[str, Any]]] = {
        "png": ("PNG", "RGB", {}), "palette": ("PNG", "P", {}), "jpeg": ("JPEG", "RGB", {}),
        "progressive": ("JPEG", "RGB", {"progressive": True}), "turned": ("JPEG", "RGB", {"exif": exif}),
        "webp": ("WEBP", "RGB", {"lossless": True}), "gif": ("GIF", "P", {}),
    }  # fmt: skip
    files = {}
    for name, (kind, mode, options) in kinds.items():
        stream = io.BytesIO()
        image.convert(mode).save(stream, kind, **options)
        files[name] = stream.getvalue()
    return files


@dataclass
class Outcome:
    """What the requests did to the server.

    Args:
        wrong: the number of wrong answers, or of none.
        compared: the number of answers that were compared with the network's own.
        slowest_s: the seconds of the slowest answer.
        unhealthy: the number of checks of its health that failed.
        grown_mb: the growth of its memory.
        code: its exit status after SIGTERM; None if it had ended before.
        log: the lines of its log.
        statuses: the number of answers by change and status.
    """

    wrong: int = 0
    compared: int = 0
    slowest_s: float = 0.0
    unhealthy: int = 0
    grown_mb: int = 0
    code: int | None = None
    log: list[str] = field(default_factory=list)
    statuses: dict[str, Counter[str]] = field(default_factory=dict)


def fuzz(requests: int, seed: int, seconds: float) -> Outcome:
    """Send changed requests to a server, and check each answer.

    Args:
        requests: the number of changed requests.
        seed: the seed of the requests.
        seconds: the time for one request.
    """
    scratch, files, outcome = tempfile.TemporaryDirectory(), image_files(), Outcome()
    folder = Path(scratch.name, "net")
    network = timm.create_model("snnet", anchors=[{**VIT, "embed_dim": w, "num_classes": 10} for w in (32, 64)])
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in range(network.num_stitches)]
    timm_stitch.save_pretrained(network, folder, results=rows)
    tensor = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).round(4).astype(np.float32)
    prepare = timm.data.create_transform(
        **timm.data.resolve_data_config({}, model=network) | {"input_size": (3, 32, 32)}
    )
    inputs = {"tensor": torch.from_numpy(tensor)}
    for name, file in files.items():
        inputs[name] = prepare(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))[None]
    with torch.inference_mode():
        expected = {
            name: {k: network.eval()(x, stitch_id=k) for k in range(network.num_stitches)} for name, x in inputs.items()
        }
    server = Server(folder)
    for number in range(requests):
        draw = random.Random(f"{seed}-{number}")
        for changed in (True, False) if number % 5 == 0 else (True,):
            case = Case(draw, tensor, files, network.num_stitches)
            raw, intact, how = change(case, draw) if changed else (case.write(), True, "unchanged")
            began = time.monotonic()
            try:
                may_be_unfinished = how in ("bytes", "body", "headers")
                status, headers, body = server.send(raw, seconds, 0.4 if may_be_unfinished else 5.0)
                unfinished = status == 0 and may_be_unfinished
                fault = "" if unfinished else judge(status, headers, body, "")
            except (TimeoutError, ConnectionError) as error:
                status, headers, body, fault = -1, {}, b"", f"{type(error).__name__}"
            outcome.slowest_s = max(outcome.slowest_s, time.monotonic() - began)
            is_answer = b'"predictions"' in body or b'"outputs"' in body
            if not fault and status == 200 and intact and is_answer and b'"BYTES"' not in body:
                outcome.compared += 1
                fault = check_logits(headers, body, expected, case.image)
            if not changed and status != 200:
                fault = f"a good request got {status}: {body[:100]!r}"
            outcome.statuses.setdefault(how, Counter())[str(status)] += 1
            if fault:
                outcome.wrong += 1
                print_row({"number": number, "kind": case.kind, "changed": how, "fault": fault})
        if number % 10 == 0 and server.send(HEALTH, seconds)[0] != 200:
            outcome.unhealthy += 1
        if number == 20:
            start = server.megabytes()
    if server.process.poll() is None:
        outcome.grown_mb = server.megabytes() - start if requests > 20 else 0
        server.process.send_signal(signal.SIGTERM)
        outcome.code = server.process.wait(60)
    server.log.seek(0)
    outcome.log = server.log.read().splitlines()
    server.log.close()
    scratch.cleanup()
    return outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Send requests, print the outcomes; returns 1 if something was wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--requests", type=int, default=1250, help="number of changed requests")
    parser.add_argument("--seed", type=int, default=0, help="seed of the requests")
    parser.add_argument("--seconds", type=float, default=20, help="time for one request")
    parser.add_argument("--megabytes", type=float, default=300, help="growth of the server's memory")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    outcome = fuzz(args.requests, args.seed, args.seconds)
    for how, counts in sorted(outcome.statuses.items()):
        print(f"{how}: {counts.total()}:", ", ".join(f"{n} × {status}" for status, n in counts.most_common()))
    print(
        f"{args.requests} changed requests, {outcome.wrong} wrong, {outcome.compared} compared with the network, at "
        f"most {outcome.slowest_s:.1f} s, {outcome.unhealthy} times not healthy, {outcome.grown_mb} MB more, exit "
        f"{outcome.code}, {len(outcome.log)} lines of log"
    )
    for line in outcome.log[:5]:
        print("  ", line[:200])
    return int(bool(outcome.wrong or outcome.unhealthy or outcome.code or outcome.code is None)
               or outcome.grown_mb > args.megabytes)  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
