"""Does every answer of a server equal torch's logits while its network is reloaded? Clients check each one.

    python benchmarks/robustness/reloads.py --engine openvino
    python benchmarks/robustness/reloads.py --engine torch --calls 10000 --reloads 10

A folder is served by `timm-stitch serve`. Threads send one to four prepared images by the Open Inference Protocol, half
of the requests with a stitch of their own. Meanwhile the folder gets the weights of two networks in turns, with SIGHUP
after each: every other time while the engine is still compiling. An answer must equal the logits of the stitch that it
names, in one of the two networks; after a reload the former network may answer only requests that were sent before it.
Prints one row, and exits with 1 if an answer was wrong.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import timm_stitch
from timm_stitch.deployment.serving.backends.compiled import BOUNDS

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row

PATIENCE = 600.0  # seconds that an engine may take
IMAGES = 16  # different ones
PAUSE = 0.05  # mean seconds between requests of one client, so that the engine can compile


def make_network(seed: int, folder: Path) -> Any:
    """Save a small network with random weights and made-up accuracies, for the policy to choose by."""
    torch.manual_seed(seed)
    size = {"img_size": 64, "patch_size": 16, "depth": 6, "num_classes": 10}
    anchors = [timm.create_model("vit_tiny_patch16_224", embed_dim=w, num_heads=2, **size) for w in (32, 64)]
    model = timm_stitch.stitch(anchors).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    order = sorted(model.stitch_table(), key=lambda row: row["macs"])
    model.results.add({"stitch_id": row["stitch_id"], "top1": 50 + n} for n, row in enumerate(order))
    timm_stitch.save_pretrained(model, folder)
    return model


class Server:
    """A server in a process of its own, and the lines that it logs.

    Args:
        folder: the network.
        more: further arguments of `serve`.
    """

    def __init__(self, folder: Path, more: list[str]) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
        self.process = subprocess.Popen(
            [*command, "--latency-ms", "5000", "--threads", "1", *more],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.lines: list[str] = []
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or []), daemon=True).start()
        description = json.loads(self.process.stdout.readline())
        self.url, self.name = description["url"], description["name"]

    def engine(self) -> str:
        """Read from the metrics which engine answers."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            text = answer.read().decode()
        return text.partition('timm_stitch_backend{engine="')[2].partition('"')[0]

    def reload(self) -> None:
        """Have the network reloaded, and wait until it is."""
        count = self.count_reloads()
        self.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + PATIENCE
        while self.count_reloads() == count:
            if time.monotonic() > until or any("was not replaced" in line for line in self.lines):
                raise RuntimeError(f"the network was not reloaded: {self.lines[-1:]}")
            time.sleep(0.02)

    def count_reloads(self) -> int:
        """Count the reloads by the log."""
        return sum("was reloaded" in line for line in self.lines)


