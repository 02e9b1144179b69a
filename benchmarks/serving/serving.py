"""A server under load: ours beside servers of one stitch, in one run, by a client in a process of its own.

    make quickstart
    python benchmarks/serving/serving.py policies   # attainment and accuracy at 100 and 150 % and in a burst
    python benchmarks/serving/serving.py overhead   # what the server adds to a request, beside a bare ASGI app
    python benchmarks/serving/serving.py soak       # ten minutes with bad images and clients that hang up

Loads are shares of what the largest anchor answers, by the table that is measured first. A request is eight test images
of Fashion-MNIST, `right` is counted on the answers. Each policy's server is a process; all are up, and take turns, in
another order each round. Each run is then simulated with its own arrivals and its calls' slowdowns. Longer than
most files, because the three share servers, client and images.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import timm
import torch
import uvicorn
from open_loop import answer, requests_of

import timm_stitch
from timm_stitch.deployment.policies import DrainPolicy, FixedPolicy, LatencyTable
from timm_stitch.deployment.serving.latencies import latency_rows
from timm_stitch.deployment.serving.promise import Promise
from timm_stitch.deployment.serving.server import NetworkServer, listen
from timm_stitch.deployment.simulation import Replica, burst, gamma_arrivals, simulate, varying_arrivals
from timm_stitch.plan.timings import call_times

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))
from quickstart import load_images  # noqa: E402

COUNT = 8  # images of a request


def serve(folder: str, promise: Promise, calls: str, said: Any) -> None:
    """A server that writes its calls down when it ends: when each ended, how long it took, and what was expected."""
    torch.set_num_threads(1)
    server = NetworkServer(lambda: timm.create_model(f"local-dir:{folder}", pretrained=True), promise, port=0)
    metrics, rows = server.application.metrics.watch, []

    def watch(call: Any) -> None:
        metrics(call)
        rows.append((time.monotonic(), call.took, call.expected, call.passed))

    server.service.engine.watch = watch
    said.send(server.address)
    server.run()
    Path(calls).write_text(json.dumps(rows))


@dataclass
class Running:
    """A server in a process."""

    promise: Promise
    url: str
    calls: Path
    process: Any

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(60)


def start(folder: str, promise: Promise, calls: Path) -> Running:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(folder, promise, str(calls), there), daemon=True)
    process.start()
    assert here.poll(300), "the server did not start"
    return Running(promise, here.recv(), calls, process)


def load(url: str, images: Path, arrivals: list[float], **more: Any) -> list[dict[str, Any]]:
    """Send requests from a process of its own; see `open_loop.py`."""
    with tempfile.TemporaryDirectory() as folder:
        plan, found = Path(folder, "plan.json"), Path(folder, "found.json")
        what = {"url": url, "model": "network", "arrivals": arrivals, "images": str(images), "count": COUNT, **more}
        plan.write_text(json.dumps(what))
        subprocess.run([sys.executable, HERE / "open_loop.py", plan, found], check=True)
        return json.loads(found.read_text())


def prepared(model: Any, path: Path) -> None:
    """The test images as the network takes them, and their labels."""
    _, _, images, labels = load_images(HERE.parents[1] / "examples/data/fashion_mnist_10k.npz")
    np.savez(path, images=images.numpy(), labels=labels.numpy())


def of_requests(rows: list[dict[str, Any]]) -> LatencyTable:
    """The table of calls by their number of requests."""
    return LatencyTable(
        {"stitch_id": row["stitch_id"], "top1": row["top1"], "batch_size": size // COUNT, "latency_ms": ms}
        for row in rows
        for size, ms in call_times(row).items()
        if size % COUNT == 0
    )


def outcome(rows: list[dict[str, Any]], promise: Promise) -> dict[str, Any]:
    """What came of a run, as its client saw it."""
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


def replayed(run: dict[str, Any], calls: list[list[Any]], table: LatencyTable) -> float:
    """The attainment that a simulation of a run gives, with the slowdowns of its own calls."""
    promise = Promise(**run["promise"])
    slow = [
        took / expected for at, took, expected, _ in calls if run["began"] <= at <= run["ended"] and expected and took
    ]
    reserve = promise.reserve
    if promise.policy == "drain":
        policy: Any = DrainPolicy(table, reserve)
    else:
        level = table.stitch_ids.index(promise.stitch_id) if promise.stitch_id in table.stitch_ids else None
        policy = None if level is None else FixedPolicy(table, level, reserve)
    if policy is None or not slow:
        return float("nan")
    replica = Replica(table, policy, itertools.cycle(slow))
    return simulate(run["arrivals"], [replica], promise.latency_ms).attainment


def measured(folder: str, promise: Promise) -> tuple[Any, list[dict[str, Any]]]:
    """The network, with times of this machine in its folder, and its rows."""
    torch.set_num_threads(1)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    rows = latency_rows(model, promise)
    timm_stitch.save_pretrained(model, folder)
    return model, rows


def policies(options: argparse.Namespace) -> None:
    """Compare servers at several loads, interleaved."""
    base = Promise(options.promise, options.reserve)
    model, rows = measured(options.model, base)
    table, seconds = of_requests(rows), options.seconds
    cost = {row["stitch_id"]: row["macs"] for row in model.stitch_table()}
    largest = min(table.stitch_ids, key=lambda k: abs(cost[k] - max(cost.values())))
    capacity = 1 / table.each[table.stitch_ids.index(largest)]
    enough = [k for k, each in zip(table.stitch_ids, table.each, strict=True) if 1 / each >= 1.1 * 1.5 * capacity]
    anchors = {k for k in table.stitch_ids[1:] if model.plan[k].is_anchor}
    fixed = sorted({largest, enough[-1], *anchors}, key=table.stitch_ids.index)
    print(f"{len(table)} stitches; stitch {largest} answers {capacity:.0f} requests a second; fixed: {fixed}")
    promises = {"ours": base} | {
        f"stitch {k}": Promise(options.promise, options.reserve, "fixed", k) for k in fixed
    }  # fmt: skip
    loads = {
        "100 %": lambda seed: gamma_arrivals(capacity, seconds, 1.0, seed),
        "150 %": lambda seed: gamma_arrivals(1.5 * capacity, seconds, 1.0, seed),
        "burst of 5": lambda seed: varying_arrivals(
            burst(options.base * capacity, 5, seconds / 3, 2 * seconds / 3), seconds, 1.0, seed
        ),
    }
    found: list[dict[str, Any]] = []
    drawn: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepared(model, folder / "images.npz")
        servers = {name: start(options.model, p, folder / f"{n}.json") for n, (name, p) in enumerate(promises.items())}
        for seed in range(options.seeds):
            for load_name, arrivals_of in loads.items():
                if load_name not in options.loads:
                    continue
                arrivals = arrivals_of(seed)
                order = list(servers)
                for name in order[seed % len(order) :] + order[: seed % len(order)]:
                    began = time.monotonic()
                    answers = load(servers[name].url, folder / "images.npz", arrivals)
                    run = {"policy": name, "load": load_name, "seed": seed, **outcome(answers, base)}
                    print(json.dumps(run), flush=True)
                    began = min(row["due"] for row in answers)
                    if load_name == "burst of 5" and seed == 0:
                        drawn[name] = [
                            [r["due"] - began, r["latency"] if r["status"] == 200 else None, r["stitch_id"]]
                            for r in answers
                        ]
                    run |= {"began": began, "ended": time.monotonic(), "arrivals": arrivals}
                    found.append(run | {"promise": vars(promises[name])})
        for server in servers.values():
            server.stop()
        for run in found:
            calls = json.loads(servers[run["policy"]].calls.read_text())
            run["simulated"] = replayed(run, calls, table)
    report(found, f"stitch {largest}")
    top1 = {row["stitch_id"]: row["top1"] for row in rows}
    options.burst.write_text(json.dumps({"promise_ms": options.promise, "top1": top1, "runs": drawn}))
    keep = [{k: v for k, v in run.items() if k not in ("arrivals", "began", "ended")} for run in found]
    options.output.write_text("".join(json.dumps(run) + "\n" for run in keep))


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """The least that an ASGI app does with a request: take its body, and say something."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-length", b"40"), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": bytes(40)})


