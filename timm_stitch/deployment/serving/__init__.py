"""A server that answers requests within a latency target."""

from ...lazy import submodules

__getattr__ = submodules(__name__)
