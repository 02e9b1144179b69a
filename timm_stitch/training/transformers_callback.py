"""transformers' `Trainer` on a stitched network: our sampler as a callback."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..families.registry import is_stitchable
from ..network.stitchable import StitchableNetwork
from .sampling import uniform


class StitchSamplerCallback(TrainerCallback):
    """Train another stitch each step, the same on every process: `Trainer(..., callbacks=[StitchSamplerCallback()])`.

    Evaluation and saving use the stitch that was set.

    Args:
        seed: the seed of the draw; default the seed of the `TrainingArguments`.

    Examples:
        >>> trainer = Trainer(model, arguments, callbacks=[timm_stitch.StitchSamplerCallback()])  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed
        self._set: int | None = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        network = stitched(model)
        self._set = network.stitch_id if self._set is None else self._set
        network.stitch_id = uniform(
            network.stitch_ids, args.seed if self.seed is None else self.seed, state.global_step
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        if self._set is not None:
            stitched(model).stitch_id = self._set
            self._set = None


def stitched(model: nn.Module) -> StitchableNetwork:
    """Find the SN-Net inside a model of transformers, however wrapped.

    Raises:
        TypeError: if there is none.
    """
    for module in model.modules():
        if is_stitchable(module):
            return module
    raise TypeError(
        f"there is no stitched network in {type(model).__name__}: load one that timm_stitch saved, by "
        "AutoModelForImageClassification.from_pretrained(folder), after import timm_stitch."
    )
