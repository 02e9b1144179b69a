"""How much load does each engine and precision carry within a latency target? Servers take turns in one run.

    make quickstart
    python benchmarks/serving/engines.py rows.jsonl
    python benchmarks/serving/engines.py rows.jsonl --network snnet_resnet_18_50 --count 1 --latency-ms 100

Each server is a process, and all are up: torch, then each engine and precision, in `--policy fixed` (the most expensive
stitch) and `drain`. Rates are shares of what that stitch answers in torch, by its table. At every rate and seed the
servers take turns, in another order each seed. The capacity of a server is the highest rate up to which it answers 97 %
in time, over all seeds. A registered network has random weights and noise for images, so its rows have no accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from server_process import COUNT, save_images, send_requests, start_server, summarize

import timm_stitch
from timm_stitch.deployment.policies import LatencyTable
from timm_stitch.deployment.serving.config import ServingConfig
from timm_stitch.deployment.serving.latencies import latency_rows
from timm_stitch.deployment.simulation import gamma_arrivals

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import Row, make_parser, print_row
from measuring import memory_mb

IN_TIME = 97.0  # per cent of the requests that count as carried
HOPELESS = 80.0  # per cent below which a server is not tried at higher rates with the same seed
PATIENCE = 1800.0  # seconds until an engine has compiled


def prepare(options: argparse.Namespace, folder: Path) -> str:
    """Find the folder of the network, with latencies, and write images down; a registered name gets random weights."""
    torch.set_num_threads(1)
    images = folder / "images.npz"
    if Path(options.network).is_dir():
        model = timm.create_model(f"local-dir:{options.network}", pretrained=True).eval()
        save_images(images)
    else:
        torch.manual_seed(0)
        model = timm.create_model(options.network).eval()
        order = sorted(model.stitch_table(), key=lambda row: row["macs"])  # the most expensive counts as the best
        model.results.add({"stitch_id": row["stitch_id"], "top1": 50 + 0.01 * n} for n, row in enumerate(order))
        noise = np.random.default_rng(0).standard_normal((64, model.in_chans, *model.image_size), dtype=np.float32)
        np.savez(images, images=noise, labels=np.zeros(64, dtype=np.int64))
    latency_rows(model, ServingConfig(min(options.latency_ms)))
    path = folder / "network"
    timm_stitch.save_pretrained(model, path)
    return str(path)


def capacity_in_torch(network: str, options: argparse.Namespace) -> tuple[float, int]:
    """Compute the requests a second that the most expensive stitch answers in torch, and its id."""
    torch.set_num_threads(1)
    model = timm.create_model(f"local-dir:{network}", pretrained=True).eval()
    rows = latency_rows(model, ServingConfig(min(options.latency_ms)))
    table = LatencyTable(rows)
    macs = {row["stitch_id"]: row["macs"] for row in rows}
    largest = max(table.stitch_ids, key=lambda k: macs[k])
    return 1 / (table.each[table.stitch_ids.index(largest)] * options.count), largest


def wait_for_engine(url: str, engine: str) -> float:
    """Wait until an engine has taken over; returns the seconds."""
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE:
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            if f'timm_stitch_backend{{engine="{engine}"' in answer.read().decode():
                return time.monotonic() - began
        time.sleep(0.2)
    raise RuntimeError(f"{engine} has not taken over within {PATIENCE:.0f} s: see the server's log.")


def compare(options: argparse.Namespace) -> list[Row]:
    """Load all servers in turns at ever higher rates."""
    runs: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = prepare(options, folder)
        full, largest = capacity_in_torch(network, options)
        print(f"stitch {largest} answers {full:.1f} requests of {options.count} images a second in torch", flush=True)
        for latency_ms in options.latency_ms:
            servers: dict[str, Any] = {}
            for policy in options.policies:
                for pair in options.servers:
                    engine, precision = pair.split(":")
                    fixed = {"policy": "fixed", "stitch_id": largest} if policy == "fixed" else {}
                    config = ServingConfig(latency_ms, engine=engine, precision=precision, **fixed)
                    name, began = f"{policy} {pair}", time.monotonic()
                    servers[name] = start_server(network, config, folder / "calls.json")
                    started = time.monotonic() - began
                    ready = wait_for_engine(servers[name].url, engine)
                    start = {"first_answer_s": started, "engine_serves_s": started + ready}
                    memory = memory_mb("RssAnon", servers[name].process.pid)
                    print_row({"server": name, "latency_ms": latency_ms, **start, "anonymous_mb": memory}, options.rows)
            hopeless: set[tuple[str, int]] = set()
            for share in options.shares:
                for seed in range(options.seeds):
                    arrivals, names = gamma_arrivals(share * full, options.seconds, 1.0, seed), list(servers)
                    turn = seed % len(names)
                    for name in names[turn:] + names[:turn]:
                        if (name, seed) in hopeless:
                            continue
                        answers = send_requests(servers[name].url, folder / "images.npz", arrivals, count=options.count)
                        summary = summarize(answers, servers[name].promise)
                        run = {"server": name, "latency_ms": latency_ms, "share": share, "rate": share * full}
                        runs.append({**run, "seed": seed, **summary})
                        print_row(runs[-1], options.rows)
                        if summary["attainment"] < HOPELESS:
                            hopeless.add((name, seed))
            for server in servers.values():
                server.stop()
    return runs


def capacity(runs: list[Row], seeds: int) -> float:
    """Find the highest rate up to which requests are answered in time, over all seeds; 0 if there is none."""
    highest = 0.0
    for rate in sorted({run["rate"] for run in runs}):
        each = [run["attainment"] for run in runs if run["rate"] == rate]
        if len(each) < seeds or statistics.fmean(each) < IN_TIME:
            break
        highest = rate
    return highest


def report(runs: list[Row], seeds: int) -> None:
    """Print the capacities, and their ratios to torch in float32."""
    print(f"\ncapacity at {IN_TIME:g} % in time, requests a second (× torch:fp32)")
    for latency_ms in dict.fromkeys(run["latency_ms"] for run in runs):
        of = {
            name: capacity([r for r in runs if (r["server"], r["latency_ms"]) == (name, latency_ms)], seeds)
            for name in dict.fromkeys(run["server"] for run in runs)
        }
        for name, rate in of.items():
            torch_rate = of.get(f"{name.split()[0]} torch:fp32", 0.0)
            ratio = f" ({rate / torch_rate:.2f} ×)" if torch_rate else ""
            print(f"{latency_ms:6g} ms  {name:24} {rate:8.1f}{ratio}")


def main() -> None:
    """Compare the engines, and print their capacities."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file for the rows")
    parser.add_argument(
        "--network", default="quickstart-output/snnet", help="folder of a network, or a registered name"
    )
    parser.add_argument(
        "--servers", nargs="+",
        default=["torch:fp32", "torch:bf16", "openvino:fp32", "openvino:bf16", "onnxruntime:fp32"],
        help="engines with their precisions",
    )  # fmt: skip
    parser.add_argument("--policies", nargs="+", default=["fixed", "drain"], help="policies of the servers")
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[50.0, 100.0], help="latency targets in ms")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=[0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 1.7, 2.0, 2.5, 3.0, 4.0],
        help="rates, as shares of what torch answers by its table",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=COUNT, help="images per request")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a run")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    options = parser.parse_args()
    report(compare(options), options.seeds)


if __name__ == "__main__":
    main()
