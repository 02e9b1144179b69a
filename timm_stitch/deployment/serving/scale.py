"""Scaling over replicas: the config file of Ray Serve, and the number of requests that a replica should hold.

A config is plain values, as `serve run FILE` and `serve deploy FILE` take them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...plan.results import Row
from ...plan.timings import call_times
from ..policies import SHARE, LatencyTable
from .config import ServingConfig

DEPLOYMENT = "network"  # its name in the config
BUILD = "timm_stitch.deployment.serving.ray_serve:build"

_CONNECTIONS = 200  # requests of a replica whose images do not wait: they are read, or run
_UNPLACED = 100  # requests that wait at a proxy while no replica takes any
_LONGEST = 600.0  # seconds, the longest latency target of a request
_SOON = 5.0  # seconds over which load is averaged, and must last, before replicas are added


@dataclass(frozen=True)
class Scale:
    """The number of replicas, and the resources of each.

    Args:
        least: the smallest number of replicas.
        most: the largest; equal to the smallest for a fixed number.
        num_cpus: the CPUs of a replica, by Ray's count; on a CPU as many threads run its network.
        num_gpus: the GPUs of a replica; with a fraction several replicas share one.

    Raises:
        ValueError: if a value is out of range.
    """

    least: int = 1
    most: int = 1
    num_cpus: float = 1.0
    num_gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                f"the numbers of replicas must be 1 or more, the smaller first, got {self.least} to {self.most}."
            )
        if not 0 < self.num_cpus < math.inf:
            raise ValueError(f"num_cpus must be positive, got {self.num_cpus}.")
        if not 0 <= self.num_gpus < math.inf:
            raise ValueError(f"num_gpus must be 0 or more, got {self.num_gpus}.")


def target_requests_per_replica(rows: Iterable[Row], config: ServingConfig) -> int:
    """Compute how many requests of one image the most expensive stitch of a replica answers in time, one by one.

    Further requests are answered too, in batches and by cheaper stitches; another replica is then worth its cost.

    Args:
        rows: rows of `stitch_table`, with accuracies, and with latencies on the replicas' machines.
        config: the latency target and the limits.

    Raises:
        ValueError: if the network has no latencies.
    """
    timed = [row for row in rows if call_times(row)]
    if not timed:
        raise ValueError(
            "the number of requests that a replica may hold follows from latencies, and this network has none: "
            f"timm-stitch profile {config.network} --batch-sizes 1 2 4 8 --save, or give a fixed number of --replicas."
        )
    table = LatencyTable(timed)
    planned = SHARE * config.network_seconds
    index = table.slowest_within(planned)
    return max(1, min(config.most_waiting, int(planned / table.seconds(index, 1))))


def serve_config(
    model: Sequence[str],
    config: ServingConfig,
    scale: Scale,
    target: int | None = None,
    *,
    name: str = "network",
    host: str = "127.0.0.1",
    port: int = 8000,
    everywhere: bool = False,
    **more: object,
) -> dict[str, Any]:
    """Make the Serve config of a network.

    Args:
        model: the names that `load` takes.
        config: the latency target and the limits of each replica.
        scale: the number of replicas, and the resources of each.
        target: the number of requests that a replica should hold, by which replicas follow the load; not for a fixed
            number of replicas.
        name: the name of the network, for clients.
        host: the address where Ray's proxies listen.
        port: the port where they listen.
        everywhere: whether each machine has a proxy, not the head alone.
        more: further arguments of `Replica`.

    Returns:
        Plain values, ready for JSON or YAML.
    """
    most = config.most_waiting + _CONNECTIONS
    deployment: dict[str, object] = {
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
    args = {"model": list(model), "promise": asdict(config), "name": name, **more}
    application = {
        "name": name, "route_prefix": "/", "import_path": BUILD, "args": args, "deployments": [deployment],
    }  # fmt: skip
    return {
        "proxy_location": "EveryNode" if everywhere else "HeadOnly",
        "http_options": {"host": host, "port": port, "request_timeout_s": _LONGEST},
        "applications": [application],
    }
