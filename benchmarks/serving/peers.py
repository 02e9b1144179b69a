"""How does the server do beside LitServe, BentoML, TorchServe, and OpenVINO's own queue behind Starlette?

    python benchmarks/serving/peers.py rows.jsonl --litserve ENV --bentoml ENV --torchserve ENV

Each peer has an environment of its own, since their dependencies conflict: a folder with `bin/python`, where the peer
is installed (`litserve`, `bentoml`, or `torchserve torch-model-archiver` with Java) and what this package needs. A peer
without one is left out. All serve one stitch, the most expensive, by one worker with one thread; a request is one PNG
of 28 x 28 pixels. LitServe and TorchServe make batches of up to 16 within 3 ms, BentoML of up to 16 as it adapts, the
queue none; LitServe answers by ZeroMQ, its faster way, and none logs its requests. Ours serves by `--policy fixed` with
a target of two seconds, by torch and by OpenVINO. The servers take turns, each started alone. Before it is measured, a
server has to give ten images, sent at once, the classes that the stitch gives them. Then 32 clients ask without a
pause: the requests a second are its saturation. At last requests come at random times at half of that rate, over 32
connections: latencies from when each was due.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from open_loop import read_answer
from peer_servers import classify, read_stitch
from PIL import Image

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row
from fashion_mnist_images import SMALL

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("peer_servers.py")
CLIENTS = 32
PATIENCE = 120.0  # seconds until a server answers
ERRORS_ONLY = """<Configuration><Appenders><Console name="out"><PatternLayout/></Console></Appenders>
<Loggers><Root level="error"><AppenderRef ref="out"/></Root></Loggers></Configuration>"""  # TorchServe's log


def read_pngs() -> list[bytes]:
    """Read the first test image of each of the quickstart's classes, as PNG files."""
    files, data = [], np.load(SMALL)
    for label in range(10):
        stream = io.BytesIO()
        Image.fromarray(data["test_images"][data["test_labels"] == label][0]).save(stream, "PNG")
        files.append(stream.getvalue())
    return files


def request_of(name: str, port: int, data: bytes) -> bytes:
    """Write a request as a peer takes it: the file, JSON with the file in base64, or a form with the file."""
    path = "/predictions/net" if name == "torchserve" else "/predict"
    kind = "application/octet-stream"
    if name == "litserve":
        data, kind = json.dumps({"image": base64.b64encode(data).decode()}).encode(), "application/json"
    elif name == "bentoml":
        head = (
            '--x\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
        )
        data, kind = head.encode() + data + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n"
    return lines.encode() + b"\r\n" + data


def class_of(name: str, body: bytes) -> int:
    """Read the class from an answer."""
    answer = json.loads(body)
    if name.startswith("ours"):
        answer = answer["predictions"][0]
    return int(answer[0] if name == "bentoml" else answer["class"])


def command_of(name: str, options: argparse.Namespace, stitch_id: int, port: int, scratch: Path) -> list[str]:
    """Find the command that starts a server."""
    network, stitch, number = str(Path(options.network).resolve()), str(stitch_id), str(port)
    if name.startswith("ours"):
        command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", network, "--threads", "1"]
        command += ["--latency-ms", "2000", "--policy", "fixed", "--stitch-id", stitch, "--port", number]
        return [*command, "--engine", name.split()[1]]
    python = sys.executable if name == "openvino" else str(Path(getattr(options, name), "bin/python").absolute())
    if name == "bentoml":
        return [python, "-m", "bentoml", "serve", f"{PROGRAM.stem}:Classifier", "--port", number]
    if name == "torchserve":
        archive = [python, str(PROGRAM), "archive", network, stitch, str(scratch)]
        subprocess.run(archive, check=True, env=environment(network, stitch, scratch))
        return torchserve_command(python, port, scratch)
    return [python, str(PROGRAM), name, network, stitch, number]


def torchserve_command(python: str, port: int, store: Path) -> list[str]:
    """Write TorchServe's configuration beside the archive, and find the command that starts it."""
    model = {"1.0": {"defaultVersion": True, "marName": "net.mar", "minWorkers": 1, "maxWorkers": 1, "batchSize": 16,
                     "maxBatchDelay": 3, "responseTimeout": 120}}  # fmt: skip
    kinds = ("inference", "management", "metrics")
    lines = [f"{kind}_address=http://127.0.0.1:{port + n}" for n, kind in enumerate(kinds)]
    lines += ["load_models=net.mar", f"models={json.dumps({'net': model})}", "disable_token_authorization=true"]
    Path(store, "config.properties").write_text("\n".join(lines))
    Path(store, "log4j2.xml").write_text(ERRORS_ONLY)
    command = [str(Path(python).with_name("torchserve")), "--start", "--foreground", "--ncs", "--model-store"]
    command += [str(store), "--ts-config", str(store / "config.properties")]
    return [*command, "--log-config", str(store / "log4j2.xml")]


def environment(network: str, stitch: str, scratch: Path) -> dict[str, str]:
    """Make the environment variables of a server: one thread, this checkout, and a folder for its files."""
    path = os.pathsep.join([str(ROOT), str(PROGRAM.parent)])
    more = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "NETWORK": network, "STITCH_ID": stitch}
    return os.environ | more | dict.fromkeys(("BENTOML_HOME", "TMPDIR", "TEMP"), str(scratch))


