"""The networks made known to transformers' Auto classes."""

from __future__ import annotations

from transformers import AutoConfig

from .configuration import SNNetConfig
from .networks import TASKS


def register() -> None:
    """Let `AutoConfig` and each task's Auto class know the networks; may be done twice."""
    AutoConfig.register(SNNetConfig.model_type, SNNetConfig, exist_ok=True)
    for kind in TASKS.values():
        kind.task.auto.register(SNNetConfig, kind, exist_ok=True)
