"""The state of a training run: weights, moments and counts, in a checkpoint and back again.

All randomness of a run is a function of its seed and the step, so a checkpoint holds no state of random numbers. On a
CPU, a run that was killed and resumed ends with the weights of an uninterrupted one, bit for bit.
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim import Optimizer

from ..anchors.meta_device import meta_copy
from ..families.registry import family_of
from ..network.stitchable import StitchableNetwork
from .checkpointing import Checkpoints, check_finite, check_same
from .config import MAY_CHANGE_ON_RESUME, TrainConfig
from .data_parallel import average_statistics
from .fsdp import any_process, full_states, load_optimizer, local_tensors, shard
from .interruption import RunInterrupted, lock_output
from .metrics import LossMeter
from .optimizer import make_optimizer, make_scheduler


def open_checkpoints(config: TrainConfig) -> Checkpoints | None:
    """Open the checkpoints in a run's output; None if it has no output."""
    return Checkpoints(Path(config.output) / "checkpoints", config.keep) if config.output else None


class RunState:
    """The state of a run, and the checkpoints that hold it.

    Args:
        model: the network.
        config: the configuration of the run.
        accelerator: the Accelerator of the run.
        sharded: whether the run was launched with FSDP2.
        steps_per_epoch: the number of steps per epoch.
        images: the number of images per epoch, over all processes; a resumed run must have as many.

    Attributes:
        step: the number of finished steps.
        mean_loss: the mean loss of the last epoch.
        best: the highest score of an evaluation.
        evaluated_epoch: the last epoch that was evaluated; a fraction at the end of `max_steps`.
        before: the score of each anchor before the first step, by its stitch id, if there are evaluations.
    """

    meter: LossMeter
    parameters: list[nn.Parameter]
    optimizer: Optimizer
    scheduler: Scheduler | None
    ema: ModelEmaV3 | None

    def __init__(
        self,
        model: StitchableNetwork,
        config: TrainConfig,
        accelerator: Accelerator,
        sharded: bool,
        steps_per_epoch: int,
        images: int,
    ) -> None:
        self.model, self.config, self.accelerator, self.sharded = model, config, accelerator, sharded
        self.steps_per_epoch, self.images = steps_per_epoch, images
        self.step, self.mean_loss, self.best, self.evaluated_epoch = 0, math.nan, -math.inf, 0.0
        self.before: dict[int, float] = {}
        self.store = open_checkpoints(config)
        self._lock: int | None = None
        if self.store is not None and accelerator.is_main_process:
            self._lock = lock_output(self.store.folder)
            self.store.clean()

    def close(self) -> None:
        """Release the output for another run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def prepare(self, meter: LossMeter) -> None:
        """Make optimizer, schedule and average, and resume if there is a run; call it after parameters are frozen.

        Args:
            meter: the meter of the run's losses.

        Raises:
            OSError: if `resume=True` and there is no checkpoint.
            ValueError: if there is a checkpoint and `resume` is False, or it is of a run with other values.
        """
        config, model, self.meter = self.config, self.model, meter
        kept = self._checkpoint()
        if kept is not None:
            model.load_state_dict(kept["model"])
        optimizer = make_optimizer(model, config)
        self.scheduler = make_scheduler(optimizer, config, self.steps_per_epoch)
        if self.sharded:
            self.unsharded = meta_copy(model, buffers=False)
            self.optimizer = shard(self.accelerator, model, optimizer)
        else:
            self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay is not None else None
        if kept is not None:
            self._restore(kept)

    def _checkpoint(self) -> dict[str, Any] | None:
        """Read the last checkpoint, if this run continues it."""
        last = self.store.last if self.store is not None else None
        if self.store is None or last is None:
            if self.config.resume is True:
                raise FileNotFoundError(
                    f"there is no checkpoint in {self.config.output!r} to resume: use resume='auto'."
                )
            return None
        if not self.config.resume:
            raise ValueError(
                f"the output has a run already, {str(last)!r}: set resume='auto' to continue it, or another output."
            )
        kept = self.store.load(last) or {}
        values = self._values()
        if self.config.resume == "extend":
            self._check_extended(kept["run"])
            values["epochs"] = kept["run"]["epochs"]
        defaults = {field.name: field.default for field in fields(self.config) if field.name in values}
        check_same({**defaults, **kept["run"]}, values, self.store.folder)  # an earlier version had fewer fields
        return kept

    def _check_extended(self, before: dict[str, Any]) -> None:
        """Refuse to extend a run to fewer epochs than it had."""
        if self.config.epochs < before["epochs"]:
            raise ValueError(
                f"epochs must be at least {before['epochs']} with resume='extend', those of the run in "
                f"{self.config.output!r}, got {self.config.epochs}."
            )

    def _restore(self, kept: dict[str, Any]) -> None:
        """Restore all but the weights from a checkpoint."""
        if self.sharded:
            load_optimizer(self.model, self.optimizer, kept["optimizer"])
        else:
            self.optimizer.load_state_dict(kept["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(kept["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(kept["scaler"])
        self.meter.epoch.copy_(kept["epoch_losses"])
        self.step, self.mean_loss = kept["step"], kept["mean_loss"]
        self.best, self.evaluated_epoch = kept["best"], kept["scored"]
        self.before = kept.get("anchors", {})

    def save(self, best: bool = False) -> None:
        """Write a checkpoint, if the run has an output.

        Args:
            best: whether to keep it as the best one too.

        Raises:
            FloatingPointError: if a weight is no longer finite; nothing is written then.
            OSError: if it cannot be written.
        """
        average_statistics(self.model)
        if self.ema is not None:
            average_statistics(self.ema.module)
        bad = check_finite(local_tensors(self.model))
        if self.sharded:
            bad = any_process(bad, self.accelerator.device)
        if bad is not None:
            raise self.not_finite(f"the weights {bad!r} are")
        if self.store is None:
            return
        losses = self.accelerator.reduce(self.meter.epoch, "mean")
        if self.sharded:
            weights, moments = full_states(self.model, self.optimizer)
        else:
            weights, moments = self.model.state_dict(), self.optimizer.state_dict()
        if self.accelerator.is_main_process:
            state = {
                "run": self._values(),
                "model": weights,
                "optimizer": moments,
                "ema": self.ema.module.state_dict() if self.ema is not None else None,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "epoch_losses": losses,
                "best": self.best,
                "scored": self.evaluated_epoch,
                "anchors": self.before,
                "mean_loss": self.mean_loss,
            }
            self.store.save(self.step, state, best)

    def _values(self) -> dict[str, Any]:
        """List the values that a run must share with this one to continue it."""
        values = {name: value for name, value in asdict(self.config).items() if name not in MAY_CHANGE_ON_RESUME}
        return values | {"images": self.images, "stitches of the network": len(self.model.plan)}

    def result(self) -> StitchableNetwork:
        """Return the trained network: averaged, if there is an average; whole on the main process, if sharded."""
        if self.ema is not None:
            self.model.load_state_dict(self.ema.module.state_dict())
        if not self.sharded:
            return self.model
        weights, _ = full_states(self.model, self.optimizer)
        if self.accelerator.is_main_process:
            self.unsharded.load_state_dict(weights, assign=True)
        return self.unsharded

    def interrupted(self, number: int) -> RunInterrupted:
        """Write a checkpoint, and make the exception that ends the run.

        Args:
            number: the number of the signal.
        """
        self.save()
        last = self.store.last if self.store is not None else None
        return RunInterrupted(
            f"interrupted after step {self.step}: the checkpoint is {str(last)!r}. Set resume='auto' (--resume auto) "
            "to continue from it.",
            number,
        )

    def not_finite(self, what: str) -> FloatingPointError:
        """Make the error of a run whose loss or weights are no longer finite."""
        last = self.store.last if self.store is not None else None
        epoch = max(self.step - 1, 0) // self.steps_per_epoch + 1
        kept = f"The last good checkpoint is {str(last)!r}" if last else "There is no good checkpoint"
        return FloatingPointError(
            f"{what} no longer finite (step {self.step}, epoch {epoch}). {kept}. "
            f"Lower lr={self.config.lr}, set clip_grad, or use precision='bf16' instead of 'fp16'."
        )


def note_run(model: StitchableNetwork, config: TrainConfig, steps: int) -> None:
    """Record on the network how it was trained, for its card, and clear results of the weights before."""
    unused = {"output", "data_dir", "workers"}
    if family_of(model).takes_texts(model):
        of_images = {f.name for f in fields(config) if f.metadata.get("group") in ("augmentation", "masks and depth")}
        unused |= of_images - {"smoothing"}
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in unused}
    run = {"steps": steps} | {key: value for key, value in values.items() if value is not None}
    model.trained = {**model.trained, "runs": [*model.trained.get("runs", []), run]}
    model.results.clear()
