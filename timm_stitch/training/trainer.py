"""Train an SN-Net: each step some of its stitches, all of them over time, on Accelerate.

Source: SN-Net (arXiv:2302.06586), Algorithm 1. A parameter that a step did not use has no gradient and
is left alone by that step: no weight decay, no momentum. (The authors' runs, on torch 1.12, had zero
gradients there, and so decayed it: `dense_updates`.)

All that is random in a step is a function of the seed and the step, so a run that was killed and
resumed ends, on CPU, with the weights of one left alone, bit for bit.

Imports torch, timm, Accelerate and the layers below.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.dataset import build_dataset
from ..data.loader import Stream, build_loader, count_images, make_mixup, seed_all
from ..data.seeding import derive
from ..evaluation.accuracy import evaluate
from ..hub.saving import rebuild_args, save_pretrained
from ..network.network import SNNet
from ..plan.frontier import frontier_area
from .checkpointing import Checkpoints, check_finite, check_same
from .config import FREE, TrainConfig
from .data_parallel import average_gradients, average_statistics, broadcast_weights
from .distillation import StitchLoss, find_teacher
from .fsdp import anywhere, hollow, is_sharded, load_optimizer, own_parts, shard, whole_states
from .metrics import GROUPS, LossMeter, finish_trackers, start_trackers, tracker_names
from .optimizer import finish_step, make_optimizer, make_scheduler, tuning
from .sampling import groups_by_macs, make_rule

__all__ = ["TrainConfig", "train"]

LOOK_EVERY = 50  # steps between two looks at the losses, each of which waits for the device


def train(
    model: SNNet,
    config: TrainConfig,
    *,
    train_data: Any = None,
    val_data: Any = None,
    teacher: nn.Module | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train all stitches of a network, some of them each step.

    Args:
        model: the network, initialised (`least_squares_init`); trained in place. With `ema_decay` it ends
            with the averaged weights; launched with FSDP2 it stays sharded, and `output` has the whole.
        config: how.
        train_data: a dataset of (image (C, H, W), label), instead of the one that `config` names.
        val_data: the same for `evaluate_every`.
        teacher: a frozen classifier to distil from, instead of the one that `config` names.
        progress: show a bar with the losses by macs and the time left.

    Returns:
        `steps`, `images` seen, `seconds`, and `loss`: its mean over the last epoch.

    Raises:
        ValueError: if the configuration names no images, too few for one batch, or distillation has no
            teacher; if the network could not be saved in `output`; if there is a checkpoint and `resume` is
            False, or of a run with other values.
        OSError: if a checkpoint cannot be written, or `resume=True` and there is none.
        FloatingPointError: if the loss or a weight is no longer finite.
    """
    if config.output:
        rebuild_args(model)  # what could not be saved at the end is refused before the first step
    run = _Run(model, config, train_data, val_data, teacher, progress)
    with tuning(model, config.tune):
        try:
            run.resume()
            run.go()
        finally:
            run.bar.close()
            finish_trackers(run.accelerator)
    if run.ema is not None:
        model.load_state_dict(run.ema.module.state_dict())
    if run.sharded:
        weights, _ = whole_states(model, run.optimizer)
        model = run.hollow
        if run.accelerator.is_main_process:
            model.load_state_dict(weights, assign=True)
    note_run(model, config, run.step)
    if config.output and run.accelerator.is_main_process:
        save_pretrained(model, Path(config.output))
    run.accelerator.wait_for_everyone()
    seconds = time.monotonic() - run.began
    return {"steps": run.step, "images": run.step * config.batch_size, "seconds": seconds, "loss": run.mean_loss}


def note_run(model: SNNet, config: TrainConfig, steps: int) -> None:
    """Record on the network how it was trained, for its card, and forget accuracies of the weights before."""
    private = ("output", "data_dir", "workers")
    values = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in private}
    run = {"steps": steps} | {key: value for key, value in values.items() if value is not None}
    model.trained = {**model.trained, "runs": [*model.trained.get("runs", []), run]}
    model.forget()


