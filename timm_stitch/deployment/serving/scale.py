"""How a network is spread over replicas: the Serve config file, and how many requests one replica is meant to hold.

A config is plain values, as `serve run FILE` and `serve deploy FILE` take them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...plan.timings import call_times
from ..policies import SHARE, LatencyTable
from .promise import Promise

DEPLOYMENT = "network"  # its name in the config
BUILD = "timm_stitch.deployment.serving.ray_serve:build"

_CONNECTIONS = 200  # requests that a replica takes beside those whose images wait: they are read, or run
_UNPLACED = 100  # requests that wait at a proxy while no replica takes any
_LONGEST = 600.0  # seconds, the longest promise that a request may ask for
_SOON = 5.0  # seconds: over how long load is averaged, and how long it is to last, before there are more replicas


@dataclass(frozen=True)
class Scale:
    """How many replicas there are, and what each gets.

    Args:
        least, most: replicas; equal for a fixed number.
        num_cpus: of each, by Ray's count; on a CPU as many threads run its network.
        num_gpus: of each; a fraction lets several share one.

    Raises:
        ValueError: if one is out of range.
    """

    least: int = 1
    most: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(f"{self.least} to {self.most} replicas: expected 1 or more, and the least first.")
        if not (0 < self.num_cpus < math.inf and 0 <= self.num_gpus < math.inf):
            raise ValueError(
                f"num_cpus={self.num_cpus}, num_gpus={self.num_gpus}: expected CPUs above 0, and no fewer GPUs than 0."
            )


def held(rows: Iterable[Mapping[str, Any]], promise: Promise) -> int:
    """How many requests of one image a replica holds while its dearest stitch still answers them in time, one by one.

    What comes beyond is answered too, in batches and by cheaper stitches; that is when another replica is worth it.

    Args:
        rows: of `stitch_table`, with accuracies and with latencies as on the replicas' machines.
        promise: what is promised.

    Raises:
        ValueError: if no latencies are kept with the network.
    """
    timed = [row for row in rows if call_times(row)]
    if not timed:
        raise ValueError(
            "how many requests a replica may hold follows from latencies, and none are kept with this network: "
            "timm-stitch profile NET --batch-sizes 1 2 4 8 --save, or give a fixed number of --replicas."
        )
    table = LatencyTable(timed)
    seconds = (promise.latency_ms - promise.reserve) / 1e3
    level = max((n for n in range(len(table)) if table.seconds(n, 1) <= SHARE * seconds), default=0)
    return max(1, min(promise.most_waiting, int(SHARE * seconds / table.seconds(level, 1))))


def serve_config(
    model: Sequence[str],
    promise: Promise,
    scale: Scale,
    target: int | None = None,
    *,
    name: str = "network",
    host: str = "127.0.0.1",
    port: int = 8000,
    everywhere: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """The Serve config of a network.

    Args:
        model: as `load` takes it.
        promise: what each replica promises.
        scale: how many replicas there are.
        target: requests that each is to hold, by which their number follows the load; not for a fixed number.
        name: of the network, for clients.
        host, port: where Ray's proxies listen.
        everywhere: a proxy on each machine, not on the head alone.
        more: further arguments of `Replica`.

    Returns:
        Plain values, ready for JSON or YAML.
    """
    most = promise.most_waiting + _CONNECTIONS
    deployment: dict[str, Any] = {
        "name": DEPLOYMENT,
        "max_ongoing_requests": most,
        "max_queued_requests": _UNPLACED,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1.0},
        "ray_actor_options": {"num_cpus": scale.num_cpus, "num_gpus": scale.num_gpus},
    }
    if scale.least == scale.most:
        deployment["num_replicas"] = scale.least
    else:
        deployment["autoscaling_config"] = {
            "min_replicas": scale.least, "max_replicas": scale.most, "target_ongoing_requests": target,
            "metrics_interval_s": 1.0, "look_back_period_s": _SOON, "upscale_delay_s": _SOON,
        }  # fmt: skip
    args = {"model": list(model), "promise": asdict(promise), "name": name, **more}
    application = {
        "name": name, "route_prefix": "/", "import_path": BUILD, "args": args, "deployments": [deployment],
    }  # fmt: skip
    return {
        "proxy_location": "EveryNode" if everywhere else "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": _LONGEST},
        "applications": [application],
    }
