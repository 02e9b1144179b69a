"""The order of images and their augmentation, as functions of the seed, the epoch and the position.

Nothing here has a state to save: neither an image's position in an epoch nor its augmentation depends on workers, on
processes, or on where a run was resumed.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from ..errors import WrongTypeError
from .batches import Batch
from .config import DataConfig
from .processes import rank
from .seeding import derive

Collate = Callable[[list[Any]], Any]  # makes a batch of items


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class SeededImages(Dataset[Any]):
    """A dataset whose items are augmented by random numbers of their own.

    Args:
        data: a dataset of (image, label) by index.
        seed: the seed of the run.
    """

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int, int]) -> Any:
        index, epoch, position = key
        number = derive(self.seed, "image", epoch, position)
        random.seed(number)
        np.random.seed(number)
        torch.random.default_generator.manual_seed(number)
        return self.data[index]


class EpochBatches(BatchSampler):
    """Batches of (index, epoch, position) over all processes together; a last incomplete step is left out.

    Args:
        data: the images, for their number.
        batch_size: the images of a micro-batch, over all processes.
        accumulate: the micro-batches of a step.
        seed: the seed of the run.
        repeated_aug: the number of times an image is repeated in a row (3: of a third of the images).
    """

    def __init__(self, data: Sized, batch_size: int, accumulate: int, seed: int, repeated_aug: int = 1) -> None:
        super().__init__(SequentialSampler(data), batch_size, drop_last=True)
        self.data, self.accumulate, self.seed, self.repeats = data, accumulate, seed, repeated_aug
        self.steps = len(data) // (batch_size * accumulate)
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Set the next epoch, and the number of its steps to skip."""
        self.epoch, self.start = epoch, start

    def order(self, epoch: int) -> list[int]:
        """List the indices of an epoch in order."""
        sampler = RepeatAugSampler(self.data, num_replicas=1, rank=0, num_repeats=self.repeats, selected_round=0)
        sampler.set_epoch(derive(self.seed, "order", epoch))
        return list(sampler)

    def __iter__(self) -> Iterator[list[Any]]:
        epoch, order = self.epoch, self.order(self.epoch)
        for number in range(self.start * self.accumulate, self.steps * self.accumulate):
            positions = range(number * self.batch_size, (number + 1) * self.batch_size)
            yield [(order[position], epoch, position) for position in positions]

    def __len__(self) -> int:
        return (self.steps - self.start) * self.accumulate


class Stream:
    """Images that come in an order of their own (timm's `wds/` and `tfds/` readers).

    Resuming within an epoch reads and skips the images before it. With workers, their random numbers (the reader's
    order, the augmentation) are a function of the seed and the epoch.

    Args:
        data: an iterable dataset that distributes itself over the processes.
        batch_size: the batch size of one process.
        steps: the steps of an epoch.
        accumulate: the micro-batches of a step.
        workers: the number of processes that read.
        seed: the seed of the run.
        collate: a function that makes a batch of items; default torch's.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        steps: int,
        accumulate: int,
        workers: int,
        seed: int,
        collate: Collate | None = None,
    ) -> None:
        self.data, self.steps, self.accumulate, self.seed = data, steps, accumulate, seed
        self.generator = torch.Generator()
        self.loader: DataLoader[Any] = DataLoader(
            data, batch_size, num_workers=workers, drop_last=True, generator=self.generator,
            worker_init_fn=ignore_signals_in_worker, collate_fn=collate,
        )  # fmt: skip
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Set the next epoch, and the number of its steps to skip."""
        self.epoch, self.start = epoch, start
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        needed, number = self.steps * self.accumulate, 0
        self.generator.manual_seed(derive(self.seed, "stream", self.epoch, rank()))
        while number < needed:  # a process with fewer images than its share starts again
            before = number
            for batch in self.loader:
                if number >= needed:
                    return
                number += 1
                if number > self.start * self.accumulate:
                    yield batch
            if number == before:
                raise ValueError("the images ended before the first batch: lower batch_size, or check the dataset.")


