"""How many image files a second does the server answer, against another version of it?

    git worktree add ../before v0.1.0
    python benchmarks/serving/image_files.py ../before

A tiny network, whose calls cost little beside the decoding of images, is served by each version in a process of its
own. JPEG files of each size are sent over `--clients` connections, for `--seconds` at a time to one version and then to
the other, in another order each round. Prints the requests a second of each (minimum, median and maximum) and the
quartiles of the ratios of neighbours.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import timm
import torch
from open_loop import read_answer
from PIL import Image

import timm_stitch

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare, spread, time_in_turns

VIT = {"architecture": "vit_tiny_patch16_224", "num_heads": 2, "depth": 2, "img_size": 32, "patch_size": 8}


def save_network(folder: Path) -> None:
    """Save a tiny network with accuracies."""
    torch.manual_seed(0)
    network = timm.create_model("snnet", anchors=[{**VIT, "embed_dim": w, "num_classes": 10} for w in (32, 64)])
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in range(network.num_stitches)]
    timm_stitch.save_pretrained(network, folder, results=rows)


def start(checkout: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Serve by the package of a checkout; returns the process and the server's address."""
    command = [sys.executable, "-W", "ignore", "-m", "timm_stitch", "serve", str(folder), "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--latency-ms", "5000", "--threads", "1"], cwd=checkout, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve()), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    return process, json.loads(process.stdout.readline())["url"]


def jpeg(side: int) -> bytes:
    """Write a JPEG of noise."""
    stream = io.BytesIO()
    Image.effect_noise((side, side), 60).convert("RGB").save(stream, "JPEG")
    return stream.getvalue()


async def requests_per_second(url: str, file: bytes, clients: int, seconds: float) -> float:
    """Send a file over and over on each of some connections."""
    where, answered = urlsplit(url), 0
    request = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: {len(file)}\r\n\r\n".encode() + file
    began = time.perf_counter()

    async def send() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        while time.perf_counter() < began + seconds:
            writer.write(request)
            status, _, body = await read_answer(reader)
            assert status == 200, body
            answered += 1
        writer.close()

    await asyncio.gather(*(send() for _ in range(clients)))
    return answered / (time.perf_counter() - began)


def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("theirs", type=Path, help="root of the other checkout")
    parser.add_argument("--ours", type=Path, default=Path(__file__).parents[2], help="root of this checkout")
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 256, 1024], help="sides of the images in pixels")
    parser.add_argument("--clients", type=int, default=8, help="connections at a time")
    parser.add_argument("--seconds", type=float, default=2.0, help="duration of a turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each version")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        save_network(Path(scratch, "net"))
        servers = {name: start(getattr(options, name), Path(scratch, "net")) for name in ("ours", "theirs")}
        for side in options.sides:
            rates: dict[str, list[float]] = {name: [] for name in servers}
            file = jpeg(side)

            def measure(name: str, file: bytes = file, rates: dict[str, list[float]] = rates) -> None:
                rate = requests_per_second(servers[name][1], file, options.clients, options.seconds)
                rates[name].append(asyncio.run(rate))

            turns = {name: (lambda name=name, measure=measure: measure(name)) for name in servers}
            time_in_turns(turns, options.rounds)
            row: dict[str, object] = {"side": side, "bytes": len(file)}
            row |= {f"{name}_per_s": spread(values[1:], 0) for name, values in rates.items()}
            print_row(row | {"quartiles_of_ratio": compare(rates["ours"][1:], rates["theirs"][1:]).as_list()})
        for process, _ in servers.values():
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
