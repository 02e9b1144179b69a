"""What a model of transformers does: its task, from transformers' own lists of classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import transformers
from transformers.models.auto import modeling_auto as auto

from ...errors import WrongTypeError
from .task_names import TASK_NAMES


class Task(NamedTuple):
    """A task that anchors may have.

    Args:
        name: of the network's class, behind `SNNet`.
        auto: transformers' class that makes models of this task.
        classes: transformers' classes by type of model.
    """

    name: str
    auto: Any
    classes: Any

    def fits(self, model: Any) -> bool:
        """Whether a model has this task."""
        return type(model).__name__ in self.names(model.config.model_type)

    def names(self, model_type: str) -> tuple[str, ...]:
        """The names of the classes of a type of model that have this task."""
        found = self.classes.get(model_type, ())
        return (found,) if isinstance(found, str) else tuple(found)


_CLASSES = {
    "ForSequenceClassification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ForTokenClassification": auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ForQuestionAnswering": auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "ForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "ForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ForImageClassification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "Model": auto.MODEL_MAPPING_NAMES,
}

# The first that fits is a model's task.
ALL = tuple(Task(name, getattr(auto, names.auto), _CLASSES[name]) for name, names in TASK_NAMES.items())


def task_of(model: Any) -> Task:
    """The task of a model.

    Raises:
        TypeError: if it is none that can be stitched.
    """
    for task in ALL:
        if task.fits(model):
            return task
    raise WrongTypeError(
        f"{type(model).__name__} has a task that cannot be stitched: expected a model made by one of "
        f"{', '.join(task.auto.__name__ for task in ALL)}."
    )


def class_of(task: Task, model_type: str, name: Any) -> Any:
    """transformers' class of that name, if it is one of the task's for that type of model.

    Raises:
        ValueError: if it is not.
    """
    names = task.names(model_type)
    if name not in names:
        raise ValueError(
            f"config.json has an anchor of class {name!r:.80}: expected {' or '.join(names) or 'none'} for "
            f"model_type={model_type!r:.80}."
        )
    return getattr(transformers, name)
