"""A client that sends requests when they are due, whatever became of those before: `serving.py` runs it as a process.

    python benchmarks/serving/open_loop.py plan.json results.json

The plan is JSON: `url`, `model`, `arrivals` (seconds from the start), `images` (an .npz with `images` of shape
(M, C, H, W) and `labels`), `count` (images of a request), `bad` and `hang_up` (shares of requests with damaged files,
and of clients that do not wait for the answer). Latency counts from when a request was due. The results are a row a
request: `due`, `latency`, `status` (0: none came within `patience`), `stitch_id`, `right` (of its images), `late`; and
where the time went: until it was `sent`, in the `server`, and of that until its turn (`waited`) and in the `call`; in
seconds.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import uvloop

BODIES = 200  # different requests


def requests_of(plan: dict, images: np.ndarray) -> list[tuple[bytes, list[int]]]:
    """Requests as they go over the wire, and which images each holds."""
    draw, path, found = random.Random(0), f"/v2/models/{plan['model']}/infer", []
    for _ in range(BODIES):
        picked = draw.sample(range(len(images)), plan["count"])
        data = np.ascontiguousarray(images[picked], dtype="<f4").tobytes()
        tensor = {"name": "image", "datatype": "FP32", "shape": [plan["count"], *images.shape[1:]]}
        tensor["parameters"] = {"binary_data_size": len(data)}
        wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: {len(head)}\r\n"
        lines += f"Content-Length: {len(head) + len(data)}\r\n\r\n"
        found.append((lines.encode() + head + data, picked))
    return found


BAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nno image"


async def answer(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Status, length of the JSON and body of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(lines["content-length"]))
    return int(head.split()[1]), int(lines.get("inference-header-content-length", len(body))), body


async def run(plan: dict) -> list[dict]:
    """Send all, and wait for the answers."""
    data, where = np.load(plan["images"]), urlsplit(plan["url"])
    prepared, draw = requests_of(plan, data["images"]), random.Random(plan.get("seed", 0))
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    rows: list[dict] = []
    raw: list[tuple[dict, int, bytes, list[int]]] = []

    async def one(due: float, sent: bytes, picked: list[int], hangs_up: bool) -> None:
        row = {"due": due, "status": 0, "latency": None, "stitch_id": None, "right": 0, "late": False}
        row["kind"] = "bad" if sent is BAD else "hang_up" if hangs_up else "plain"
        rows.append(row)
        while row["latency"] is None:
            kept = bool(idle)
            try:
                reader, writer = idle.pop() if kept else await asyncio.open_connection(where.hostname, where.port)
                row["sent"] = time.monotonic() - due
                writer.write(sent)
                if hangs_up:
                    await asyncio.sleep(draw.random() * 0.02)
                    writer.close()
                    return
                status, length, body = await asyncio.wait_for(answer(reader), plan.get("patience", 30))
                row |= {"status": status, "latency": time.monotonic() - due}
                if status >= 500:
                    row["error"] = json.loads(body)["error"]
                if status == 200:
                    raw.append((row, length, body, picked))
                idle.append((reader, writer))
            except (OSError, asyncio.TimeoutError, asyncio.IncompleteReadError):
                if not kept:  # else the server had closed it while it was idle: again on another, as all clients do
                    row["latency"] = time.monotonic() - due

    start = time.monotonic() + 0.2
    waiting = set()
    for number, at in enumerate(plan["arrivals"]):
        delay = start + at - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        sent, picked = prepared[number % BODIES]
        chance = draw.random()
        bad, hangs_up = chance < plan.get("bad", 0), 0 <= chance - plan.get("bad", 0) < plan.get("hang_up", 0)
        task = asyncio.create_task(one(start + at, BAD if bad else sent, picked, hangs_up))
        waiting.add(task)
        task.add_done_callback(waiting.discard)
    while waiting:
        await asyncio.sleep(0.01)
    for row, length, body, picked in raw:
        said = json.loads(body[:length])
        logits = np.frombuffer(body[length:], "<f4").reshape(len(picked), -1)
        said = said["parameters"]
        row |= {"stitch_id": said["stitch_id"], "late": said["late"], "server": said["latency_ms"] / 1e3}
        row |= {"waited": said["waited_ms"] / 1e3, "call": said["call_ms"] / 1e3}
        row["right"] = int((logits.argmax(1) == data["labels"][picked]).sum())
    return rows


if __name__ == "__main__":
    plan = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps(uvloop.run(run(plan))))
