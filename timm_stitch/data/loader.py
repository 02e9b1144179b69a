"""The order of images, and their augmentation, as functions of the seed, the epoch and the position.

Nothing here has a state to save: what image comes at which position of an epoch, and how it is
augmented, does not depend on workers, processes, or on where a run was resumed.
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

from .batches import Batch
from .config import DataConfig
from .processes import rank
from .seeding import derive


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class SeededImages(Dataset[Any]):
    """A dataset whose items are augmented by random numbers of their own.

    Args:
        data: of (image, label) by index.
        seed: of the run.
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
        batch_size: images of one micro-batch, over all processes.
        accumulate: micro-batches of a step.
        seed: of the run.
        repeated_aug: how often an image comes in a row (of a third of the images for 3, and so on).
    """

    def __init__(self, data: Any, batch_size: int, accumulate: int, seed: int, repeated_aug: int = 1) -> None:
        super().__init__(SequentialSampler(data), batch_size, drop_last=True)
        self.data, self.accumulate, self.seed, self.repeats = data, accumulate, seed, repeated_aug
        self.steps = len(data) // (batch_size * accumulate)
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Say which epoch comes next, and after which of its steps to begin."""
        self.epoch, self.start = epoch, start

    def order(self, epoch: int) -> list[int]:
        """The indices of one epoch in their order."""
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

    Resuming within an epoch reads and leaves what was seen. With workers, what they draw (the reader's order, the
    augmentation) is a function of the seed and the epoch.

    Args:
        data: an iterable dataset that shares itself out to the processes.
        batch_size: of one process.
        steps, accumulate: of an epoch.
        workers: processes that read.
        seed: of the run.
        collate: makes a batch of items; default torch's.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        steps: int,
        accumulate: int,
        workers: int,
        seed: int,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        self.data, self.steps, self.accumulate, self.seed = data, steps, accumulate, seed
        self.generator = torch.Generator()
        self.loader: DataLoader[Any] = DataLoader(
            data, batch_size, num_workers=workers, drop_last=True, generator=self.generator,
            worker_init_fn=leave_signals, collate_fn=collate,
        )  # fmt: skip
        self.epoch, self.start = 0, 0

    def begin(self, epoch: int, start: int = 0) -> None:
        """Say which epoch comes next, and after which of its steps to begin."""
        self.epoch, self.start = epoch, start
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        wanted, number = self.steps * self.accumulate, 0
        self.generator.manual_seed(derive(self.seed, "stream", self.epoch, rank()))
        while number < wanted:  # a process may have fewer images than its share: it begins again
            before = number
            for batch in self.loader:
                if number >= wanted:
                    return
                number += 1
                if number > self.start * self.accumulate:
                    yield batch
            if number == before:
                raise ValueError("the images ended before the first batch: lower batch_size, or check the dataset.")


def count_images(data: Any, processes: int) -> int:
    """The images of an epoch over all processes: an iterable dataset says, as timm's do, how many one of them has."""
    sized: Sized = data
    if not isinstance(data, IterableDataset):
        return len(sized)
    known: int | None = getattr(getattr(data, "reader", None), "num_samples", None)
    return known or len(sized) * processes


def build_loader(
    data: Any, config: DataConfig, processes: int, collate: Callable[[list[Any]], Any] | None = None
) -> Any:
    """The micro-batches of a run.

    Args:
        data: the images, from `build_dataset`.
        config: into what batches, and in which order.
        processes: that take part; an iterable dataset has shared itself out to them.
        collate: makes a batch of items; default torch's.

    Returns:
        A plain `DataLoader` for Accelerate to prepare and its `EpochBatches`; or, for images that come
        in an order of their own, a `Stream`, twice.

    Raises:
        ValueError: if the batch cannot be shared out, there are fewer images than it takes, or images that come in
            an order of their own are to be repeated.
    """
    batch_size, accumulate, seed = config.batch_size, config.accumulate, config.seed
    if batch_size % (accumulate * processes):
        raise ValueError(
            f"batch_size={batch_size} cannot be shared out to {processes} processes in accumulate={accumulate} "
            f"micro-batches: give a multiple of {accumulate * processes}."
        )
    images = count_images(data, processes)
    if images < batch_size:
        raise ValueError(f"batch_size={batch_size} is more than the {images} images: lower it.")
    if isinstance(data, IterableDataset):
        if config.repeated_aug > 1:
            raise ValueError(
                f"repeated_aug={config.repeated_aug} needs images that can be read in any order: set it to 1 for wds/, "
                "tfds/ and hfids/ data."
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
        worker_init_fn=leave_signals,
        collate_fn=collate,
    )
    return loader, batches


def reading_processes(workers: int) -> int:
    """How many processes read images: as many as asked for, and no more than there are CPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cpus)


def leave_signals(worker: int) -> None:
    """Have a process that reads images leave signals, which its whole group gets, to the one that trains.

    It ends by SIGTERM from that one alone, which so ends its readers when it ends itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which says who sends; not on all systems
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """Wait for a process to end this one."""
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


def make_mixup(config: DataConfig, classes: int, batch: int) -> Mixup | None:
    """Make timm's Mixup, which pairs the images of one process's batch; None if a configuration has none.

    Args:
        config: says how much of it.
        classes: of the labels.
        batch: images that one process has at a time.

    Raises:
        ValueError: if the batch has no pairs.
    """
    if config.mixup == 0 and config.cutmix == 0:
        return None
    if batch % 2:
        raise ValueError(
            f"mixup={config.mixup} and cutmix={config.cutmix} pair images, but a process has {batch} at a time: make "
            "batch_size / accumulate / processes even, or set both to 0."
        )
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes)