@contextmanager
def server(name: str, options: argparse.Namespace, stitch_id: int, data: bytes) -> Iterator[tuple[int, psutil.Process]]:
    """Start a server and wait for its first right answer; gives its port and its process."""
    with tempfile.TemporaryDirectory() as scratch:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = command_of(name, options, stitch_id, port, Path(scratch))
        with open(Path(scratch, "log"), "wb") as log:
            process = subprocess.Popen(
                command, cwd=scratch, stdout=log, stderr=log, start_new_session=True,
                env=environment(str(Path(options.network).resolve()), str(stitch_id), Path(scratch)),
            )  # fmt: skip
        try:
            wait_for_answer(name, port, data, process, Path(scratch, "log"))
            yield port, psutil.Process(process.pid)
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and the processes that it started."""
    if process.poll() is not None:
        return
    own = psutil.Process(process.pid)
    family = [own, *own.children(recursive=True)]
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.terminate()
    for each in psutil.wait_procs(family, 10)[1]:
        each.kill()
    process.wait(10)


def wait_for_answer(name: str, port: int, data: bytes, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server answers, and ours by its engine."""
    until, engine = time.monotonic() + PATIENCE, name.split()[1] if name.startswith("ours") else None
    while time.monotonic() < until and process.poll() is None:
        try:
            asyncio.run(load(port, request_of(name, port, data), 1, 0.1, None))
            metrics = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode() if engine else ""
            if not engine or f'timm_stitch_backend{{engine="{engine}"' in metrics:
                return
        except (OSError, asyncio.IncompleteReadError, AssertionError):
            pass
        time.sleep(0.5)
    raise RuntimeError(f"{name} does not answer: {log.read_text()[-2000:]}")


async def ask(name: str, port: int, data: bytes) -> int:
    """Ask a server for the class of an image file."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_of(name, port, data))
    status, _, body = await read_answer(reader)
    writer.close()
    assert status == 200, body
    return class_of(name, body)


async def check_classes(name: str, port: int, files: list[bytes], classes: list[int]) -> None:
    """Ask for the classes of all files at once: they must be the stitch's own."""
    answers = await asyncio.gather(*(ask(name, port, data) for data in files))
    if answers != classes:
        raise RuntimeError(f"{name} answers the classes {answers}, the stitch itself {classes}")


async def load(port: int, request: bytes, clients: int, seconds: float, rate: float | None) -> list[float]:
    """Send requests for some seconds: each client one after another, or at random times with a mean rate.

    Returns:
        The seconds until each answer, from when its request was due.
    """
    began, latencies, due = time.perf_counter(), [], 0.0
    draw = random.Random(0)

    async def send() -> None:
        nonlocal due
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (start := time.perf_counter()) < began + seconds:
            if rate is not None:
                due += draw.expovariate(rate)
                start = began + due
                await asyncio.sleep(start - time.perf_counter())
            writer.write(request)
            status, _, body = await read_answer(reader)
            assert status == 200, body
            latencies.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))
    return latencies


def measure(name: str, options: argparse.Namespace, stitch_id: int, files: list[bytes], classes: list[int]) -> Row:
    """Check one server's answers, then measure its saturation, its latencies at half of that, and its memory."""
    with server(name, options, stitch_id, files[0]) as (port, process):
        asyncio.run(check_classes(name, port, files, classes))
        request = request_of(name, port, files[0])
        asyncio.run(load(port, request, CLIENTS, 1.0, None))
        saturation = len(asyncio.run(load(port, request, CLIENTS, options.seconds, None))) / options.seconds
        times = sorted(1e3 * s for s in asyncio.run(load(port, request, CLIENTS, options.seconds, saturation / 2)))
        memory = sum(each.memory_full_info().pss for each in (process, *process.children(recursive=True))) / 1e6
    p50, p99 = statistics.median(times), times[-1 - len(times) // 100]
    return {"server": name, "per_s": round(saturation, 1), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1),
            "pss_mb": round(memory)}  # fmt: skip


def main() -> None:
    """Measure all servers in turns, and print the medians."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--network", default="quickstart-output/snnet", help="folder of the network")
    for peer in ("litserve", "bentoml", "torchserve"):
        parser.add_argument(f"--{peer}", metavar="ENV", help=f"environment with {peer}")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each server")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # or the servers would stay
    peers = [peer for peer in ("litserve", "bentoml", "torchserve") if getattr(options, peer)]
    table = timm_stitch.from_hub(options.network).stitch_table()
    stitch_id, files = max(table, key=lambda row: row["macs"])["stitch_id"], read_pngs()
    stitch, prepare = read_stitch(options.network, stitch_id)
    classes = classify(stitch, [prepare(data) for data in files])
    rows: list[Row] = []
    for number in range(options.rounds):
        names = ["ours torch", "ours openvino", "openvino", *peers]
        for name in names[:: -1 if number % 2 else 1]:
            rows.append({"round": number, **measure(name, options, stitch_id, files, classes)})
            print_row(rows[-1], options.rows)
    for name in dict.fromkeys(row["server"] for row in rows):
        own = [row for row in rows if row["server"] == name]
        figures = {key: statistics.median(row[key] for row in own) for key in ("per_s", "p50_ms", "p99_ms", "pss_mb")}
        print_row({"server": name, "medians": figures})


if __name__ == "__main__":
    main()
