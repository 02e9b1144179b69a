"""The names of tasks, and what networks of transformers' models do not do. It does not import transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MODEL_TYPE = "snnet"  # in the config.json of a network of transformers' models
LANGUAGE_TASKS = ("ForCausalLM", "ForMaskedLM")
TOKEN_TASKS = (*LANGUAGE_TASKS, "ForTokenClassification")


class TaskNames(NamedTuple):
    """The names of a task.

    Args:
        pipeline: the Hub's name.
        auto: the name of transformers' class that loads its networks.
        score: the name of the accuracy of its networks.
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


def read_task(config: Mapping[str, object]) -> tuple[str, TaskNames]:
    """Read the task of the network of a `config.json`: the end of its class's name, and the task's names.

    Raises:
        ValueError: if the class is none of ours.
    """
    classes = config.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else None
    task = str(name).removeprefix("SNNet")
    if f"SNNet{task}" != name or task not in TASK_NAMES:
        known = ", ".join(f"SNNet{task}" for task in TASK_NAMES)
        raise ValueError(f"config.json names the class {name!r:.80}: expected one of {known}.")
    return task, TASK_NAMES[task]


# What networks of transformers' models do not do, and what to do instead.
UNSUPPORTED = {
    "quick_profile": "quick=True adds up parts, and models of transformers run as wholes: leave it out.",
    "plan_without_weights": "costs of transformers' models are counted by running them: load the weights first.",
    "named_data": (
        "networks of transformers' models take data at hand, not images by name: call timm_stitch.train, evaluate or "
        "least_squares_init in Python with a dataset of mappings, as a tokenizer makes them."
    ),
    "export": (
        "networks of transformers' models are not exported by timm_stitch: extract a stitch and export it as any model "
        "of transformers, e.g. torch.onnx.export(network.extract(ID), …)."
    ),
    "serve": (
        "timm-stitch serve gives classes of images by timm's models, and classes or embeddings of texts by "
        "transformers': call a network of another kind by transformers.pipeline, after pipe.model.set_stitch(ID)."
    ),
    "replicas": "replicas serve classifiers of images: leave --ray out, so that one process serves the texts.",
    "demo": (
        "the demo shows images classified by timm's models: try a network of transformers' models by "
        "transformers.pipeline, after pipe.model.set_stitch(ID)."
    ),
    "backbone": (
        "backbone() gives the feature maps of timm's models: call a network of transformers' models with "
        "output_hidden_states=True."
    ),
    "linear_probe": (
        "linear_probe fits the classifiers of timm's models: load transformers' anchors with the same num_labels and "
        "train them instead."
    ),
    "recalibrate": "models of transformers have no batch norm to recalibrate: leave this step out.",
}

names_of = read_task  # the earlier name
