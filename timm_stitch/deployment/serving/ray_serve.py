"""The same engine and the same application as replicas under Ray Serve, on this machine or a cluster.

A replica accepts more requests at once than its engine lets wait, so that the policy sees all of them and drops those
that cannot be answered in time. Ray's router chooses between replicas: of two at random, the one with fewer ongoing
requests, which it counts itself. The queue length that an engine could report would be older than the whole queue.

Needs Ray 2.60 (`pip install '.[ray]'`).
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
from .app import HttpApp
from .config import ServingConfig
from .scale import DEPLOYMENT
from .service import InferenceService


class Replica:
    """One of several processes that serve a network; its arguments are plain values, as a config file holds them.

    Args:
        model: the names that `load` takes; a folder must exist on each machine.
        promise: the arguments of `ServingConfig`.
        name: the name of the network, for clients.
        device: the device where the network runs.
        num_classes: the number of classes, as in `timm.create_model`; default that of the weights.
        most_bytes: the largest size of a request's body.
        threads: the CPU threads of the network; default the CPUs that Ray gives the replica.

    Raises:
        ValueError: as `InferenceService`.
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
        cpus = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
        torch.set_num_threads(threads or max(1, int(cpus)))
        more: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        network = require(load(model, device=device, **more), "replicas")
        self.service = InferenceService(network, ServingConfig(**promise), name)
        self.application = HttpApp(self.service, most_bytes)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the application for Ray, which runs it with its lifespan."""
        return self.application.asgi()

    def check_health(self) -> None:
        """Raise if the engine has died: Ray then replaces the replica."""
        if self.service.died:
            raise RuntimeError("the engine died: see the replica's log.")


NETWORK = serve.deployment(name=DEPLOYMENT)(serve.ingress()(Replica))


def build(args: Mapping[str, Any]) -> Any:
    """Build the application of a Serve config file, whose `args` are those of `Replica`."""
    return NETWORK.bind(**args)


class RayServer:
    """A network deployment by Ray, until a signal.

    Args:
        config: the config that `scale.serve_config` makes.
        address: the address of the cluster to join; by default Ray starts here, for this machine alone.

    Attributes:
        address: the URL of the server.

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
        """Start the replicas, or replace them one after another by replicas that load the network again."""
        options = {key: value for key, value in self.application["deployments"][0].items() if key != "name"}
        network = NETWORK.options(**options).bind(**self.application["args"])
        serve.run(network, name=self.application["name"], route_prefix=self.application["route_prefix"])

    def run(self) -> int:
        """Serve until SIGTERM or Ctrl-C; at SIGHUP replicas are replaced. Returns the exit status."""
        received: list[int] = []

        def note(number: int, frame: FrameType | None) -> None:
            received.append(number)

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, note)
        while not {signal.SIGTERM, signal.SIGINT} & set(received):
            if received:
                received.remove(signal.SIGHUP)
                self.deploy()
            time.sleep(0.2)
        self.close()
        return 0

    def close(self) -> None:
        """Answer waiting requests, and end Ray if it was started here."""
        if self.joined:
            serve.delete(self.application["name"])
        else:
            serve.shutdown()
        ray.shutdown()


def _cpus(application: Mapping[str, Any]) -> int:
    """Count the CPUs of this machine for Ray: its own, or as many as all replicas take, which then share them."""
    deployment = application["deployments"][0]
    scaled = deployment.get("autoscaling_config", {})
    replicas: int = deployment.get("num_replicas") or scaled["max_replicas"]
    each: float = deployment["ray_actor_options"]["num_cpus"]
    return max(os.cpu_count() or 1, math.ceil(replicas * each))
