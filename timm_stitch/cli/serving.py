"""`serve`: a network that answers requests within a promise."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..deployment.serving.latencies import known_rows
from ..deployment.serving.promise import POLICIES, Promise
from ..deployment.serving.scale import Scale, held, serve_config
from ..errors import library_errors
from ..files import whole_file
from .options import add_model, add_verb, load_model, set_threads

if TYPE_CHECKING:
    from .options import Verbs

_OF_RAY = ("replicas", "min-replicas", "max-replicas", "num-cpus", "num-gpus", "ray-address")


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
    verb.add_argument("--policy", choices=POLICIES, default="drain", help="default: drain")
    verb.add_argument("--stitch-id", type=int, help="of --policy fixed; default the dearest within the promise")
    verb.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine alone")
    verb.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    verb.add_argument("--max-queue", type=int, default=1000, help="images that may wait (default: 1000)")
    verb.add_argument("--max-body-mb", type=float, default=16, help="of a request (default: 16)")
    verb.add_argument("--max-pixels", type=int, default=50_000_000, help="of an image (default: 50 million)")
    verb.add_argument("--threads", type=int, help="of the network on a CPU; default one fewer than there are cores")
    ray = verb.add_argument_group("replicas, by Ray Serve")
    ray.add_argument("--ray", action="store_true", help="serve by replicas, here or on a cluster")
    ray.add_argument("--replicas", type=int, help="a fixed number (default: 1)")
    ray.add_argument("--min-replicas", type=int, help="the fewest, where their number follows the load (default: 1)")
    ray.add_argument("--max-replicas", type=int, help="the most, where their number follows the load")
    ray.add_argument("--num-cpus", type=float, help="of a replica, by Ray's count (default: 1)")
    ray.add_argument("--num-gpus", type=float, help="of a replica, or a part of one (default: 1 with --device cuda)")
    ray.add_argument("--ray-address", help="of a cluster to join (default: Ray is started, for this machine alone)")
    ray.add_argument("--ray-config", metavar="FILE", help="write a Serve config for a cluster instead of serving")


def run_serve(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    promise = Promise(
        options.latency_ms, options.reserve_ms, options.policy, options.stitch_id, options.max_queue, options.max_pixels
    )
    if options.ray or options.ray_config:
        return _run_replicas(options, promise)
    given = [name for name in _OF_RAY if getattr(options, name.replace("-", "_")) is not None]
    if given:
        raise ValueError(f"--{given[0]} is for replicas: add --ray.")
    try:
        from ..deployment.serving.server import NetworkServer
    except ImportError as error:
        raise ImportError(f"serving needs {error.name}: pip install 'timm_stitch[serve]'.") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_threads(options.threads, default=max(1, cores - 1))
    server = NetworkServer(
        lambda: load_model(options, "serve"), promise, name=Path(options.model[0]).name, host=options.host,
        port=options.port, most_bytes=_most_bytes(options),
    )  # fmt: skip
    service = server.service
    told = {"url": server.address, "name": service.name, "stitch_ids": service.table.stitch_ids}
    return server.run(lambda: _say(options, told, f"{len(service.table)} stitches"))


def _run_replicas(options: argparse.Namespace, promise: Promise) -> int:
    """Serve by Ray until a signal, or write how."""
    try:
        from ..deployment.serving.ray_serve import RayServer
        from ..deployment.serving.server import listen, plain_name
    except ImportError as error:
        raise ImportError(f"serving by replicas needs {error.name}: pip install 'timm_stitch[ray]'.") from error
    scale = _scale(options)
    here = argparse.Namespace(**{**vars(options), "device": "cpu"})
    rows = known_rows(load_model(here, "serve"), promise)  # what is wrong with a network shows before Ray starts
    port = options.port
    if not (options.ray_config or options.ray_address):
        with listen(options.host, port) as free:
            port = free.getsockname()[1]
    config = serve_config(
        [os.path.abspath(name) if os.path.isdir(name) else name for name in options.model], promise, scale,
        None if scale.least == scale.most else held(rows, promise),
        name=plain_name(Path(options.model[0]).name), host=options.host, port=port,
        everywhere=bool(options.ray_config), device=options.device, num_classes=options.num_classes,
        most_bytes=_most_bytes(options), threads=options.threads,
    )  # fmt: skip
    if options.ray_config:
        with whole_file(options.ray_config) as beside:
            beside.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        print(f"{options.ray_config} is written: serve run {options.ray_config}, or serve deploy {options.ray_config}")
        return 0
    with library_errors("Ray starts no replica", RuntimeError):
        server = RayServer(config, options.ray_address)
    count = f"{scale.least}" if scale.least == scale.most else f"{scale.least} to {scale.most}"
    _say(options, {"url": server.address, "name": config["applications"][0]["name"]}, f"{count} replicas")
    return server.run()


def _scale(options: argparse.Namespace) -> Scale:
    """How many replicas, and what each gets.

    Raises:
        ValueError: if a fixed number and one that follows the load are given.
    """
    follows = options.min_replicas is not None or options.max_replicas is not None
    if follows and options.replicas is not None:
        raise ValueError("give --replicas, or --min-replicas and --max-replicas, not both.")
    if options.min_replicas is not None and options.max_replicas is None:
        raise ValueError("--min-replicas needs --max-replicas, up to which their number follows the load.")
    least = options.min_replicas if follows else options.replicas
    least = 1 if least is None else least
    cpus = 1.0 if options.num_cpus is None else options.num_cpus
    gpus = float(options.device != "cpu") if options.num_gpus is None else options.num_gpus
    return Scale(least, options.max_replicas if follows else least, cpus, gpus)


def _most_bytes(options: argparse.Namespace) -> int:
    return int(options.max_body_mb * (1 << 20))


def _say(options: argparse.Namespace, told: Mapping[str, Any], what: str) -> None:
    """Say where a server is."""
    if options.json:
        print(json.dumps(told), flush=True)
        return
    print(
        f"{told['name']} at {told['url']}: {what} within {options.latency_ms:g} ms\n"
        f"  curl --data-binary @cat.jpg {told['url']}/predict", flush=True,
    )  # fmt: skip
