"""The same engine and the same application as replicas under Ray Serve, on this machine or a cluster.

A replica takes more requests at once than its engine lets wait, so that what cannot be answered in time is refused by
the policy, which sees all of it. Between replicas Ray's own router chooses: of two at random, the one with fewer
requests under way, which it counts itself. How many waits an engine would report were older than the whole queue.

Needs Ray 2.60 (`pip install 'timm_stitch[ray]'`).
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

import ray
import torch
from ray import serve
from starlette.types import ASGIApp

from ...families.registry import require
from ...hub.loading import load
from .app import Application
from .promise import Promise
from .scale import DEPLOYMENT
from .service import Service


class Replica:
    """One of several that serve a network; its arguments are plain values, as a file can hold them.

    Args:
        model: as `load` takes it; a folder is to be there on each machine.
        promise: the arguments of `Promise`.
        name: of the network, for clients.
        device: where the network runs.
        num_classes: as `timm.create_model`; default the weights' own.
        most_bytes: of a body.
        threads: of the network on a CPU; default the CPUs that Ray gives the replica.

    Raises:
        ValueError: as `Service`.
    """

    def __init__(
        self,
        model: Sequence[str],
        promise: Mapping[str, Any],
        name: str = "network",
        device: str = "cpu",
        num_classes: int | None = None,
        most_bytes: int = 16 << 20,
        threads: int | None = None,
    ) -> None:
        given = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        torch.set_num_threads(threads or max(1, int(given)))
        more: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        self.service = Service(require(load(model, device=device, **more), "serve"), Promise(**promise), name)
        self.application = Application(self.service, most_bytes)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What Ray runs, with its lifespan."""
        return self.application.asgi()

    def check_health(self) -> None:
        """Asked by Ray, which ends a replica that raises and starts another."""
        if self.service.engine.died:
            raise RuntimeError("the engine died: see the replica's log.")


NETWORK = serve.deployment(name=DEPLOYMENT)(serve.ingress()(Replica))


def build(args: Mapping[str, Any]) -> Any:
    """The application of a Serve config file, whose `args` are those of `Replica`."""
    return NETWORK.bind(**args)


class RayServer:
    """A network served by Ray, until a signal.

    Args:
        config: as `scale.serve_config` makes it.
        address: of the cluster to join; by default Ray starts here, for this machine alone.

    Attributes:
        address: where it listens, as a URL.

    Raises:
        RuntimeError: if no replica starts.
    """

    def __init__(self, config: Mapping[str, Any], address: str | None = None) -> None:
        self.application, http = config["applications"][0], config["http_options"]
        self.joined = address is not None
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if self.joined:
            ray.init(address=address, log_to_driver=False, logging_level="error")
        else:
            ray.init(
                "local", num_cpus=_cpus(self.application), include_dashboard=False, log_to_driver=False,
                logging_level="error", _node_ip_address="127.0.0.1",
            )  # fmt: skip
        try:
            serve.start(proxy_location=config["proxy_location"], http_options=dict(http))
            self.deploy()
        except BaseException:
            self.close()
            raise
        host = f"[{http['host']}]" if ":" in http["host"] else http["host"]
        self.address = f"http://{host}:{http['port']}"

    def deploy(self) -> None:
        """Start the replicas, or replace them one after another by such as load the network anew."""
        options = {key: value for key, value in self.application["deployments"][0].items() if key != "name"}
        network = NETWORK.options(**options).bind(**self.application["args"])
        serve.run(network, name=self.application["name"], route_prefix=self.application["route_prefix"])

    def run(self) -> int:
        """Serve until SIGTERM or Ctrl-C; at SIGHUP replicas are replaced. Returns the exit status."""
        asked: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            asked.append(number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, note)
        while not {signal.SIGTERM, signal.SIGINT} & set(asked):
            if asked:
                asked.remove(signal.SIGHUP)
                self.deploy()
            time.sleep(0.2)
        self.close()
        return 0

    def close(self) -> None:
        """Answer what waits, and end what was started."""
        if self.joined:
            serve.delete(self.application["name"])
        else:
            serve.shutdown()
        ray.shutdown()


def _cpus(application: Mapping[str, Any]) -> int:
    """Of this machine by Ray's count: its own, or as many as all replicas take, which then share them."""
    deployment = application["deployments"][0]
    scaled = deployment.get("autoscaling_config", {})
    replicas: int = deployment.get("num_replicas") or scaled["max_replicas"]
    each: float = deployment["ray_actor_options"]["num_cpus"]
    return max(os.cpu_count() or 1, math.ceil(replicas * each))
