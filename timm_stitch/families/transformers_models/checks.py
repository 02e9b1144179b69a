"""What stitched networks of transformers' models do not take, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .cache import NAMES
from .inputs import IGNORED, TextInputs
from .tasks import Task, task_of
from .views import TransformersView


def check_inputs(network: Any, inputs: TextInputs) -> None:
    """Refuse inputs that the anchors do not take.

    Raises:
        ValueError: naming what does not fit.
    """
    main, given = inputs.main, inputs.given
    ids = given.get("input_ids")
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"input_ids of shape {tuple(main.shape)} and {main.dtype} do not fit: expected whole numbers of shape "
            "(B, L), as the tokenizer gives with return_tensors='pt'."
        )
    most = network.most_positions
    length = ids.shape[1]
    if most and length > most:
        raise ValueError(
            f"texts of {length} tokens do not fit: the anchors take {most}; tokenize with truncation=True."
        )
    mask = given.get("attention_mask")
    goes_on = any(given.get(name) is not None for name in NAMES)
    if isinstance(mask, Tensor) and mask.ndim == 2 and not goes_on and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} does not fit input_ids of shape {tuple(ids.shape)}: give "
            "both as the tokenizer gives them."
        )
    if ids.device.type != "cpu" or not ids.numel():
        return  # to look would wait for the device
    vocabulary = network.config.vocab_size
    if int(ids.max()) >= vocabulary or int(ids.min()) < 0:
        raise ValueError(
            f"input_ids has {int(ids.max())}, and the anchors know tokens 0 to {vocabulary - 1}: use their tokenizer."
        )
    _check_labels(network, inputs)


def _check_labels(network: Any, inputs: TextInputs) -> None:
    labels = inputs.labels.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
        return
    lm = network.task.name in ("ForCausalLM", "ForMaskedLM")
    classes = network.config.vocab_size if lm else network.config.num_labels
    if classes == 1 and not lm:
        return  # a regression
    real = labels[labels != IGNORED]
    if real.numel() and (int(real.max()) >= classes or int(real.min()) < 0):
        strange = int(real.max()) if int(real.max()) >= classes else int(real.min())
        raise ValueError(f"labels has {strange}: expected 0 to {classes - 1}, or {IGNORED} for what does not count.")


def check_fit(views: Sequence[TransformersView]) -> Task:
    """The task of anchors that fit each other.

    Raises:
        TypeError: if a model has no task that can be stitched.
        ValueError: saying which anchors differ in what.
    """
    models: list[Any] = [view.anchor for view in views]
    tasks = [task_of(model) for model in models]
    if len({task.name for task in tasks}) > 1:
        raise ValueError(_differ("tasks", models, [task.name for task in tasks], "load all by one Auto class"))
    configs = [model.config.get_text_config() for model in models]
    if models[0].main_input_name == "input_ids":
        _check_equal("vocabularies", models, [c.vocab_size for c in configs], "stitch models of one tokenizer")
        special = [tuple(getattr(c, f"{n}_token_id", None) for n in ("pad", "bos", "eos")) for c in configs]
        _check_equal("tokens for padding, beginning and end", models, special, "stitch models of one tokenizer")
    if tasks[0].name in ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification"):
        labels = [dict(model.config.id2label) for model in models]
        _check_equal("labels", models, labels, "load all with the same num_labels and id2label")
    rows = [view.opening.positions[0] for view in views]
    _check_equal("positions that they make of one input", models, rows, "use equal image and patch sizes")
    return tasks[0]


def _check_equal(what: str, models: Sequence[Any], values: Sequence[Any], advice: str) -> None:
    if any(value != values[0] for value in values):
        raise ValueError(_differ(what, models, values, advice))


def _differ(what: str, models: Sequence[Any], values: Sequence[Any], advice: str) -> str:
    said = ", ".join(f"{type(m).__name__} {v!s:.60}" for m, v in zip(models, values, strict=True))
    return f"cannot stitch anchors whose {what} differ ({said}): {advice}."


def check_tokenizers(tokenizers: Sequence[Any]) -> None:
    """Refuse tokenizers that make other ids of a text.

    Raises:
        ValueError: naming a token.
    """
    first = tokenizers[0].get_vocab() if tokenizers else {}
    for tokenizer in tokenizers[1:]:
        other = tokenizer.get_vocab()
        token = next((t for t in sorted({*first, *other}) if first.get(t) != other.get(t)), None)
        if token is not None:
            raise ValueError(
                f"the anchors' tokenizers differ: {token!r:.40} is {first.get(token)} for one and {other.get(token)} "
                "for another. One text must be one row of ids for all anchors: stitch models of one tokenizer."
            )