def serve_bare(said: Any) -> None:
    listening = listen("127.0.0.1", 0)
    said.send(f"http://127.0.0.1:{listening.getsockname()[1]}")
    config = uvicorn.Config(bare, log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def overhead(options: argparse.Namespace) -> None:
    """One client, one image at a time: what is not the network's call, beside a bare ASGI app on the same server."""
    base = Promise(options.promise, options.reserve)
    measured(options.model, base)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=serve_bare, args=(there,), daemon=True)
    other.start()
    with tempfile.TemporaryDirectory() as folder:
        ours = start(options.model, base, Path(folder, "calls.json"))
        prepared(timm.create_model(f"local-dir:{options.model}"), Path(folder, "images.npz"))
        images = np.load(Path(folder, "images.npz"))["images"]
        sent = [request for request, _ in requests_of({"model": "network", "count": 1}, images)]
        found = asyncio.run(in_turn({"bare ASGI app": here.recv(), "ours": ours.url}, sent, options.requests))
        ours.stop()
        other.terminate()
    for name, times in found.items():
        ordered = sorted(times)
        print(f"{name:14}  {len(times)} answers, median {1e3 * statistics.median(times):.2f} ms, 99th percentile "
              f"{1e3 * ordered[int(0.99 * len(ordered))]:.2f} ms")  # fmt: skip