def count_images(data: Any, processes: int) -> int:
    """Count the images of an epoch over all processes; timm's iterable datasets give the count of one process."""
    sized: Sized = data
    if not isinstance(data, IterableDataset):
        return len(sized)
    known: int | None = getattr(getattr(data, "reader", None), "num_samples", None)
    return known or len(sized) * processes


def build_loader(data: Any, config: DataConfig, processes: int, collate: Collate | None = None) -> Any:
    """Build the loader of a run's micro-batches.

    Args:
        data: the images, from `build_dataset`.
        config: the configuration of batches and their order.
        processes: the number of processes; an iterable dataset has distributed itself over them.
        collate: a function that makes a batch of items; default torch's.

    Returns:
        A plain `DataLoader` for Accelerate to prepare and its `EpochBatches`; or, for images that come in an order of
        their own, a `Stream`, twice.

    Raises:
        ValueError: if the batch cannot be distributed, there are fewer images than it takes, or images that come in an
            order of their own are to be repeated.
    """
    batch_size, accumulate, seed = config.batch_size, config.accumulate, config.seed
    if batch_size % (accumulate * processes):
        raise ValueError(
            f"batch_size must be a multiple of {accumulate * processes} (accumulate={accumulate} micro-batches on "
            f"{processes} processes), got {batch_size}."
        )
    if isinstance(data, DataLoader):
        raise WrongTypeError(
            "train_data must be a dataset, not a DataLoader, since the batches of a run follow from its configuration: "
            "give loader.dataset, and collate=loader.collate_fn; batch_size is a field of TrainConfig."
        )
    images = count_images(data, processes)
    if images < batch_size:
        raise ValueError(f"batch_size must be at most {images}, the number of training items, got {batch_size}.")
    if isinstance(data, IterableDataset):
        if config.repeated_aug > 1:
            raise ValueError(
                f"repeated_aug must be 1 for wds/, tfds/ and hfids/ data, which cannot be read in any order, got "
                f"{config.repeated_aug}."
            )
        steps = images // batch_size
        readers = reading_processes(config.workers)
        stream = Stream(data, config.micro_batch(processes), steps, accumulate, readers, seed, collate)
        return stream, stream
    batches = EpochBatches(data, batch_size // accumulate, accumulate, seed, config.repeated_aug)
    loader: DataLoader[Any] = DataLoader(
        SeededImages(data, seed),
        batch_sampler=batches,
        num_workers=reading_processes(config.workers),
        persistent_workers=config.workers > 0,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=ignore_signals_in_worker,
        collate_fn=collate,
    )
    return loader, batches


def reading_processes(workers: int) -> int:
    """Limit the number of processes that read images to that of the CPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cpus)


def ignore_signals_in_worker(worker: int) -> None:
    """Let a worker ignore signals to its process group, which the training process handles.

    Only SIGTERM from the training process ends it, which sends that to its workers when it ends itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # names the sender; not on all systems
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait until the parent process ends this one."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def first_images(loader: Iterable[Any], count: int) -> Iterator[Tensor]:
    """Take the first `count` images of a loader, in its batches; fewer if it has fewer."""
    seen = 0
    for item in loader:
        images = Batch.of(item).inputs
        yield images[: count - seen]
        seen += len(images)
        if seen >= count:
            return


def make_mixup(config: DataConfig, model: Any, batch: int) -> Mixup | None:
    """Make timm's Mixup, which pairs the images of a process's batch; None if a configuration has none.

    Args:
        config: the configuration, with its strength.
        model: the network, with its `num_classes`.
        batch: the batch size of one process.

    Raises:
        ValueError: if the batch size is odd.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    if batch % 2:
        raise ValueError(
            f"batch_size / accumulate / processes must be even for mixup={config.mixup} and cutmix={config.cutmix}, "
            f"which pair images, got {batch}: change it, or set both to 0."
        )
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=model.num_classes)
