"""`serve`: a network that answers requests within a promise. Imports the layers below."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .options import add_model, add_verb, load_model

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `serve` to the command line."""
    verb = add_verb(
        verbs,
        "serve",
        run_serve,
        "answer requests within a promise: the stitch of each is chosen by what waits",
        "serve net --latency-ms 50",
    )
    add_model(verb)
    verb.add_argument("--latency-ms", type=float, required=True, help="the promise, from a request to its answer")
    verb.add_argument("--reserve-ms", type=float, help="of it, for what is not the network (default: a tenth)")
    verb.add_argument("--policy", choices=("drain", "fixed"), default="drain", help="default: drain")
    verb.add_argument("--stitch-id", type=int, help="of --policy fixed; default the dearest within the promise")
    verb.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    verb.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    verb.add_argument("--max-queue", type=int, default=1000, help="images that may wait (default: 1000)")
    verb.add_argument("--max-body-mb", type=float, default=16, help="of a request (default: 16)")
    verb.add_argument("--max-pixels", type=int, default=50_000_000, help="of an image (default: 50 million)")
    verb.add_argument("--threads", type=int, help="of the network on a CPU; default one fewer than there are cores")


def run_serve(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    try:
        from ..deployment.serving.server import NetworkServer
    except ImportError as error:
        raise ImportError(f"serving needs {error.name}: pip install 'timm_stitch[serve]'.") from error
    from ..deployment.serving.promise import Promise

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(options.threads or max(1, cores - 1))
    promise = Promise(
        options.latency_ms, options.reserve_ms, options.policy, options.stitch_id, options.max_queue, options.max_pixels
    )
    server = NetworkServer(
        lambda: load_model(options), promise, name=Path(options.model[0]).name, host=options.host, port=options.port,
        most_bytes=int(options.max_body_mb * (1 << 20)),
    )  # fmt: skip
    service = server.service
    if options.json:
        print(
            json.dumps({"url": server.address, "name": service.name, "stitch_ids": service.table.stitch_ids}),
            flush=True,
        )
    else:
        print(
            f"{service.name} at {server.address}: {len(service.table)} stitches within {options.latency_ms:g} ms\n"
            f"  curl --data-binary @cat.jpg {server.address}/predict", flush=True,
        )  # fmt: skip
    return server.run()
