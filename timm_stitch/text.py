"""Stitched networks of transformers' models; importing this registers them with transformers' Auto classes.

Nothing else imports transformers before a model of transformers is stitched, loaded or asked for.
"""

from .families.transformers_models.configuration import SNNetConfig
from .families.transformers_models.networks import (
    TASKS,
    SNNetForCausalLM,
    SNNetForImageClassification,
    SNNetForMaskedLM,
    SNNetForQuestionAnswering,
    SNNetForSequenceClassification,
    SNNetForTokenClassification,
    SNNetModel,
)
from .hub import loading as _rows  # noqa: F401 adds saved rows to what the Auto classes load

__all__ = [
    "TASKS",
    "SNNetConfig",
    "SNNetForCausalLM",
    "SNNetForImageClassification",
    "SNNetForMaskedLM",
    "SNNetForQuestionAnswering",
    "SNNetForSequenceClassification",
    "SNNetForTokenClassification",
    "SNNetModel",
]
