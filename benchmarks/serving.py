"""A server under load: ours beside servers of one stitch, in one run, by a client in a process of its own.

    make quickstart
    python benchmarks/serving.py policies   # attainment and accuracy at 100 and 150 % and in a burst
    python benchmarks/serving.py overhead   # what the server adds to a request, beside a bare ASGI app
    python benchmarks/serving.py soak       # ten minutes with bad images and clients that hang up

Loads are shares of what the largest anchor answers, by the table that is measured first. A request is eight test images
of Fashion-MNIST, `right` is counted on the answers. Each policy's server is a process; all are up, and take turns, in
another order each round. Each run is then simulated with its own arrivals and its calls' slowdowns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_stitch
from timm_stitch.deployment.policies import DrainPolicy, FixedPolicy, LatencyTable
from timm_stitch.deployment.serving.latencies import latency_rows
from timm_stitch.deployment.serving.promise import Promise
from timm_stitch.deployment.serving.server import NetworkServer
from timm_stitch.deployment.simulation import Replica, burst, gamma_arrivals, simulate, varying_arrivals
from timm_stitch.plan.timings import call_times

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
from quickstart import load_images  # noqa: E402

COUNT = 8  # images of a request


def serve(folder: str, promise: Promise, calls: str, said: Any) -> None:
    """A server that writes its calls down when it ends: when each ended, how long it took, and what was expected."""
    torch.set_num_threads(1)
    server = NetworkServer(lambda: timm.create_model(f"local-dir:{folder}", pretrained=True), promise, port=0)
    metrics, rows = server.metrics.watch, []

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
    _, _, images, labels = load_images(HERE.parent / "examples/data/fashion_mnist_10k.npz")
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
    fixed = sorted({largest, *enough[-options.fixed :]}, key=table.stitch_ids.index)
    print(f"{len(table)} stitches; stitch {largest} answers {capacity:.0f} requests a second; fixed: {fixed}")
    promises = {"ours": base} | {
        f"stitch {k}": Promise(options.promise, options.reserve, "fixed", k) for k in fixed
    }  # fmt: skip
    loads = {
        "100 %": lambda seed: gamma_arrivals(capacity, seconds, 1.0, seed),
        "150 %": lambda seed: gamma_arrivals(1.5 * capacity, seconds, 1.0, seed),
        "burst of 5": lambda seed: varying_arrivals(
            burst(0.5 * capacity, 5, seconds / 3, 2 * seconds / 3), seconds, 1.0, seed
        ),
    }
    found: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepared(model, folder / "images.npz")
        servers = {name: start(options.model, p, folder / f"{n}.json") for n, (name, p) in enumerate(promises.items())}
        for seed in range(options.seeds):
            for load_name, arrivals_of in loads.items():
                arrivals = arrivals_of(seed)
                order = list(servers)
                for name in order[seed % len(order) :] + order[: seed % len(order)]:
                    began = time.monotonic()
                    answers = load(servers[name].url, folder / "images.npz", arrivals)
                    run = {"policy": name, "load": load_name, "seed": seed, **outcome(answers, base)}
                    print(json.dumps(run), flush=True)
                    began = min(row["due"] for row in answers)
                    run |= {"began": began, "ended": time.monotonic(), "arrivals": arrivals}
                    found.append(run | {"promise": vars(promises[name])})
        for server in servers.values():
            server.stop()
        for run in found:
            calls = json.loads(servers[run["policy"]].calls.read_text())
            run["simulated"] = replayed(run, calls, table)
    report(found, f"stitch {largest}")
    keep = [{k: v for k, v in run.items() if k not in ("arrivals", "began", "ended")} for run in found]
    options.output.write_text("".join(json.dumps(run) + "\n" for run in keep))


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
            print(
                f"{name:>10}  {policy:10}  {mean['attainment']:5.1f} ({each})  {mean['top1']:.2f}  {mean['score']:.2f}  {apart}"
            )
        ratio = means["ours"]["attainment"] / means[largest]["attainment"]
        best = max(mean["score"] for policy, mean in means.items() if policy != "ours")
        print(f"{name:>10}  ours / {largest}: {ratio:.2f} x; score − best fixed: {means['ours']['score'] - best:+.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["policies"])
    parser.add_argument("--model", default="quickstart-output/snnet")
    parser.add_argument("--promise", type=float, default=100.0, help="ms")
    parser.add_argument("--reserve", type=float, help="ms; default as the server's")
    parser.add_argument("--seconds", type=float, default=12.0, help="of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--fixed", type=int, default=2, help="cheaper stitches to compare with")
    parser.add_argument("--output", type=Path, default=Path("serving.jsonl"))
    options = parser.parse_args()
    {"policies": policies}[options.what](options)


if __name__ == "__main__":
    main()
