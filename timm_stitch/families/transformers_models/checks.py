"""Whether anchors fit each other, and whether inputs fit the anchors."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ...anchors.meta_device import is_on_meta
from ...errors import WrongTypeError
from .cache import NAMES
from .inputs import IGNORED, TextInputs
from .opening import check_splits
from .task_names import LANGUAGE_TASKS
from .tasks import Task, find_task
from .views import TransformersView

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def check_inputs(inputs: TextInputs, config: PreTrainedConfig, task: Task, limit: int | None) -> None:
    """Refuse inputs that the anchors do not take.

    Args:
        inputs: the inputs of the call.
        config, task: the network's configuration and task.
        limit: the largest number of tokens that the anchors take.

    Raises:
        ValueError: naming what does not fit.
    """
    main, arguments = inputs.main, inputs.arguments
    ids = arguments.get("input_ids")
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.is_floating_point():
        raise ValueError(
            f"input_ids of shape {tuple(main.shape)} and {main.dtype} do not fit: expected whole numbers of shape "
            "(B, L), as the tokenizer gives with return_tensors='pt'."
        )
    length = ids.shape[1]
    if limit and length > limit:
        raise ValueError(
            f"texts of {length} tokens do not fit: the anchors take {limit}; tokenize with truncation=True."
        )
    mask = arguments.get("attention_mask")
    has_cache = any(arguments.get(name) is not None for name in NAMES)
    if isinstance(mask, Tensor) and mask.ndim == 2 and not has_cache and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask of shape {tuple(mask.shape)} does not fit input_ids of shape {tuple(ids.shape)}: give "
            "both as the tokenizer gives them."
        )
    if ids.device.type != "cpu" or not ids.numel() or torch.compiler.is_compiling():
        return  # reading values would wait for the device, and tensors that are exported have none
    vocab_size = config.vocab_size
    if int(ids.max()) >= vocab_size or int(ids.min()) < 0:
        raise ValueError(
            f"input_ids has {int(ids.max())}, and the anchors know tokens 0 to {vocab_size - 1}: use their tokenizer."
        )
    _check_labels(inputs, config, task)


def check_arguments(inputs: TextInputs, front: TransformersView, is_anchor: bool) -> None:
    """Refuse embeddings that are not those of the front anchor, and memories of one model for two.

    Args:
        inputs: the inputs of the call.
        front: the anchor with which the stitch begins.
        is_anchor: whether the stitch is that anchor alone.

    Raises:
        ValueError: naming what does not fit.
    """
    if not is_anchor and inputs.arguments.get("mems") is not None:
        raise ValueError("mems are those of one model's layers: give them with the stitch of that anchor alone.")
    embeds = inputs.arguments.get("inputs_embeds")
    if isinstance(embeds, Tensor) and embeds.shape[-1] != front.embedding_width:
        raise ValueError(
            f"inputs_embeds has {embeds.shape[-1]} channels, and the stitch begins with {type(front.anchor).__name__} "
            f"of {front.embedding_width}: give those of model.anchors[{front.number}].get_input_embeddings()."
        )


def _check_labels(inputs: TextInputs, config: PreTrainedConfig, task: Task) -> None:
    labels = inputs.labels.get("labels")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
        return
    is_language_model = task.name in LANGUAGE_TASKS
    classes = cast("int", config.vocab_size if is_language_model else config.num_labels)
    if classes == 1 and not is_language_model:
        return  # a regression
    counted = labels[labels != IGNORED]
    if counted.numel() and (int(counted.max()) >= classes or int(counted.min()) < 0):
        wrong = int(counted.max()) if int(counted.max()) >= classes else int(counted.min())
        raise ValueError(f"labels has {wrong}: expected 0 to {classes - 1}, or {IGNORED} for what does not count.")


def check_fit(views: Sequence[TransformersView]) -> Task:
    """Find the task of anchors that fit each other.

    Raises:
        TypeError: if a model has no task that can be stitched.
        ValueError: saying which anchors differ in what.
    """
    models = [view.anchor for view in views]
    tasks = [find_task(model) for model in models]
    _check_equal("tasks", models, [task.name for task in tasks], "load all by one Auto class")
    configs = [model.config.get_text_config() for model in models]
    if models[0].main_input_name == "input_ids":
        _check_equal("vocabularies", models, [c.vocab_size for c in configs], "stitch models of one tokenizer")
        special = [tuple(getattr(c, f"{n}_token_id", None) for n in ("pad", "bos", "eos")) for c in configs]
        _check_equal("tokens for padding, beginning and end", models, special, "stitch models of one tokenizer")
    if tasks[0].name in ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification"):
        labels = [dict(model.config.id2label or {}) for model in models]
        _check_equal("labels", models, labels, "load all with the same num_labels and id2label")
    positions = [view.spec.positions[0] for view in views]
    _check_equal("positions that they make of one input", models, positions, "use equal image and patch sizes")
    return tasks[0]


def _check_equal(what: str, models: Sequence[PreTrainedModel], values: Sequence[object], advice: str) -> None:
    if any(value != values[0] for value in values):
        differing = ", ".join(f"{type(m).__name__} {v!s:.60}" for m, v in zip(models, values, strict=True))
        raise ValueError(f"cannot stitch anchors whose {what} differ ({differing}): {advice}.")


def check_tokenizers(tokenizers: Sequence[PreTrainedTokenizerBase], count: int) -> None:
    """Refuse tokenizers with different vocabularies, or not one for each of `count` anchors.

    Raises:
        TypeError: if they are no tokenizers.
        ValueError: naming a token.
    """
    listed: list[Any] = list(tokenizers or ()) if isinstance(tokenizers, (list, tuple, NoneType)) else [tokenizers]
    wrong = next((t for t in listed if not hasattr(t, "get_vocab")), None)
    if wrong is not None:
        raise WrongTypeError(
            f"tokenizers must be tokenizers of transformers, got {type(wrong).__name__} {wrong!r:.60}: load each by "
            "AutoTokenizer.from_pretrained(…)."
        )
    if listed and len(listed) != count:
        raise ValueError(
            f"tokenizers must be a list of one for each of {count} anchors, got {len(listed)}: list the one that they "
            f"share {count} times, [tokenizer] * {count}."
        )
    first = listed[0].get_vocab() if listed else {}
    for tokenizer in listed[1:]:
        other = tokenizer.get_vocab()
        token = next((t for t in sorted({*first, *other}) if first.get(t) != other.get(t)), None)
        if token is not None:
            raise ValueError(
                f"the anchors' tokenizers differ: {token!r:.40} is {first.get(token)} for one and {other.get(token)} "
                "for another. One text must be one row of ids for all anchors: stitch models of one tokenizer."
            )


def check_changes(view: TransformersView) -> None:
    """Refuse to run parts of an anchor that was changed so that it gives another output in two parts.

    Raises:
        ValueError: naming the change.
    """
    problem = "" if view.is_partial else _find_problem(view)  # a part has no whole to compare with
    if problem:
        raise ValueError(
            f"anchors.{view.number} has changed since it was stitched, and cannot run in parts ({problem}): undo the "
            "change, stitch again, or run the anchor's own stitch."
        )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator] # torch gives it no types
def _find_problem(view: TransformersView) -> str:
    """Look at the modules around an anchor's layers, and check its splits again once these have changed."""

    def check_again() -> str | None:
        if is_on_meta(view.anchor):
            return None
        try:
            check_splits(view)
        except Exception as error:  # whatever a forward of the user's own raises
            return " ".join(f"{error!s:.240}".split()).removesuffix(".")
        return ""

    view.surroundings.update(view.anchor, check_again)
    return view.surroundings.problem
