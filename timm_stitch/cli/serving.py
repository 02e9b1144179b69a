"""`serve`: a network that answers requests within a latency target."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import ENGINES, POLICIES, POOLINGS, SERVED_PRECISIONS
from ..deployment.serving.config import ServingConfig
from ..errors import library_errors, missing_extra
from ..files import whole_file
from .numbers import MOST_THREADS, in_range, positive
from .options import add_model, add_verb, load_model, print_json, set_threads

if TYPE_CHECKING:
    from ..deployment.serving.scale import Scale
    from .options import Verbs

_RAY_OPTIONS = ("replicas", "min-replicas", "max-replicas", "num-cpus", "num-gpus", "ray-address")


def add_verbs(verbs: Verbs) -> None:
    """Add `serve` to the command line."""
    verb = add_verb(
        verbs,
        "serve",
        run_serve,
        "answer requests within a latency target, each by a stitch chosen for the current load",
        "serve net --latency-ms 50",
    )
    add_model(verb)
    verb.add_argument(
        "--latency-ms", type=float, required=True, help="latency target, from a request to its answer, in milliseconds"
    )
    verb.add_argument(
        "--reserve-ms",
        type=float,
        action=in_range(0, 600_000),
        help="part of the latency target kept for work outside the network (default: a tenth)",
    )
    verb.add_argument("--policy", choices=POLICIES, default="drain", help="rule that chooses stitches (default: drain)")
    verb.add_argument(
        "--stitch-id",
        type=int,
        action=in_range(0),
        help="stitch of --policy fixed (default: the most expensive within the target)",
    )
    verb.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine alone)"
    )
    verb.add_argument("--port", type=int, default=8000, help="port to listen at; 0 takes a free one (default: 8000)")
    verb.add_argument(
        "--max-queue",
        type=int,
        action=in_range(1, 1_000_000),
        default=1000,
        help="images or texts that may wait (default: 1000)",
    )
    verb.add_argument("--max-body-mb", type=float, default=16, help="largest body of a request, in MiB (default: 16)")
    verb.add_argument(
        "--max-pixels",
        type=int,
        action=in_range(1, 1_000_000_000),
        default=50_000_000,
        help="most pixels of an image (default: 50 million)",
    )
    verb.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="name that leads to this server, such as that of a proxy; repeatable (default: any, or none if only this "
        "machine can reach it)",
    )
    verb.add_argument(
        "--threads",
        type=int,
        action=in_range(1, MOST_THREADS),
        help="CPU threads of the network (default: one fewer than there are cores)",
    )
    verb.add_argument(
        "--engine",
        choices=ENGINES,
        default="torch",
        help="what runs the stitches; torch answers until an engine is ready; cuda-graphs is for GPUs; auto: openvino "
        "if it is installed and faster (default: torch)",
    )
    verb.add_argument(
        "--most-memory-mb",
        type=float,
        action=positive(),
        help="most megabytes of compiled weights or CUDA graphs (default: any)",
    )
    verb.add_argument(
        "--precision",
        choices=SERVED_PRECISIONS,
        default="fp32",
        help="precision of the network's arithmetic; its agreement with fp32 is measured first; fp16 is for GPUs, "
        "int8 for openvino and onnxruntime (default: fp32)",
    )
    verb.add_argument(
        "--calibration",
        metavar="PATH",
        help="folder of images, or file with a text in each line, to measure the agreement of --precision on (default: "
        "noise); int8 needs images, and calibrates on half of them",
    )
    texts = verb.add_argument_group("networks of texts")
    texts.add_argument(
        "--max-length",
        type=int,
        action=in_range(1, 1_000_000),
        help="most tokens of a text (default: what the network takes, at most 512)",
    )
    texts.add_argument(
        "--max-characters",
        type=int,
        action=in_range(1, 100_000_000),
        default=20_000,
        help="most characters of a text (default: 20,000)",
    )
    texts.add_argument(
        "--pooling",
        choices=POOLINGS,
        default="mean",
        help="what makes one embedding of those of the tokens: their mean, the first or the last (default: mean)",
    )
    ray = verb.add_argument_group("replicas, by Ray Serve")
    ray.add_argument("--ray", action="store_true", help="serve by replicas, here or on a cluster")
    ray.add_argument("--replicas", type=int, action=in_range(1, 100_000), help="fixed number of replicas (default: 1)")
    ray.add_argument(
        "--min-replicas",
        type=int,
        action=in_range(1, 100_000),
        help="fewest replicas, if their number follows the load (default: 1)",
    )
    ray.add_argument(
        "--max-replicas", type=int, action=in_range(1, 100_000), help="most replicas, if their number follows the load"
    )
    ray.add_argument(
        "--num-cpus", type=float, action=in_range(0, 100_000), help="CPUs per replica, by Ray's count (default: 1)"
    )
    ray.add_argument(
        "--num-gpus",
        type=float,
        action=in_range(0, 100_000),
        help="GPUs per replica, or a fraction of one (default: 1 with --device cuda)",
    )
    ray.add_argument("--ray-address", help="address of a cluster to join (default: start Ray on this machine alone)")
    ray.add_argument("--ray-config", metavar="FILE", help="write a Serve config for a cluster instead of serving")


def run_serve(options: argparse.Namespace) -> int:
    """Serve until a signal."""
    serving = ServingConfig(
        options.latency_ms, options.reserve_ms, options.policy, options.stitch_id, options.max_queue,
        options.max_pixels, engine=options.engine, most_memory_mb=options.most_memory_mb, precision=options.precision,
        calibration=options.calibration, max_length=options.max_length, most_characters=options.max_characters,
        pooling=options.pooling, network=shlex.join(options.model),
    )  # fmt: skip
    most_bytes = _most_bytes(options)
    if options.ray or options.ray_config:
        if options.allowed_host:
            raise ValueError("--allowed-host is for one process: with --ray, name the hosts in the proxy before it.")
        return _run_replicas(options, serving)
    for name in _RAY_OPTIONS:
        if getattr(options, name.replace("-", "_")) is not None:
            raise ValueError(f"--{name} needs --ray: it is for replicas.")
    try:
        from ..deployment.serving.server import HttpServer
    except ImportError as error:
        raise missing_extra(f"serving needs {error.name}", "serve") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    set_threads(options.threads, default=max(1, cores - 1))
    server = HttpServer(
        lambda: load_model(options), serving, name=Path(options.model[0]).name, host=options.host,
        port=options.port, most_bytes=most_bytes, hosts=options.allowed_host,
    )  # fmt: skip
    service = server.service
    description = {"url": server.address, "name": service.name, "stitch_ids": service.table.stitch_ids}
    if service.kind == "texts":
        way = "-H 'content-type: text/plain' --data 'a text'"
    elif service.network.maps is None:
        way = "--data-binary @cat.jpg"
    else:
        way = "-H 'accept: image/png' -o map.png --data-binary @cat.jpg"
    return server.run(lambda: _announce(options, description, f"{len(service.table)} stitches", way))


def _run_replicas(options: argparse.Namespace, serving: ServingConfig) -> int:
    """Serve by Ray until a signal, or write its config file."""
    import yaml

    from ..deployment.serving.latencies import known_rows
    from ..deployment.serving.scale import serve_config, target_requests_per_replica

    try:
        from ..deployment.serving.ray_serve import RayServer
        from ..deployment.serving.server import listen, plain_name
    except ImportError as error:
        raise missing_extra(f"serving by replicas needs {error.name}", "ray") from error
    scale = _scale(options)
    here = argparse.Namespace(**{**vars(options), "device": "cpu"})
    rows = known_rows(load_model(here, "replicas"), serving)  # a faulty network shows before Ray starts
    port = options.port
    if not (options.ray_config or options.ray_address):
        with listen(options.host, port) as free:
            port = free.getsockname()[1]
    config = serve_config(
        [os.path.abspath(name) if os.path.isdir(name) else name for name in options.model], serving, scale,
        None if scale.least == scale.most else target_requests_per_replica(rows, serving),
        name=plain_name(Path(options.model[0]).name), host=options.host, port=port,
        everywhere=bool(options.ray_config), device=options.device, num_classes=options.num_classes,
        most_bytes=_most_bytes(options), threads=options.threads,
    )  # fmt: skip
    if options.ray_config:
        with whole_file(options.ray_config) as tmp_path:
            tmp_path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        if options.json:
            print_json({"path": str(options.ray_config)})
        else:
            print(f"{options.ray_config} is written: serve run {options.ray_config}, or deploy it by serve deploy")
        return 0
    with library_errors("Ray starts no replica", RuntimeError):
        server = RayServer(config, options.ray_address)
    count = f"{scale.least}" if scale.least == scale.most else f"{scale.least} to {scale.most}"
    _announce(options, {"url": server.address, "name": config["applications"][0]["name"]}, f"{count} replicas")
    return server.run()


def _scale(options: argparse.Namespace) -> Scale:
    """Read the number of replicas and their resources from the options.

    Raises:
        ValueError: if a fixed number and one that follows the load are both given.
    """
    from ..deployment.serving.scale import Scale

    follows = options.min_replicas is not None or options.max_replicas is not None
    if follows and options.replicas is not None:
        raise ValueError("give --replicas, or --min-replicas and --max-replicas, not both.")
    if options.min_replicas is not None and options.max_replicas is None:
        raise ValueError("--min-replicas needs --max-replicas, the upper end of a number that follows the load.")
    least = options.min_replicas if follows else options.replicas
    least = 1 if least is None else least
    cpus = 1.0 if options.num_cpus is None else options.num_cpus
    gpus = float(options.device != "cpu") if options.num_gpus is None else options.num_gpus
    return Scale(least, options.max_replicas if follows else least, cpus, gpus)


def _most_bytes(options: argparse.Namespace) -> int:
    """Read the largest size of a body.

    Raises:
        ValueError: if it is not at least a byte and at most a GiB.
    """
    if not 1 <= options.max_body_mb * (1 << 20) <= 1 << 30:  # NaN is neither
        raise ValueError(f"--max-body-mb must be above 0 and at most 1024, got {options.max_body_mb:g}.")
    return int(options.max_body_mb * (1 << 20))


def _announce(
    options: argparse.Namespace, server: Mapping[str, object], scale: str, way: str = "--data-binary @cat.jpg"
) -> None:
    """Print the address of a server, and the command that asks it, with what it sends in `way`."""
    if options.json:
        print_json(server)
        return
    print(
        f"{server['name']} at {server['url']}: {scale} within {options.latency_ms:g} ms\n"
        f"  curl {way} {server['url']}/predict", flush=True,
    )  # fmt: skip
