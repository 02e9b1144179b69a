"""How fast are photos decoded for a network, by which way, and does the server answer others meanwhile?

    python benchmarks/serving/decoding.py rows.jsonl

Photos of 12 and 2 megapixels and of 224 pixels, as JPEG of quality 92, become the input of a network of 224 pixels.
First the steps in one thread, in processor milliseconds: decoding by Pillow, by Pillow's `draft` (at a fraction of the
size, if that is at least twice what the network takes) and by simplejpeg, resizing, and the copies of a whole image
from one process to another. `draft` changes the result, and the row says by how much. Then the server's reader as a
whole, in turns: resizing in the process that decodes, and after it. Last the time of `GET /health` while clients send
photos of 12 megapixels, beside an idle server.
"""

from __future__ import annotations

import asyncio
import importlib.util
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from image_files import requests_per_second, save_network, start
from open_loop import read_answer
from PIL import Image
from timm.data import create_transform

from timm_stitch.deployment.serving.decoder import Decoder
from timm_stitch.deployment.serving.image_reader import ImageReader
from timm_stitch.deployment.serving.network import first_resize

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser, print_row
from measuring import compare, medians, time_in_turns

SIZES = ((4032, 3024), (1600, 1200), (224, 224))
PIXELS = 50_000_000


def photo(width: int, height: int) -> bytes:
    """Make a JPEG with smooth shapes and some noise, as large for its pixels as a camera's."""
    draw = np.random.default_rng(0)
    shapes = np.clip(draw.normal(128, 60, (64, 86, 3)), 0, 255).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    noise = np.asarray(Image.effect_noise((width // 2, height // 2), 12).resize((width, height))).astype(np.int16) - 128
    stream = io.BytesIO()
    Image.fromarray(np.clip(smooth + noise[..., None], 0, 255).astype(np.uint8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def steps(data: bytes, rounds: int) -> dict[str, object]:
    """Time the steps of preparing a photo in this thread."""
    transform = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.9)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    pixels, small = whole.tobytes(), transform.transforms[0](whole)

    def draft() -> Image.Image:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (2 * small.width, 2 * small.height))
        return image.convert("RGB")

    drafted = draft()
    calls: dict[str, Callable[[], object]] = {
        "Pillow": lambda: Image.open(io.BytesIO(data)).load(),
        "draft": draft,
        "resize": lambda: transform.transforms[0](whole),
        "resize after draft": lambda: transform.transforms[0](drafted),
        "crop, normalize": lambda: transform(small),
        "copy out": whole.tobytes,
        "copy in": lambda: Image.frombytes("RGB", whole.size, bytes(pixels)),
    }
    if importlib.util.find_spec("simplejpeg"):
        decode = importlib.import_module("simplejpeg").decode_jpeg
        calls["simplejpeg"] = lambda: decode(data)
    times = medians(time_in_turns(calls, rounds, clock=time.thread_time))
    scale = 255 * transform.transforms[-1].std.view(3, 1, 1)
    differences = ((transform(drafted) - transform(whole)) * scale).abs()
    return {
        "cpu_ms": {name: round(value, 2) for name, value in times.items()},
        "draft_differs_by_of_255": {"largest": round(float(differences.max()), 1), "mean": float(differences.mean())},
    }


def reader(data: bytes, rounds: int, processes: int) -> dict[str, object]:
    """Time the server's reader: photos a second with several at a time, and the time of one in a process."""
    transform = create_transform((3, 224, 224), interpolation="bicubic", crop_pct=0.9)
    resize, count = first_resize(transform), 4 * processes
    images, decoder = ImageReader(PIXELS, 1000, processes), Decoder(PIXELS)

    def many(step: object) -> None:
        futures = [images.read_soon([data], "RGB", transform, time.monotonic() + 60, step) for _ in range(count)]
        for future in futures:
            future.result()

    def one(step: object) -> None:
        transform(decoder.decode(data, "RGB", PIXELS, PIXELS, time.monotonic() + 60, step)[0])

    row: dict[str, object] = {"processes": processes}
    for name, call in (("one", one), ("many", many)):
        times = time_in_turns({"there": partial(call, resize), "after": partial(call, None)}, rounds)
        per_s = {where: round((count if name == "many" else 1) * 1e3 / ms, 1) for where, ms in medians(times).items()}
        row[f"{name}_at_a_time_per_s"] = per_s
        row[f"{name}_there_over_after"] = compare(times["there"], times["after"]).as_list()
    images.close()
    decoder.close()
    return row


async def health_ms(url: str, seconds: float) -> list[float]:
    """Time `GET /health` every five milliseconds on one connection."""
    where, times = urlsplit(url), []
    reader_, writer = await asyncio.open_connection(where.hostname, where.port)
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        began = time.perf_counter()
        writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        await read_answer(reader_)
        times.append(1e3 * (time.perf_counter() - began))
        await asyncio.sleep(0.005)
    writer.close()
    return times


async def lag(url: str, data: bytes, clients: int, seconds: float) -> dict[str, object]:
    """Time `GET /health` of an idle server, and while clients send photos to it."""
    idle = await health_ms(url, seconds)
    rate, busy = await asyncio.gather(requests_per_second(url, data, clients, seconds), health_ms(url, seconds))
    row: dict[str, object] = {"photos_per_s": round(rate, 1)}
    for name, times in (("idle", idle), ("busy", busy)):
        ordered = sorted(times)
        row[f"{name}_ms"] = {
            "p50": round(statistics.median(ordered), 2),
            "p99": round(ordered[-len(ordered) // 100], 2),
        }
    return row


def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each step")
    parser.add_argument("--processes", type=int, default=2, help="processes of the reader")
    parser.add_argument("--clients", type=int, default=4, help="clients that send photos")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement of the server")
    options = parser.parse_args()
    torch.set_num_threads(1)
    photos = {size: photo(*size) for size in SIZES}
    for (width, height), data in photos.items():
        row = {"size": [width, height], "bytes": len(data), **steps(data, options.rounds)}
        print_row(row | reader(data, options.rounds, options.processes), options.rows)
    with tempfile.TemporaryDirectory() as scratch:
        save_network(Path(scratch, "net"))
        process, url = start(Path(__file__).parents[2], Path(scratch, "net"))
        try:
            print_row({"lag": asyncio.run(lag(url, photos[SIZES[0]], options.clients, options.seconds))}, options.rows)
        finally:
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()
