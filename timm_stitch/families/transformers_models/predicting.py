"""Predictions for texts, by transformers' pipeline of a network's task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import pipeline

from ...errors import library_errors
from .network import StitchedModel
from .task_names import TASK_NAMES
from .tokenizing import network_tokenizer

_TASKS = ("text-classification", "token-classification", "fill-mask", "text-generation")


def text_predictor(network: StitchedModel, top: int) -> Callable[[str], dict[str, Any]]:
    """Make the function that predicts for a text, as `Family.text_predictor`."""
    task = TASK_NAMES[network.task.name].pipeline
    if task not in _TASKS:
        raise ValueError(f"predict takes a text, and {task} takes more: call transformers.pipeline in Python.")
    options = {"top_k": top} if task in ("text-classification", "fill-mask") else {}
    run: Callable[..., Any] = pipeline(task, model=network, tokenizer=network_tokenizer(network))  # type: ignore[call-overload]

    def predict(text: str) -> dict[str, Any]:
        with library_errors(f"cannot predict for {text!r:.40}", Exception):
            output = run(text, **options)
        if task == "text-generation":
            return {"output": output[0]["generated_text"]}
        rows = output[0] if output and isinstance(output[0], list) else output  # of the first mask
        return {"top": [{"label": _label(row), "probability": float(row["score"])} for row in rows]}

    return predict


def _label(row: dict[str, Any]) -> str:
    """The label of a class, the word for a mask, or a token with its label."""
    if "token_str" in row:
        return str(row["token_str"])
    return f"{row['word']}: {row['entity']}" if "entity" in row else str(row["label"])