class _Run:
    """One training run: its parts, and how far it is."""

    def __init__(
        self,
        model: SNNet,
        config: TrainConfig,
        train_data: Any,
        val_data: Any,
        teacher: nn.Module | None,
        progress: bool,
    ) -> None:
        self.model, self.config, self.began = model, config, time.monotonic()
        AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a launcher's would divide again
            rng_types=[],
            log_with=tracker_names(config) or None,
            project_dir=config.output,
        )
        self.sharded = is_sharded(self.accelerator, config)
        self.data = train_data if train_data is not None else build_dataset(config, model, training=True)
        if val_data is None and config.evaluate_every:
            val_data = build_dataset(config, model, training=False)
        self.val_data = val_data
        processes = self.accelerator.num_processes
        loader, self.order = build_loader(
            self.data, config.batch_size, config.accumulate, processes, config.seed, config.repeated_aug, config.workers
        )
        self.loader = loader if isinstance(loader, Stream) else self.accelerator.prepare_data_loader(loader)
        self.steps_per_epoch = self.order.steps
        self.total = min(self.steps_per_epoch * config.epochs, config.max_steps or math.inf)
        self.device = self.accelerator.device
        self.mixup = make_mixup(config, model.num_classes, config.batch_size // (config.accumulate * processes))
        guide = find_teacher(config, teacher, model)
        self.loss = StitchLoss(config, guide.to(self.device) if guide is not None else None)
        table = model.costs()
        self.macs = {stitch.stitch_id: table.cost(stitch).macs for stitch in model.plan}
        learns = model.stitch_ids if config.tune == "all" else [s.stitch_id for s in model.plan if not s.is_anchor]
        whole = [s.stitch_id for s in model.plan if s.is_anchor] or model.stitch_ids  # an extracted stitch has none
        anchors = sorted(whole, key=self.macs.__getitem__, reverse=True)
        self.largest = anchors[0]
        self.rule = make_rule(
            config.sampling, {i: self.macs[i] for i in learns}, config.seed,
            anchors=anchors, stitches=config.stitches,
            group_width=config.group_width, groups=config.groups, bias=config.group_bias, scores=config.scores,
        )  # fmt: skip
        self.store = Checkpoints(Path(config.output) / "checkpoints", config.keep) if config.output else None
        if self.store is not None and self.accelerator.is_main_process:
            self.store.clean()
        start_trackers(self.accelerator, config)
        model.to(self.device)
        broadcast_weights(model)
        self.meter = LossMeter(groups_by_macs(self.macs, count=GROUPS), self.macs, self.device)
        self.bar = tqdm(total=self.total, desc="train", disable=not (progress and self.accelerator.is_main_process))
        self.step, self.mean_loss, self.best, self.scored = 0, math.nan, -math.inf, 0

    # ── before and after ──────────────────────────────────────────────────────────────────────────

    def resume(self) -> None:
        """Make optimiser, schedule and average, now that it is known what is frozen; resume if there is a run."""
        config, model = self.config, self.model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        state = self._kept()
        if state is not None:
            model.load_state_dict(state["model"])
        optimizer = make_optimizer(model, config)
        self.scheduler = make_scheduler(optimizer, config, self.steps_per_epoch)
        if self.sharded:
            self.hollow = hollow(model)
            self.optimizer = shard(self.accelerator, model, optimizer)
            self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        else:
            self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.ema = ModelEmaV3(model, decay=config.ema_decay) if config.ema_decay is not None else None
        if state is None:
            return
        if self.sharded:
            load_optimizer(model, self.optimizer, state["optimizer"])
        else:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.meter.epoch.copy_(state["epoch_losses"])
        self.step, self.mean_loss = state["step"], state["mean_loss"]
        self.best, self.scored = state["best"], state["scored"]
        self.bar.update(self.step)

    def _kept(self) -> dict[str, Any] | None:
        """The last checkpoint, if this run is to continue it."""
        last = self.store.last if self.store is not None else None
        if self.store is None or last is None:
            if self.config.resume is True:
                raise FileNotFoundError(
                    f"there is no checkpoint in {self.config.output!r} to resume: use resume='auto'."
                )
            return None
        if not self.config.resume:
            raise ValueError(
                f"there is a run already, {str(last)!r}: set resume='auto' to continue it, or another output."
            )
        state = self.store.load(last) or {}
        check_same(state["run"], self._values(), self.store.folder)
        return state

    def save(self, best: bool = False) -> None:
        """Write a checkpoint; a network that is no longer finite is none."""
        average_statistics(self.model)
        if self.ema is not None:
            average_statistics(self.ema.module)
        bad = check_finite(own_parts(self.model))
        if self.sharded:
            bad = anywhere(bad, self.device)
        if bad is not None:
            raise self._not_finite(f"the weights {bad!r} are")
        if self.store is None:
            return
        losses = self.accelerator.reduce(self.meter.epoch, "mean")
        weights, moments = whole_states(self.model, self.optimizer) if self.sharded else (
            self.model.state_dict(), self.optimizer.state_dict(),
        )  # fmt: skip
        if self.accelerator.is_main_process:
            state = {
                "run": self._values(),
                "model": weights,
                "optimizer": moments,
                "ema": self.ema.module.state_dict() if self.ema is not None else None,
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None,
                "epoch_losses": losses,
                "best": self.best,
                "scored": self.scored,
                "mean_loss": self.mean_loss,
            }
            self.store.save(self.step, state, best)

    def _values(self) -> dict[str, Any]:
        """What a run that continues this one must have equal."""
        values = {k: v for k, v in asdict(self.config).items() if k not in FREE}
        images = count_images(self.data, self.accelerator.num_processes)
        return values | {"images": images, "stitches of the network": len(self.model.plan)}

    def _not_finite(self, what: str) -> FloatingPointError:
        last = self.store.last if self.store is not None else None
        epoch = max(self.step - 1, 0) // self.steps_per_epoch + 1
        kept = f"The last good checkpoint is {str(last)!r}" if last else "There is no good checkpoint"
        return FloatingPointError(
            f"{what} no longer finite (step {self.step}, epoch {epoch}). {kept}. "
            f"Lower lr={self.config.lr}, set clip_grad, or use precision='bf16' instead of 'fp16'."
        )

    # ── the steps ─────────────────────────────────────────────────────────────────────────────────

    def go(self) -> None:
        """Train to the end."""
        if self.step and self.step % self.steps_per_epoch == 0:
            self.judge(self.step // self.steps_per_epoch)  # where a run was killed before it did so
        while self.step < self.total:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            self.order.begin(epoch, done)
            if hasattr(self.loader, "iteration"):
                self.loader.iteration = epoch
            for part, (images, labels) in enumerate(self._batches()):
                self.part(part % self.config.accumulate, images.to(self.device), labels.to(self.device))
                if (part + 1) % self.config.accumulate == 0:
                    self.finish_step()
                    if self.step == self.total:
                        break
            if self.step % self.steps_per_epoch == 0:
                self.finish_epoch(epoch + 1)
        if self.meter.epoch.any():
            self.mean_loss = self.meter.finish_epoch()

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            yield batch[0], batch[1]

    def part(self, number: int, images: Tensor, labels: Tensor) -> None:
        """Forward and backward of one part of a step; all parts of a step train the same stitches."""
        config, ids = self.config, self.rule(self.step)
        seed_all(derive(config.seed, "step", self.step, number, self.accelerator.process_index))
        targets = labels
        if self.mixup is not None:
            images, targets = self.mixup(images, labels)
        with self.accelerator.autocast():
            guide = self.loss.guide(images)
            if len(ids) == 1:
                logits = {ids[0]: self.model(images, stitch_id=ids[0])}
            else:
                logits = self.model.forward_several(images, ids)
        losses = self.loss.each(logits, targets, guide, self.largest)
        total = torch.stack(list(losses.values())).mean()
        self.accelerator.backward(total / config.accumulate)
        self.meter.add(losses)

    def finish_step(self) -> None:
        """Average, clip, step; now and then look at the losses and write a checkpoint."""
        if self.scheduler is not None:
            self.scheduler.step_update(self.step)
        if not self.sharded:  # FSDP has averaged them
            average_gradients(self.parameters)
        finish_step(self.accelerator, self.optimizer, self.parameters, self.config)
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        self.bar.update()
        every = self.config.checkpoint_steps
        due = bool(every) and self.step % every == 0  # type: ignore[operator]
        ends = self.step % self.steps_per_epoch == 0 or self.step == self.total
        if due or ends or self.step % LOOK_EVERY == 0:
            self.look()
        if (due or ends) and self.step % self.steps_per_epoch:  # at an epoch's end `finish_epoch` saves
            self.save()

    def look(self) -> None:
        """Show the losses since the last look, and stop if they are not finite."""
        loss, groups = self.meter.read()
        if not math.isfinite(loss):
            raise self._not_finite("the loss is")
        self.bar.set_postfix({"loss": f"{loss:.3f}", **{name: f"{value:.2f}" for name, value in groups.items()}})
        if getattr(self.accelerator, "trackers", None):
            rates = {f"lr/{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
            values = {"loss/all": loss, **{f"loss/{name}": value for name, value in groups.items()}, **rates}
            self.accelerator.log(values, step=self.step)

    def finish_epoch(self, number: int) -> None:
        """Mean loss, a checkpoint, and evaluation if it is due."""
        self.mean_loss = self.meter.finish_epoch()
        self.save()
        self.judge(number)

    def judge(self, number: int) -> None:
        """Evaluate after an epoch if it is due, and keep the checkpoint with its score."""
        every = self.config.evaluate_every
        if not every or self.scored == number or (number % every and self.step != self.total):
            return
        score = self.score()
        best, self.best, self.scored = score > self.best, max(score, self.best), number
        if not self.bar.disable:
            self.bar.write(f"epoch {number}: frontier area {score:.2f}{' (best)' if best else ''}")
        if getattr(self.accelerator, "trackers", None):
            self.accelerator.log({"frontier_area": score}, step=self.step)
        self.save(best)

    def score(self) -> float:
        """The frontier area (top-1 over the log of the macs) of the weights that the run would give now."""
        average_statistics(self.model)
        size = max(self.config.batch_size // (self.config.accumulate * self.accelerator.num_processes), 1)
        loader: DataLoader[Any] = DataLoader(self.val_data, batch_size=size, num_workers=self.config.workers)
        rows = evaluate(self.ema.module if self.ema is not None else self.model, loader)
        low, high = min(self.macs.values()), max(self.macs.values())
        if low == high:  # an extracted stitch has no curve
            return float(max(row["top1"] for row in rows))
        return frontier_area(rows, low, high)
