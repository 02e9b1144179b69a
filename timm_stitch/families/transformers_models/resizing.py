"""More or fewer tokens: the embeddings of all anchors are resized together, or none of them is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ...network.modes import evaluating
from .inputs import TextInputs
from .opening import make_batch
from .views import TransformersView

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def resize_embeddings(views: Sequence[TransformersView], **arguments: Any) -> None:
    """Resize the embeddings of tokens of all anchors, or of none.

    Args:
        views: the anchors.
        **arguments: the arguments of transformers' `resize_token_embeddings`.

    Raises:
        ValueError: naming the anchor that cannot be resized; nothing is changed then.
    """
    if any(view.is_partial for view in views):
        raise ValueError(
            "this is one stitch of a larger network, and lacks some of its embeddings: resize those of the larger "
            "network, then extract the stitch."
        )
    with ExitStack() as stack:
        for number, view in enumerate(views):
            stack.enter_context(_unchanged_on_error(view.anchor))
            try:
                view.anchor.resize_token_embeddings(**arguments)
                _try_last_token(view)
            except Exception as error:
                message = " ".join(str(error).split())
                raise ValueError(
                    f"anchors.{number}, a {type(view.anchor).__name__}, cannot be resized, so that no anchor was "
                    f"({type(error).__name__}: {message:.200}): save each anchor resized, and stitch those."
                ) from error


@torch.no_grad()
def _try_last_token(view: TransformersView) -> None:
    """Run a model on its last token: other tables may have one entry a token, too."""
    weight = view.anchor.get_input_embeddings().weight
    if isinstance(weight, torch.Tensor) and not weight.is_meta:
        with evaluating(view.anchor):
            batch = make_batch(view.anchor, rows=1)
            view.call(TextInputs.of({**batch, "input_ids": torch.full_like(batch["input_ids"], len(weight) - 1)}), None)


@contextmanager
def _unchanged_on_error(model: PreTrainedModel) -> Iterator[None]:
    """Restore the modules, tensors and sizes of a model if the block raises an error."""
    modules = [
        (module, dict(module.__dict__), dict(module._modules), dict(module._parameters), dict(module._buffers))
        for module in model.modules()
    ]
    data = [(parameter, parameter.data) for parameter in model.parameters()]
    configs = {id(c): (c, dict(vars(c))) for m, *_ in modules if (c := getattr(m, "config", None)) is not None}
    texts = {id(t): (t, dict(vars(t))) for c, _ in configs.values() if (t := c.get_text_config()) is not None}
    try:
        yield
    except BaseException:
        for module, attributes, *containers in modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, values in zip(("_modules", "_parameters", "_buffers"), containers, strict=True):
                module.__dict__[name].clear()
                module.__dict__[name].update(values)
        for parameter, tensor in data:
            parameter.data = tensor
        for config, fields in (configs | texts).values():
            vars(config).clear()
            vars(config).update(fields)
        raise
