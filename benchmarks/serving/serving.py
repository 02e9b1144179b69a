"""How well does the server do under load, against servers of one stitch? One run, with a client in its own process.

    make quickstart
    python benchmarks/serving/serving.py policies   # attainment and accuracy at 100 and 150 % and in a burst
    python benchmarks/serving/serving.py overhead   # what the server adds to a request, against a bare ASGI app
    python benchmarks/serving/serving.py soak       # ten minutes with bad images and clients that hang up

Loads are shares of what the largest anchor answers, by the table that is measured first. A request is eight test images
of Fashion-MNIST, and correct answers are counted. Each policy's server is a process; all are up, and take turns, in
another order each round. Each run is then simulated with its own arrivals and its calls' slowdowns.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import uvicorn
from open_loop import make_requests, read_answer
from server_process import latency_table, measure_network, save_images, send_requests, start_server, summarize

from timm_stitch.deployment.policies import DrainPolicy, FixedPolicy, LatencyTable
from timm_stitch.deployment.serving.promise import Promise
from timm_stitch.deployment.serving.server import listen
from timm_stitch.deployment.simulation import Replica, burst, gamma_arrivals, simulate, varying_arrivals

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row, write_rows
from measuring import memory_mb


def simulate_run(run: Row, calls: list[list[Any]], table: LatencyTable) -> float:
    """Simulate a run with the slowdowns of its own calls: its attainment."""
    promise = Promise(**run["promise"])
    slow = [
        took / expected for at, took, expected, _ in calls if run["began"] <= at <= run["ended"] and expected and took
    ]
    reserve = promise.overhead_ms
    if promise.policy == "drain":
        policy: Any = DrainPolicy(table, reserve)
    else:
        level = table.stitch_ids.index(promise.stitch_id) if promise.stitch_id in table.stitch_ids else None
        policy = None if level is None else FixedPolicy(table, level, reserve)
    if policy is None or not slow:
        return float("nan")
    replica = Replica(table, policy, itertools.cycle(slow))
    return simulate(run["arrivals"], [replica], promise.latency_ms).attainment


def policies(options: argparse.Namespace) -> None:
    """Compare servers at several loads, interleaved."""
    base = Promise(options.latency_ms, options.reserve_ms)
    model, rows = measure_network(options.model, base)
    table, seconds = latency_table(rows), options.seconds
    cost = {row["stitch_id"]: row["macs"] for row in model.stitch_table()}
    largest = min(table.stitch_ids, key=lambda k: abs(cost[k] - max(cost.values())))
    capacity = 1 / table.each[table.stitch_ids.index(largest)]
    enough = [k for k, each in zip(table.stitch_ids, table.each, strict=True) if 1 / each >= 1.1 * 1.5 * capacity]
    anchors = {k for k in table.stitch_ids[1:] if model.plan[k].is_anchor}
    fixed = sorted({largest, enough[-1], *anchors}, key=table.stitch_ids.index)
    print(f"{len(table)} stitches; stitch {largest} answers {capacity:.0f} requests a second; fixed: {fixed}")
    promises = {"ours": base} | {
        f"stitch {k}": Promise(options.latency_ms, options.reserve_ms, "fixed", k) for k in fixed
    }  # fmt: skip
    loads = {
        "100 %": lambda seed: gamma_arrivals(capacity, seconds, 1.0, seed),
        "150 %": lambda seed: gamma_arrivals(1.5 * capacity, seconds, 1.0, seed),
        "burst of 5": lambda seed: varying_arrivals(
            burst(options.base * capacity, 5, seconds / 3, 2 * seconds / 3), seconds, 1.0, seed
        ),
    }
    runs: list[Row] = []
    drawn: dict[str, list[Any]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_images(folder / "images.npz")
        servers = {
            name: start_server(options.model, p, folder / f"{n}.json") for n, (name, p) in enumerate(promises.items())
        }
        for seed in range(options.seeds):
            for load_name, arrivals_of in loads.items():
                if load_name not in options.loads:
                    continue
                arrivals = arrivals_of(seed)
                order = list(servers)
                for name in order[seed % len(order) :] + order[: seed % len(order)]:
                    answers = send_requests(servers[name].url, folder / "images.npz", arrivals)
                    run = {"policy": name, "load": load_name, "seed": seed, **summarize(answers, base)}
                    print_row(run)
                    began = min(row["due"] for row in answers)
                    if load_name == "burst of 5" and seed == 0:
                        drawn[name] = [
                            [r["due"] - began, r["latency"] if r["status"] == 200 else None, r["stitch_id"]]
                            for r in answers
                        ]
                    run |= {"began": began, "ended": time.monotonic(), "arrivals": arrivals}
                    runs.append(run | {"promise": vars(promises[name])})
        for server in servers.values():
            server.stop()
        for run in runs:
            calls = json.loads(servers[run["policy"]].calls.read_text())
            run["simulated"] = simulate_run(run, calls, table)
    report(runs, f"stitch {largest}")
    top1 = {row["stitch_id"]: row["top1"] for row in rows}
    options.burst.write_text(json.dumps({"promise_ms": options.latency_ms, "top1": top1, "runs": drawn}))
    keep = [{k: v for k, v in run.items() if k not in ("arrivals", "began", "ended")} for run in runs]
    write_rows(options.output, keep)


async def bare(scope: Any, receive: Any, send: Any) -> None:
    """Take a request's body and answer something: the least that an ASGI app does."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    head = [(b"content-length", b"40"), (b"content-type", b"application/octet-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": bytes(40)})


