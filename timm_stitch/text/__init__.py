"""Stitched networks of transformers' models: importing it registers them with transformers' Auto classes.

The one package that imports transformers; nothing else imports it before a model of transformers is stitched, loaded or
asked for.
"""

from .configuration import SNNetConfig
from .networks import (
    TASKS,
    SNNetForCausalLM,
    SNNetForImageClassification,
    SNNetForMaskedLM,
    SNNetForQuestionAnswering,
    SNNetForSequenceClassification,
    SNNetForTokenClassification,
    SNNetModel,
)
from .register import register

register()

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