class Check:
    """What clients saw.

    Args:
        server: the server.
        networks: the two networks in turns.
        bound: the largest difference of a logit, over the largest logit or 1.
    """

    def __init__(self, server: Server, networks: list[Any], bound: float) -> None:
        self.server, self.bound = server, bound
        self.images = np.random.default_rng(0).standard_normal((IMAGES, 3, 64, 64), dtype=np.float32)
        self.stitches = networks[0].num_stitches
        with torch.inference_mode():
            x = torch.from_numpy(self.images)
            self.expected = [[net(x, stitch_id=k).numpy() for k in range(self.stitches)] for net in networks]
        self.serving = 0  # the network that answers requests sent from now on
        self.changing = False  # then either may answer
        self.counts: Counter[str] = Counter()
        self.engines: Counter[str] = Counter()
        self.largest = 0.0
        self.ended = threading.Event()
        self.lock = threading.Lock()

    def ask(self, connection: http.client.HTTPConnection, draw: random.Random) -> None:
        """Send one request and check its answer."""
        picked = [draw.randrange(IMAGES) for _ in range(draw.randint(1, 4))]
        data = self.images[picked].astype("<f4").tobytes()
        tensor: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [len(picked), 3, 64, 64]}
        tensor["parameters"] = {"binary_data_size": len(data)}
        chosen = draw.randrange(self.stitches) if draw.random() < 0.5 else None
        content: dict[str, Any] = {"inputs": [tensor], "parameters": {} if chosen is None else {"stitch_id": chosen}}
        head = json.dumps(content).encode()
        allowed, was_changing = {self.serving}, self.changing
        connection.request(
            "POST", f"/v2/models/{self.server.name}/infer", head + data, {"inference-header-content-length": len(head)}
        )
        answer = connection.getresponse()
        body = answer.read()
        if was_changing or self.changing:
            allowed = {0, 1}
        allowed.add(self.serving)
        with self.lock:
            self.counts[f"status {answer.status}"] += 1
            if answer.status != 200:
                return
            content = json.loads(body)
            parameters, output = content["parameters"], content["outputs"][0]
            logits = np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])
            stitch_id = parameters["stitch_id"]
            self.engines[parameters["engine"]] += 1
            away = {n: self.difference(logits, self.expected[n][stitch_id][picked]) for n in allowed}
            self.largest = max(self.largest, min(min(away.values()), self.bound))
            right = min(away.values()) <= self.bound and (chosen is None or stitch_id == chosen)
            self.counts["right" if right else "wrong"] += 1

    @staticmethod
    def difference(logits: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
        """Compute the largest difference of a logit, over the largest logit or 1."""
        if logits.shape != expected.shape:
            return float("inf")
        return float(np.abs(logits - expected).max() / max(1.0, np.abs(expected).max()))

    def run_client(self, seed: int) -> None:
        """Send requests until the end."""
        draw, where = random.Random(seed), self.server.url.removeprefix("http://")
        connection = http.client.HTTPConnection(where, timeout=60)
        while not self.ended.wait(draw.expovariate(1 / PAUSE)):
            try:
                self.ask(connection, draw)
            except (OSError, http.client.HTTPException) as error:
                with self.lock:
                    self.counts[f"no answer: {type(error).__name__}"] += 1
                connection.close()


def main() -> int:
    """Serve, reload, and print what became of the answers."""
    parser = make_parser(__doc__)
    parser.add_argument("--engine", default="openvino", help="the engine")
    parser.add_argument("--precision", default="fp32", help="the precision")
    parser.add_argument("--calls", type=int, default=10_000, help="least number of requests")
    parser.add_argument("--reloads", type=int, default=10, help="number of reloads")
    parser.add_argument("--clients", type=int, default=8, help="number of clients")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch, name) for name in ("first", "second")]
        networks = [make_network(seed, folder) for seed, folder in enumerate(folders)]
        served = Path(scratch, "net")
        shutil.copytree(folders[0], served)
        server = Server(served, ["--engine", options.engine, "--precision", options.precision])
        check = Check(server, networks, BOUNDS[options.precision])
        clients = [threading.Thread(target=check.run_client, args=(n,)) for n in range(options.clients)]
        began = time.monotonic()
        for client in clients:
            client.start()
        try:
            for number in range(options.reloads):
                until = time.monotonic() + (PATIENCE if number % 2 == 0 else 3.0)
                while server.engine() != options.engine and time.monotonic() < until:
                    time.sleep(0.2)
                time.sleep(1)
                check.changing = True
                shutil.rmtree(served)
                shutil.copytree(folders[(number + 1) % 2], served)
                server.reload()
                check.serving = (number + 1) % 2
                time.sleep(0.5)  # for requests that were sent before
                check.changing = False
            while sum(n for name, n in check.counts.items() if name.startswith("status")) < options.calls:
                time.sleep(0.1)
        finally:
            check.ended.set()
            for client in clients:
                client.join()
            server.process.terminate()
            server.process.wait()
    print_row(
        {
            "engine": options.engine, "precision": options.precision, "reloads": server.count_reloads(),
            **check.counts, "engines": check.engines, "largest_difference": check.largest, "bound": check.bound,
            "seconds": round(time.monotonic() - began),
        }
    )  # fmt: skip
    return int(not check.counts.keys() <= {"status 200", "right"})


if __name__ == "__main__":
    sys.exit(main())
