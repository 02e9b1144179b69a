"""What the Hub and transformers call the tasks of networks of transformers models. It does not import transformers."""

from __future__ import annotations

from typing import Any, NamedTuple

MODEL_TYPE = "snnet"  # in the config.json of a network of transformers' models


class TaskNames(NamedTuple):
    """The names of a task.

    Args:
        pipeline: the Hub's.
        auto: of transformers' class that loads it.
        score: what the accuracy of its networks is.
    """

    pipeline: str
    auto: str
    score: str = "top-1"


TASK_NAMES = {
    "ForSequenceClassification": TaskNames("text-classification", "AutoModelForSequenceClassification"),
    "ForTokenClassification": TaskNames("token-classification", "AutoModelForTokenClassification", "tokens right"),
    "ForQuestionAnswering": TaskNames("question-answering", "AutoModelForQuestionAnswering", "answers right"),
    "ForMaskedLM": TaskNames("fill-mask", "AutoModelForMaskedLM", "masked tokens right"),
    "ForCausalLM": TaskNames("text-generation", "AutoModelForCausalLM", "next tokens right"),
    "ForImageClassification": TaskNames("image-classification", "AutoModelForImageClassification"),
    "Model": TaskNames("feature-extraction", "AutoModel"),
}


def is_of_transformers(config: dict[str, Any]) -> bool:
    """Whether a `config.json` is that of a network of transformers' models."""
    return config.get("model_type") == MODEL_TYPE


def names_of(config: dict[str, Any]) -> tuple[str, TaskNames]:
    """The class of the network of a `config.json`, and the names of its task.

    Raises:
        ValueError: if it is none of ours.
    """
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    found = TASK_NAMES.get(str(name).removeprefix("SNNet")) if str(name).startswith("SNNet") else None
    if found is None:
        known = ", ".join(f"SNNet{task}" for task in TASK_NAMES)
        raise ValueError(f"config.json names the class {name!r:.80}: expected one of {known}.")
    return str(name), found