def serve_bare(pipe: Any) -> None:
    """Serve the bare app."""
    listening = listen("127.0.0.1", 0)
    pipe.send(f"http://127.0.0.1:{listening.getsockname()[1]}")
    config = uvicorn.Config(bare, log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])


def overhead(options: argparse.Namespace) -> None:
    """Time all but the network's call for one client and one image at a time, against a bare ASGI app."""
    base = Promise(options.latency_ms, options.reserve_ms)
    measure_network(options.model, base)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    other = context.Process(target=serve_bare, args=(there,), daemon=True)
    other.start()
    with tempfile.TemporaryDirectory() as folder:
        ours = start_server(options.model, base, Path(folder, "calls.json"))
        save_images(Path(folder, "images.npz"))
        images = np.load(Path(folder, "images.npz"))["images"]
        sent = [request for request, _ in make_requests({"model": "network", "count": 1}, images)]
        times = asyncio.run(time_requests({"bare ASGI app": here.recv(), "ours": ours.url}, sent, options.requests))
        ours.stop()
        other.terminate()
    for name, seconds in times.items():
        ordered = sorted(seconds)
        print(f"{name:14}  {len(seconds)} answers, median {1e3 * statistics.median(seconds):.2f} ms, 99th percentile "
              f"{1e3 * ordered[int(0.99 * len(ordered))]:.2f} ms")  # fmt: skip


async def time_requests(urls: dict[str, str], sent: list[bytes], count: int) -> dict[str, list[float]]:
    """Time requests to several servers in turns, one at a time, in seconds; without the network's call in ours."""
    streams = {}
    for name, url in urls.items():
        where = urlsplit(url)
        streams[name] = await asyncio.open_connection(where.hostname, where.port)
    found: dict[str, list[float]] = {name: [] for name in urls}
    for number in range(count + 50):
        for name, (reader, writer) in streams.items():
            began = time.perf_counter()
            writer.write(sent[number % len(sent)])
            status, length, body = await read_answer(reader)
            spent = time.perf_counter() - began
            if name == "ours" and status == 200:
                spent -= json.loads(body[:length])["parameters"]["call_ms"] / 1e3
            if number >= 50 and status == 200:
                found[name].append(spent)
    return found


def soak(options: argparse.Namespace) -> None:
    """Load a server for minutes, with bad images and clients that hang up: memory, and requests without an answer."""
    base = Promise(options.latency_ms, options.reserve_ms)
    _, rows = measure_network(options.model, base)
    capacity = 1 / latency_table(rows).each[-1]
    memory: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        save_images(Path(folder, "images.npz"))
        server = start_server(options.model, base, Path(folder, "calls.json"))
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(10):
                memory.append(memory_mb("VmRSS", server.process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        arrivals = gamma_arrivals(options.load * capacity, 60 * options.minutes, 1.0, 0)
        answers = send_requests(server.url, Path(folder, "images.npz"), arrivals, bad=0.01, hang_up=0.01)
        ended.set()
        watcher.join()
        server.stop()
    kinds = {kind: [row for row in answers if row["kind"] == kind] for kind in ("plain", "bad", "hang_up")}
    print_row(summarize(kinds["plain"], base))
    print(f"bad images: {dict(Counter(row['status'] for row in kinds['bad']))}; hung up: {len(kinds['hang_up'])}")
    print(f"memory in MB, every 10 s: {', '.join(f'{m:.0f}' for m in memory)}")


def report(all_runs: list[Row], largest: str) -> None:
    """Print means over the seeds."""
    print("\nload, policy: in time % (each seed), top-1 of the answers, score, simulated − real")
    for name in dict.fromkeys(run["load"] for run in all_runs):
        means = {}
        for policy in dict.fromkeys(run["policy"] for run in all_runs):
            runs = [run for run in all_runs if (run["load"], run["policy"]) == (name, policy)]
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
    """Make one of the comparisons."""
    parser = make_parser(__doc__)
    parser.add_argument("what", choices=["policies", "overhead", "soak"], help="comparison to make")
    parser.add_argument("--model", default="quickstart-output/snnet", help="folder of the network")
    parser.add_argument("--latency-ms", type=float, default=100.0, help="latency target in ms")
    parser.add_argument(
        "--reserve-ms", type=float, help="ms of the target for all but the network (default: the server's)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a run")
    parser.add_argument("--seeds", type=int, default=3, help="number of rounds")
    parser.add_argument("--requests", type=int, default=2000, help="requests for overhead")
    parser.add_argument("--minutes", type=float, default=10, help="minutes for soak")
    parser.add_argument("--load", type=float, default=1.0, help="load for soak, as a share of the capacity")
    parser.add_argument("--output", type=Path, default=Path("serving.jsonl"), help="JSON-lines file for the rows")
    parser.add_argument("--base", type=float, default=0.4, help="load before and after the burst")
    parser.add_argument("--loads", nargs="+", default=["100 %", "150 %", "burst of 5"], help="loads to try")
    parser.add_argument(
        "--burst", type=Path, default=Path("burst.json"), help="file for draw_serving.py, with one burst"
    )
    options = parser.parse_args()
    {"policies": policies, "overhead": overhead, "soak": soak}[options.what](options)


if __name__ == "__main__":
    main()
