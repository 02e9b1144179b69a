"""Training of an SN-Net on Accelerate: each step trains some stitches, and over time all of them.

Source: SN-Net (arXiv:2302.06586), Algorithm 1. A parameter that a step did not use has no gradient, and the step leaves
it alone: no weight decay, no momentum. (The authors' runs, on torch 1.12, had zero gradients there, and so decayed it:
`dense_updates`.)

All random numbers of a step are a function of the seed and the step; the state of a run is in `run_state`.

The file is long because a run is one story, from the first batch to the last evaluation, and reads best in one place.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.batches import Batch
from ..data.dataset import build_dataset, name_classes
from ..data.loader import (
    Collate,
    Stream,
    build_loader,
    count_images,
    ignore_signals_in_worker,
    make_mixup,
    reading_processes,
    seed_all,
)
from ..data.look import inspect_before_training
from ..data.pairs import PairedImages
from ..data.seeding import derive
from ..evaluation.accuracy import evaluate
from ..evaluation.scores import Targets, check_mixed, is_one_hot, split_targets
from ..families.registry import family_of, require
from ..hub.saving import save_pretrained
from ..network.stitchable import StitchableNetwork
from ..plan.frontier import frontier_area
from ..plan.metrics import main_score, metric_of
from ..plan.results import Rows
from ..progress import progress_bar
from .config import TrainConfig
from .data_parallel import GradientAverage, average_statistics, broadcast_weights
from .distillation import StitchLoss, find_teacher
from .fsdp import is_sharded
from .interruption import Interruption
from .metrics import GROUPS, LossMeter, close_trackers, start_trackers, tracker_names
from .optimizer import tuning, update_parameters
from .run_state import RunState, note_run
from .sampling import Rule, groups_by_macs, make_rule
from .speed import set_up
from .verdict import training_report

_logger = logging.getLogger(__name__)

__all__ = ["TrainConfig", "train"]

REPORT_EVERY = 50  # steps between reports of the losses, each of which waits for the device


def train(
    model: StitchableNetwork,
    config: TrainConfig,
    *,
    train_data: Any = None,
    val_data: Any = None,
    teacher: nn.Module | None = None,
    collate: Collate | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train all stitches of a network, some of them each step.

    Args:
        model: the initialised network (`least_squares_init`), trained in place. With `ema_decay` it ends with the
            averaged weights; launched with FSDP2 it stays sharded, and `output` has the whole.
        config: the configuration of the run.
        train_data: a dataset of (image (C, H, W), label), instead of the one that `config` names; for dense networks
            the label is a mask of class numbers (H, W), or depths in metres (H, W). For models of
            transformers a dataset of mappings of tensors or lists, as `datasets` gives them, with `labels` (without
            them the text itself, for causal language models); the augmentation of `config` does not apply.
        val_data: the same for `evaluate_every`.
        teacher: a frozen classifier to distil from, instead of the one that `config` names.
        collate: a function that makes a batch of items, such as transformers' `DataCollatorWithPadding(tokenizer)`;
            default torch's.
        progress: whether to show a bar with the losses by macs and the time left.

    Returns:
        `steps`, `images` seen, `seconds`, and `loss`, the mean loss of the last epoch.

    Raises:
        ValueError: if the configuration names no images or too few for one batch, distillation has no teacher, the
            network cannot be saved in `output`, there is a checkpoint and `resume` is False, or the checkpoint is of a
            run with other values.
        OSError: if a checkpoint cannot be written, or `resume=True` and there is none.
        FloatingPointError: if the loss or a weight is no longer finite.
        OutputInUseError: a RuntimeError, if another run is training into `output`.
        RunInterrupted: a KeyboardInterrupt, after SIGTERM or Ctrl-C in a run with an `output`: the current step was
            finished, and a checkpoint written.

    Examples:
        >>> import timm, torch, timm_stitch
        >>> anchors = [timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_heads=heads,
        ...                              embed_dim=32 * heads, num_classes=4) for heads in (1, 2)]
        >>> model = timm_stitch.stitch(anchors)
        >>> data = [(torch.randn(3, 32, 32), label) for label in range(4)]
        >>> config = timm_stitch.TrainConfig(epochs=2, batch_size=4, workers=0, warmup_epochs=0)
        >>> timm_stitch.train(model, config, train_data=data, progress=False)["steps"]
        2
    """
    if config.output:
        family_of(model).check_savable(model)
    began = time.monotonic()
    run = TrainingRun(model, config, train_data, val_data, teacher, progress, collate)
    try:
        with tuning(model, config), set_up(model, config):
            run.prepare()
            run.train()
        model = run.state.result()
        note_run(model, config, run.state.step)
        if config.output and run.accelerator.is_main_process:
            save_pretrained(model, Path(config.output))
    finally:
        run.close()
    run.accelerator.wait_for_everyone()
    steps, loss = run.state.step, run.state.mean_loss
    return {"steps": steps, "images": steps * config.batch_size, "seconds": time.monotonic() - began, "loss": loss}


