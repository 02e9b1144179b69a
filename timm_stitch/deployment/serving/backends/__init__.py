"""What runs a server's stitches: torch, or an engine that has compiled them. `backend` is the door."""

from ....lazy import submodules

__getattr__ = submodules(__name__)