async def in_turn(urls: dict[str, str], sent: list[bytes], count: int) -> dict[str, list[float]]:
    """Seconds of requests to several servers in turn, one at a time; without what ours says of the network's call."""
    streams = {}
    for name, url in urls.items():
        where = urlsplit(url)
        streams[name] = await asyncio.open_connection(where.hostname, where.port)
    found: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(count + 50):
        for name, (reader, writer) in streams.items():
            began = time.perf_counter()
            writer.write(sent[number % len(sent)])
            status, length, body = await answer(reader)
            spent = time.perf_counter() - began
            if name == "ours" and status == 200:
                spent -= json.loads(body[:length])["parameters"]["call_ms"] / 1e3
            if number >= 50 and status == 200:
                found[name].append(spent)
    return found


def soak(options: argparse.Namespace) -> None:
    """Minutes at 100 % with bad images and clients that hang up: memory, and requests without an answer."""
    base = Promise(options.promise, options.reserve)
    model, rows = measured(options.model, base)
    capacity = 1 / of_requests(rows).each[-1]
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared(model, Path(folder, "images.npz"))
        server = start(options.model, base, Path(folder, "calls.json"))
        ended = threading.Event()

        def look() -> None:
            while not ended.wait(10):
                pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
                memory.append(pages * resource.getpagesize() / 1e6)

        looking = threading.Thread(target=look)
        looking.start()
        arrivals = gamma_arrivals(options.load * capacity, 60 * options.minutes, 1.0, 0)
        answers = load(server.url, Path(folder, "images.npz"), arrivals, bad=0.01, hang_up=0.01)
        ended.set()
        looking.join()
        server.stop()
    kinds = {kind: [row for row in answers if row["kind"] == kind] for kind in ("plain", "bad", "hang_up")}
    print(json.dumps(outcome(kinds["plain"], base)))
    print(f"bad images: {dict(Counter(row['status'] for row in kinds['bad']))}; hung up: {len(kinds['hang_up'])}")
    print(f"memory in MB, every 10 s: {', '.join(f'{m:.0f}' for m in memory)}")


def report(found: list[dict[str, Any]], largest: str) -> None:
    """Means over the seeds."""
    print("\nload, policy: in time % (each seed), top-1 of the answers, score, simulated − real")
    for name in dict.fromkeys(run["load"] for run in found):
        means = {}
        for policy in dict.fromkeys(run["policy"] for run in found):
            runs = [run for run in found if (run["load"], run["policy"]) == (name, policy)]
            each = ", ".join(f"{run['attainment']:.1f}" for run in runs)
            means[policy] = {k: statistics.fmean(run[k] for run in runs) for k in ("attainment", "top1", "score")}
            apart = ", ".join(f"{run['simulated'] - run['attainment']:+.1f}" for run in runs)
            mean = means[policy]
            figures = f"{mean['attainment']:5.1f} ({each})  {mean['top1']:.2f}  {mean['score']:.2f}  {apart}"
            print(f"{name:>10}  {policy:10}  {figures}")
        ratio = means["ours"]["attainment"] / means[largest]["attainment"]
        best = max(mean["score"] for policy, mean in means.items() if policy != "ours")
        print(f"{name:>10}  ours / {largest}: {ratio:.2f} x; score − best fixed: {means['ours']['score'] - best:+.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["policies", "overhead", "soak"])
    parser.add_argument("--model", default="quickstart-output/snnet")
    parser.add_argument("--promise", type=float, default=100.0, help="ms")
    parser.add_argument("--reserve", type=float, help="ms; default as the server's")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=2000, help="of overhead")
    parser.add_argument("--minutes", type=float, default=10, help="of soak")
    parser.add_argument("--load", type=float, default=1.0, help="of soak, as a share of the capacity")
    parser.add_argument("--output", type=Path, default=Path("serving.jsonl"))
    parser.add_argument("--base", type=float, default=0.4, help="load before and after the burst")
    parser.add_argument("--loads", nargs="+", default=["100 %", "150 %", "burst of 5"])
    parser.add_argument("--burst", type=Path, default=Path("burst.json"), help="a burst for draw_serving.py")
    options = parser.parse_args()
    {"policies": policies, "overhead": overhead, "soak": soak}[options.what](options)


if __name__ == "__main__":
    main()
