"""Uses of a trained network: files for other runtimes, cascades, a latency target, a server, a page."""

from ..lazy import submodules

__getattr__ = submodules(__name__)