class TrainingRun:
    """The steps of one run, with its `state`.

    Args:
        model, config, train_data, val_data, teacher, progress, collate: the arguments of `train`.
    """

    def __init__(
        self,
        model: StitchableNetwork,
        config: TrainConfig,
        train_data: Any = None,
        val_data: Any = None,
        teacher: nn.Module | None = None,
        progress: bool = True,
        collate: Collate | None = None,
    ) -> None:
        _check_data(model, config, train_data, val_data)
        images_model: Any = model  # of timm's family, if the configuration names the data
        self.model, self.config, self.interruption = model, config, Interruption()
        self.accelerator = _make_accelerator(config)
        sharded = is_sharded(self.accelerator, config)
        self.device, processes = self.accelerator.device, self.accelerator.num_processes
        data: Any = train_data if train_data is not None else build_dataset(config, images_model, training=True)
        if val_data is None and config.evaluate_every:
            val_data = build_dataset(config, images_model, training=False)
        self.val_data, self.from_config, self.collate = val_data, train_data is None, collate
        if self.from_config and model.objective is None:
            name_classes(images_model, data)
        loader, self.order = build_loader(data, config, processes, collate)
        self.loader = loader if isinstance(loader, Stream) else self.accelerator.prepare_data_loader(loader)
        self.steps_per_epoch: int = self.order.steps
        self.total = min(self.steps_per_epoch * config.epochs, config.max_steps or math.inf)
        self.mixup = None
        if "named_data" not in model.unsupported and model.objective is None:
            self.mixup = make_mixup(config, model, config.micro_batch(processes))
        frozen, costs = find_teacher(config, teacher, model), model.costs()
        self.loss = StitchLoss(config, frozen.to(self.device) if frozen is not None else None, model.objective)
        self.macs = {stitch.stitch_id: costs.cost(stitch).macs for stitch in model.plan}
        self.rule, self.largest = _make_rule(model, config, self.macs)
        count = count_images(data, processes)
        self.state = RunState(model, config, self.accelerator, sharded, self.steps_per_epoch, count)
        start_trackers(self.accelerator, config)
        broadcast_weights(model.to(self.device))
        self.average: GradientAverage | None = None
        self.meter = LossMeter(groups_by_macs(self.macs, count=GROUPS), self.macs, self.device)
        self.bar = progress_bar(total=self.total, desc="train", progress=progress and self.accelerator.is_main_process)

    def prepare(self) -> None:
        """Make optimizer, schedule and average, and resume; call it after parameters are frozen."""
        self.state.prepare(self.meter)
        if not self.state.sharded:  # FSDP averages by itself
            self.average = GradientAverage(self.model)
        self.bar.update(self.state.step)
        if self.from_config and not self.state.step and self.accelerator.is_main_process:
            objective = self.model.objective
            classes = None if objective is None else objective.classes
            inspect_before_training(self.config, bool(self.config.evaluate_every), self.bar, classes)

    def close(self) -> None:
        """Close the bar and the trackers, and release the output."""
        if self.average is not None:
            self.average.close()
        self.bar.close()
        close_trackers(self.accelerator)
        self.state.close()

    def train(self) -> None:
        """Train to the end; in a run with an output, a signal ends it after a step, with a checkpoint."""
        if self.config.output is None:
            self.all_steps()
            return
        with self.interruption.noticed():
            self.all_steps()

    def all_steps(self) -> None:
        """Train to the end."""
        state, accumulate = self.state, self.config.accumulate
        if state.step and state.step % self.steps_per_epoch == 0:
            self.evaluate_if_due(state.step // self.steps_per_epoch)  # the run was killed before it did so
        if self.config.evaluate_every and not state.step:
            anchors = [stitch.stitch_id for stitch in self.model.plan if stitch.is_anchor]
            rows = self.evaluate(anchors)
            state.before = {row["stitch_id"]: row[main_score(rows)] for row in rows}
        while state.step < self.total:
            epoch, done = divmod(state.step, self.steps_per_epoch)
            for number, batch in enumerate(self.micro_batches(epoch, done)):
                self.micro_step(number % accumulate, batch.to(self.device, channels_last=self.config.channels_last))
                if (number + 1) % accumulate == 0:
                    self.optimizer_step()
                    self.report_and_save_if_due()
                    if state.step == self.total:
                        break
                    self.end_if_asked()
            if state.step % self.steps_per_epoch == 0:
                self.end_epoch(epoch + 1)
        if self.meter.epoch.any():
            state.mean_loss = self.meter.epoch_mean()
        if state.step % self.steps_per_epoch:  # max_steps ended it within an epoch
            self.evaluate_if_due(state.step / self.steps_per_epoch)

    def end_if_asked(self) -> None:
        """End the run after a step if there was a signal.

        Raises:
            RunInterrupted: if there was one, after the checkpoint is written.
        """
        number = self.interruption.agreed()
        if number:
            raise self.state.interrupted(number)

    def micro_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, after its first `start` steps."""
        self.order.begin(epoch, start)
        if hasattr(self.loader, "iteration"):
            self.loader.iteration = epoch
        for batch in self.loader:
            yield Batch.of(batch)

    def micro_step(self, number: int, batch: Batch) -> None:
        """Forward and backward of one micro-batch; all micro-batches of a step train the same stitches."""
        config, ids = self.config, self.rule(self.state.step)
        seed_all(derive(config.seed, "step", self.state.step, number, self.accelerator.process_index))
        inputs, targets = split_targets(self.model, batch)
        if isinstance(inputs, Tensor) and self.model.objective is None:
            inputs, targets = self.mix(inputs, targets)
        with self.accelerator.autocast():
            teacher_output = self.loss.teacher_logits(inputs)
            if len(ids) == 1:
                outputs = {ids[0]: self.model.call(inputs, ids[0])}
            else:
                outputs = self.model.forward_several(inputs, ids)
        losses = self.loss.of_each(outputs, targets, teacher_output, self.largest)
        total = torch.stack(list(losses.values())).mean()
        if self.average is not None and number + 1 == config.accumulate:
            self.average.begin(ids, total)
        self.accelerator.backward(total / config.accumulate)
        self.meter.add(losses)

    def mix(self, images: Tensor, targets: Targets) -> tuple[Tensor, Targets]:
        """Mix images and labels, which may be class numbers, one-hot, or mixed by the dataset itself.

        Raises:
            ValueError: if the labels are none of these, or are mixed already and `config` mixes too.
        """
        labels, classes = targets.labels, getattr(self.model, "num_classes", None)
        if labels.ndim == 2 and labels.shape[1] == classes:
            labels = labels.float().argmax(1) if is_one_hot(labels) else check_mixed(labels)
        if self.mixup is not None:
            if labels.ndim != 1 or labels.is_floating_point():
                raise ValueError(
                    f"labels must be class numbers for mixup={self.config.mixup} and cutmix={self.config.cutmix}, got "
                    f"{labels.dtype} of shape {tuple(labels.shape)}: set both to 0 for labels that are mixed already."
                )
            images, labels = self.mixup(images, labels)
        return images, targets._replace(labels=labels)

    def optimizer_step(self) -> None:
        """Average the gradients over all processes, clip them, and update the parameters."""
        state = self.state
        if state.scheduler is not None:
            state.scheduler.step_update(state.step)
        if self.average is not None:
            self.average.finish()
        update_parameters(self.accelerator, state.optimizer, state.parameters, self.config)
        if state.ema is not None:
            state.ema.update(self.model)
        state.step += 1
        self.bar.update()

    def report_and_save_if_due(self) -> None:
        """Report the losses and write a checkpoint, if they are due."""
        step, every = self.state.step, self.config.checkpoint_steps
        due = every is not None and step % every == 0
        ends = step % self.steps_per_epoch == 0 or step == self.total
        if due or ends or step % REPORT_EVERY == 0:
            self.report_losses()
        if (due or ends) and step % self.steps_per_epoch:  # at an epoch's end `end_epoch` saves
            self.state.save()

    def report_losses(self) -> None:
        """Show the losses since the last report, and stop if they are not finite."""
        loss, groups = self.meter.read()
        if not math.isfinite(loss):
            raise self.state.not_finite("the loss is")
        self.bar.set_postfix({"loss": f"{loss:.3f}", **{name: f"{value:.2f}" for name, value in groups.items()}})
        if getattr(self.accelerator, "trackers", None):
            rates = {f"lr/{i}": group["lr"] for i, group in enumerate(self.state.optimizer.param_groups)}
            values = {"loss/all": loss, **{f"loss/{name}": value for name, value in groups.items()}, **rates}
            self.accelerator.log(values, step=self.state.step)

    def end_epoch(self, number: int) -> None:
        """Compute the mean loss, write a checkpoint, and evaluate if it is due."""
        self.state.mean_loss = self.meter.epoch_mean()
        self.state.save()
        self.evaluate_if_due(number)

    def evaluate_if_due(self, epoch: float) -> None:
        """Evaluate after an epoch, or the part of one that `max_steps` allows, if it is due, and save the score."""
        state, every = self.state, self.config.evaluate_every
        if not every or state.evaluated_epoch == epoch or (epoch % every and state.step != self.total):
            return
        rows = self.evaluate()
        score, gain = self.score(rows)
        best, state.best, state.evaluated_epoch = gain > state.best, max(gain, state.best), epoch
        if not self.bar.disable:
            self.bar.write(f"epoch {epoch:g}: frontier area {score:.2f}{' (best)' if best else ''}")
        if getattr(self.accelerator, "trackers", None):
            self.accelerator.log({"frontier_area": score}, step=state.step)
        if state.step == self.total and self.accelerator.is_main_process:
            for line in training_report(rows, state.before):
                _logger.warning(line)
        state.save(best)

    def evaluate(self, stitch_ids: list[int] | None = None) -> Rows:
        """Evaluate stitches with the weights that the run would return now."""
        average_statistics(self.model)
        size, count = self.config.micro_batch(self.accelerator.num_processes), reading_processes(self.config.workers)
        if isinstance(self.val_data, PairedImages):
            size = self.val_data.batch_size(size)
        loader: Any = DataLoader(
            self.val_data, size, num_workers=count, worker_init_fn=ignore_signals_in_worker, collate_fn=self.collate
        )
        model = self.state.ema.module if self.state.ema is not None else self.model
        return evaluate(model, loader, stitch_ids)

    def score(self, rows: Rows) -> tuple[float, float]:
        """Compute the frontier area, the score over the log of the macs, and its gain, which is higher if better."""
        low, high, name = min(self.macs.values()), max(self.macs.values()), main_score(rows)
        gain = metric_of(name).gain
        if low == high:  # an extracted stitch has no curve
            area = float(max((row[name] for row in rows), key=gain))
        else:
            area = frontier_area(rows, low, high, score=name)
        return area, gain(area)


def _check_data(model: StitchableNetwork, config: TrainConfig, train_data: Any, val_data: Any) -> None:
    """Refuse a configuration's images for a network that needs datasets, and fields of other tasks.

    Raises:
        ValueError: naming the missing data, or the field.
    """
    if train_data is None or (val_data is None and config.evaluate_every):
        require(model, "named_data")
    config.check_task(model.objective is not None)


def _make_rule(model: StitchableNetwork, config: TrainConfig, macs: Mapping[int, int]) -> tuple[Rule, int]:
    """Make the rule that draws the stitches of each step, and find the largest anchor, from which others may learn."""
    drawn = model.stitch_ids if config.tune == "all" else [s.stitch_id for s in model.plan if not s.is_anchor]
    whole = [s.stitch_id for s in model.plan if s.is_anchor] or model.stitch_ids  # an extracted stitch has none
    anchors = sorted(whole, key=macs.__getitem__, reverse=True)
    rule = make_rule(
        config.sampling, {i: macs[i] for i in drawn}, config.seed,
        anchors=anchors, stitches=config.stitches,
        group_width=config.group_width, groups=config.groups, bias=config.group_bias, scores=config.scores,
    )  # fmt: skip
    return rule, anchors[0]


def _make_accelerator(config: TrainConfig) -> Accelerator:
    """Set up Accelerate for a run; its launcher sets the number of processes and devices."""
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    return Accelerator(
        mixed_precision=config.precision,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # a launcher's would divide again
        rng_types=[],
        log_with=tracker_names(config) or None,
        project_dir=config.output,
    )
