"""How does a server answer requests that come when they are due? The client that `serving.py` runs as a process.

    python benchmarks/serving/open_loop.py plan.json results.json

Requests are sent whatever became of those before. The plan is JSON: `url`, `model`, `arrivals` (seconds from the
start), `images` (an .npz with `images` of shape (M, C, H, W) and `labels`), `count` (images of a request), `bad` and
`hang_up` (shares of requests with damaged files, and of clients that do not wait for the answer). Latency counts from
when a request was due. The results are a row a request: `due`, `latency`, `status` (0: none came within `patience`),
`stitch_id`, `right` (correct answers for its images), `late`; and where the time went, in seconds: until it was `sent`,
in the `server`, and of that until its turn (`waited`) and in the `call`.
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

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser

BODIES = 200  # different requests


def make_requests(plan: dict, images: np.ndarray) -> list[tuple[bytes, list[int]]]:
    """Make requests as they go over the wire, each with the numbers of its images."""
    draw, path, requests = random.Random(0), f"/v2/models/{plan['model']}/infer", []
    for _ in range(BODIES):
        picked = draw.sample(range(len(images)), plan["count"])
        data = np.ascontiguousarray(images[picked], dtype="<f4").tobytes()
        tensor = {"name": "image", "datatype": "FP32", "shape": [plan["count"], *images.shape[1:]]}
        tensor["parameters"] = {"binary_data_size": len(data)}
        wanted = [{"name": "logits", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        lines = f"POST {path} HTTP/1.1\r\nHost: a\r\nInference-Header-Content-Length: {len(head)}\r\n"
        lines += f"Content-Length: {len(head) + len(data)}\r\n\r\n"
        requests.append((lines.encode() + head + data, picked))
    return requests


BAD = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\nno image"


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, int, bytes]:
    """Read an answer: its status, the length of its JSON, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    lines = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
    body = await reader.readexactly(int(lines["content-length"]))
    return int(head.split()[1]), int(lines.get("inference-header-content-length", len(body))), body


async def run(plan: dict) -> list[dict]:
    """Send all, and wait for the answers."""
    data, where = np.load(plan["images"]), urlsplit(plan["url"])
    prepared, draw = make_requests(plan, data["images"]), random.Random(plan.get("seed", 0))
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
                status, length, body = await asyncio.wait_for(read_answer(reader), plan.get("patience", 30))
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
        head = json.loads(body[:length])
        logits = np.frombuffer(body[length:], "<f4").reshape(len(picked), -1)
        parameters = head["parameters"]
        row |= {
            "stitch_id": parameters["stitch_id"],
            "late": parameters["late"],
            "server": parameters["latency_ms"] / 1e3,
        }
        row |= {"waited": parameters["waited_ms"] / 1e3, "call": parameters["call_ms"] / 1e3}
        row["right"] = int((logits.argmax(1) == data["labels"][picked]).sum())
    return rows


def main() -> None:
    """Send the requests of a plan, and write the answers down."""
    parser = make_parser(__doc__)
    parser.add_argument("plan", type=Path, help="JSON file of the plan")
    parser.add_argument("results", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows = uvloop.run(run(json.loads(options.plan.read_text())))
    options.results.write_text(json.dumps(rows))
    print(json.dumps({"requests": len(rows)}))


if __name__ == "__main__":
    main()
