"""Does the server answer others under idle connections, hostile images and many bodies, and does memory come back?

    python benchmarks/serving/idle_connections.py

A tiny network is served by `timm-stitch serve`. Prints a row for each of these: health while `--connections` are open
that send nothing or half a head, with the seconds of the slowest of its answers; a small image, by its deadline, while
a hostile one is read (a progressive JPEG of 99 scans and of 5,000, a 16-bit PNG of 49 million pixels, 16 of them in one
request); and memory before, during and after `--bodies` of 16 MiB that lack their last byte.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from image_files import save_network
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
sys.path.append(str(Path(__file__).parents[2] / "tests" / "deployment" / "serving"))
from command_line import make_parser, print_row
from hostile_images import deep_png, progressive_jpeg
from measuring import memory_mb

LATENCY_MS = 1000


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Serve a network; yields the process and its port."""
    command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--latency-ms", str(LATENCY_MS), "--threads", "1"], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process, int(json.loads(process.stdout.readline())["url"].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, method: str, path: str, body: bytes | None = None) -> tuple[int, float]:
    """Send a request on a connection of its own; returns the status (0 for none) and the seconds."""
    began, connection = time.perf_counter(), http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        return connection.getresponse().status, time.perf_counter() - began
    except OSError:
        return 0, time.perf_counter() - began
    finally:
        connection.close()


def connect(port: int, start: bytes = b"") -> socket.socket:
    """Open a connection, and send the start of a request."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(start)
    return connection


def idle_connections(port: int, count: int, seconds: float) -> None:
    """Ask for health while connections are open that send nothing, or half a head."""
    half = b"POST /predict HTTP/1.1\r\nHost: x\r\nX-A: "
    idle = [connect(port, half if number % 2 else b"") for number in range(count)]
    until, answers = time.monotonic() + seconds, []
    while time.monotonic() < until:
        answers.append(ask(port, "GET", "/health"))
        time.sleep(0.1)
    for connection in idle:
        connection.close()
    statuses = sorted({status for status, _ in answers})
    slowest = max(taken for _, taken in answers)
    print_row({"idle": count, "asked": len(answers), "statuses": statuses, "slowest_s": round(slowest, 3)})


def hostile_images(port: int) -> None:
    """Send a small image twenty times while a hostile one is read."""
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(stream, "PNG")
    webp = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(webp, "WEBP")
    deep = deep_png()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [16], "data": [base64.b64encode(deep).decode()] * 16}
    requests = {
        "99 scans": ("/predict", progressive_jpeg(98)),
        "5,000 scans": ("/predict", progressive_jpeg(5000)),
        "16 bits": ("/predict", deep),
        "16 of 16 bits": ("/v2/models/net/infer", json.dumps({"inputs": [tensor]}).encode()),
    }
    for name, (path, body) in requests.items():
        with ThreadPoolExecutor(4) as clients:
            hostile = [clients.submit(ask, port, "POST", path, body) for _ in range(4)]
            time.sleep(0.1)
            answers = [ask(port, "POST", "/predict", (stream, webp)[number % 2].getvalue()) for number in range(20)]
            statuses = sorted(future.result()[0] for future in hostile)
        print_row(
            {
                "beside": f"4 × {name}",
                "their_statuses": statuses,
                "in_time": sum(status == 200 and seconds <= LATENCY_MS / 1e3 for status, seconds in answers),
                "asked": len(answers),
                "slowest_s": round(max(seconds for _, seconds in answers), 3),
            }
        )


def many_bodies(process: subprocess.Popen[str], port: int, count: int) -> None:
    """Send bodies but for their last byte, and read the server's memory before, meanwhile and after."""
    size = 16 << 20
    before = peak = memory_mb("VmRSS", process.pid)
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode()
    connections = [connect(port, head) for _ in range(count)]
    block = bytes(size - 1)

    def send(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is refused
            connection.sendall(block)

    threads = [threading.Thread(target=send, args=(connection,), daemon=True) for connection in connections]
    for thread in threads:
        thread.start()
    health, until = [], time.monotonic() + 15
    while time.monotonic() < until:
        health.append(ask(port, "GET", "/health"))
        peak = max(peak, memory_mb("VmRSS", process.pid))
        time.sleep(0.1)
    for connection in connections:
        connection.close()
    time.sleep(2)
    after = memory_mb("VmRSS", process.pid)
    print_row(
        {
            "bodies": count, "mb_before": round(before), "mb_peak": round(peak), "mb_after": round(after),
            "health": sorted({status for status, _ in health}), "slowest_s": round(max(s for _, s in health), 3),
        }
    )  # fmt: skip


def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--connections", type=int, default=1000, help="number of idle connections")
    parser.add_argument("--seconds", type=float, default=15, help="duration of the idle connections")
    parser.add_argument("--bodies", type=int, default=150, help="number of bodies of 16 MiB")
    options = parser.parse_args()
    wanted, most = 2 * options.connections + 500, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))
    with tempfile.TemporaryDirectory() as scratch:
        save_network(Path(scratch, "net"))
        with served(Path(scratch, "net")) as (process, port):
            ask(port, "POST", "/predict", b"no image")
            idle_connections(port, options.connections, options.seconds)
            hostile_images(port)
            many_bodies(process, port, options.bodies)


if __name__ == "__main__":
    main()
