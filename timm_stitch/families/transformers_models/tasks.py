"""What a model of transformers does: its task, from transformers' own lists of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import transformers
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ...errors import WrongTypeError
from .task_names import TASK_NAMES

_CLASSES: dict[str, Mapping[str, str | Sequence[str]]] = {
    "ForSequenceClassification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "ForTokenClassification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "ForQuestionAnswering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "ForMaskedLM": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "ForCausalLM": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "ForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "Model": modeling_auto.MODEL_MAPPING_NAMES,
}


class Task(NamedTuple):
    """A task that anchors may have.

    Args:
        name: the name of the network's class, behind `SNNet`.
        auto: transformers' class that makes models of this task.
    """

    name: str
    auto: type[_BaseAutoModelClass]

    def class_names(self, model_type: str) -> tuple[str, ...]:
        """The names of the classes of a type of model that have this task."""
        names = _CLASSES[self.name].get(model_type, ())
        return (names,) if isinstance(names, str) else tuple(names)


# The first whose classes include a model's is its task.
ALL = tuple(Task(name, getattr(modeling_auto, names.auto)) for name, names in TASK_NAMES.items())


def find_task(model: PreTrainedModel) -> Task:
    """Find the task of a model.

    Raises:
        TypeError: if it is none that can be stitched.
    """
    for task in ALL:
        if type(model).__name__ in task.class_names(model.config.model_type):
            return task
    raise WrongTypeError(
        f"{type(model).__name__} has a task that cannot be stitched: expected a model made by one of "
        f"{', '.join(task.auto.__name__ for task in ALL)}."
    )


def find_class(task: Task, model_type: str, name: object) -> type[PreTrainedModel]:
    """Find transformers' class of a name, if it is one of the task's for that type of model.

    Raises:
        ValueError: if it is not.
    """
    names = task.class_names(model_type)
    if name not in names:
        raise ValueError(
            f"config.json has an anchor of class {name!r:.80}: expected {' or '.join(names) or 'none'} for "
            f"model_type={model_type!r:.80}."
        )
    return cast("type[PreTrainedModel]", getattr(transformers, str(name)))
