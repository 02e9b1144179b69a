"""A server in a process of its own, a client in another, and what the client saw: what the serving benchmarks share."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_stitch
from timm_stitch.deployment.policies import LatencyTable
from timm_stitch.deployment.serving.latencies import latency_rows
from timm_stitch.deployment.serving.promise import Promise
from timm_stitch.deployment.serving.server import HttpServer
from timm_stitch.plan.timings import call_times

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row
from fashion_mnist_images import read_quickstart_images
from processes import run_script

COUNT = 8  # images of a request


def serve(folder: str, promise: Promise, calls: str, pipe: Any) -> None:
    """Serve, and at the end write down each call: when it ended, how long it took, and what was expected."""
    torch.set_num_threads(1)
    server = HttpServer(lambda: timm_stitch.from_hub(folder), promise, port=0)
    metrics, rows = server.application.metrics.watch, []

    def watch(call: Any) -> None:
        metrics(call)
        rows.append((time.monotonic(), call.duration_s, call.expected, call.dropped))

    server.service.engine.watch = watch
    pipe.send(server.address)
    server.run()
    Path(calls).write_text(json.dumps(rows))


@dataclass
class ServerProcess:
    """A server in a process."""

    promise: Promise
    url: str
    calls: Path
    process: Any

    def stop(self) -> None:
        """Stop the server, which writes its calls down."""
        self.process.terminate()
        self.process.join(60)


def start_server(folder: str, promise: Promise, calls: Path) -> ServerProcess:
    """Start a server and wait for its address."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, promise, str(calls), there), daemon=True)
    process.start()
    there.close()  # so that `recv` ends if the server does not start
    return ServerProcess(promise, here.recv(), calls, process)


def send_requests(url: str, images: Path, arrivals: list[float], **more: Any) -> list[Row]:
    """Send requests from a process of its own; see `open_loop.py`."""
    with tempfile.TemporaryDirectory() as folder:
        plan, results = Path(folder, "plan.json"), Path(folder, "results.json")
        values = {"url": url, "model": "network", "arrivals": arrivals, "images": str(images), "count": COUNT, **more}
        plan.write_text(json.dumps(values))
        run_script(Path(__file__).with_name("open_loop.py"), plan, results)
        return json.loads(results.read_text())


def save_images(path: Path) -> None:
    """Save the test images as the network takes them, with their labels."""
    images, labels = read_quickstart_images()["test"]
    np.savez(path, images=images.numpy(), labels=labels.numpy())


def latency_table(rows: list[Row]) -> LatencyTable:
    """Make the table of calls by their number of requests."""
    return LatencyTable(
        {"stitch_id": row["stitch_id"], "top1": row["top1"], "batch_size": size // COUNT, "latency_ms": ms}
        for row in rows
        for size, ms in call_times(row).items()
        if size % COUNT == 0
    )


def summarize(rows: list[Row], promise: Promise) -> Row:
    """Summarise a run as its client saw it."""
    met = [row for row in rows if row["status"] == 200 and row["latency"] <= promise.latency_ms / 1e3]
    right = sum(row["right"] for row in met)
    late = sorted(row["latency"] for row in rows if row["status"] == 200)
    return {
        "attainment": 100 * len(met) / len(rows),
        "top1": 100 * right / (COUNT * len(met)) if met else 0.0,
        "score": 100 * right / (COUNT * len(rows)),
        "p50_ms": 1e3 * statistics.median(late) if late else None,
        "p99_ms": 1e3 * late[int(0.99 * len(late))] if late else None,
        "unanswered": sum(row["status"] == 0 for row in rows),
        "statuses": dict(Counter(str(row["status"]) for row in rows)),
        "stitches": dict(Counter(str(row["stitch_id"]) for row in met)),
    }


def measure_network(folder: str, promise: Promise) -> tuple[Any, list[Row]]:
    """Read the network, and save this machine's times in its folder; return it with its rows."""
    torch.set_num_threads(1)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    rows = latency_rows(model, promise)
    timm_stitch.save_pretrained(model, folder)
    return model, rows
