"""Helpers of all verbs: their parsers, the options for a network and for images, and printed rows."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any, TextIO

from ..choices import DIRECTIONS
from ..errors import library_errors
from ..plan.timings import Row
from .numbers import MOST_IMAGES, in_range, positive
from .tables import print_table

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from ..data.config import DataConfig

    Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


_json_streams: list[TextIO] = []  # stdout as it was, while `json_alone` holds


def add_verb(
    verbs: Verbs, name: str, run: Callable[[argparse.Namespace], int | None], about: str, example: str, **parser: Any
) -> argparse.ArgumentParser:
    """Add a verb to the command line.

    Args:
        verbs: the verbs of the command line.
        name: the name of the verb.
        run: the function of the verb's options that does its work; it may return the exit status.
        about: a description, as a phrase in the imperative.
        example: an example of its use, without the program's name.
        parser: further arguments of its `ArgumentParser`.

    Returns:
        The parser of the verb, with the option `--json`.
    """
    added = verbs.add_parser(
        name, help=about, description=about, epilog=f"example: timm-stitch {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter, **parser,
    )  # fmt: skip
    added.set_defaults(run=run, parser=added)
    added.add_argument("--json", action="store_true", help="print JSON for programs")
    return added


def add_model(verb: argparse.ArgumentParser) -> None:
    """Add the options that name a network, for `load_model`."""
    verb.add_argument(
        "model",
        nargs="+",
        help="network: a registered name, a folder, hf-hub:USER/NAME, or several models to stitch, fastest first, each "
        "a name, a folder or a checkpoint of timm's train.py",
    )
    verb.add_argument("--device", default="cpu", help="device of the network (default: cpu)")
    verb.add_argument(
        "--num-classes",
        type=int,
        action=in_range(0, 1_000_000),
        help="classes (default: those of the weights; others get a new classifier)",
    )


def add_plan_options(verb: argparse.ArgumentParser) -> None:
    """Add the options of `stitch` that choose the stitches of several models, for `load_model`."""
    group = verb.add_argument_group("plan of several models")
    group.add_argument("--direction", choices=DIRECTIONS, help="order of the anchors (default: fast_to_slow)")
    group.add_argument("--kernel-size", type=int, action=in_range(1), help="blocks in the sliding window (default: 2)")
    group.add_argument("--stride", type=int, action=in_range(1), help="blocks between two windows (default: 1)")
    group.add_argument(
        "--nearest", action=argparse.BooleanOptionalAction, help="join neighbours in size only (default: yes)"
    )
    group.add_argument(
        "--rank", type=int, action=in_range(0), help="rank of the layers' low-rank updates (default: 0, plain layers)"
    )


def plan_options(options: argparse.Namespace) -> dict[str, Any]:
    """Get the options of `add_plan_options` that are given.

    Raises:
        ValueError: if they are given for one network, which has its plan.
    """
    names = ("direction", "kernel_size", "stride", "nearest", "rank")
    values = {name: getattr(options, name) for name in names if getattr(options, name, None) is not None}
    if values and len(options.model) == 1:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in values)
        raise ValueError(
            f"{options.model[0]!r} is one network with its own plan: {flags} chooses that of several models."
        )
    return values


def add_images(verb: argparse.ArgumentParser, split: str, required: bool = True) -> None:
    """Add the options that name images, for `load_images`."""
    verb.set_defaults(needs_images=required)
    verb.add_argument("--data-dir", help="folder of images in class folders, or root folder of the dataset's reader")
    verb.add_argument("--dataset", help="dataset by the name of a timm reader: torch/…, hfds/…, wds/… or tfds/…")
    verb.add_argument("--split", default=split, help=f"split of the dataset (default: {split})")
    verb.add_argument(
        "--dataset-args",
        default="null",
        metavar="YAML",
        help="arguments of the dataset's reader, e.g. '{input_key: img, target_key: fine_label}'",
    )
    verb.add_argument(
        "--batch-size", type=int, action=in_range(1, MOST_IMAGES), default=64, help="images per batch (default: 64)"
    )
    verb.add_argument(
        "--workers", type=int, action=in_range(0), default=0, help="processes that read images (default: 0, none)"
    )


def add_labels(verb: argparse.ArgumentParser) -> None:
    """Add the options that say what the labels of masks and depths mean, for `label_fields`."""
    group = verb.add_argument_group("masks and depth")
    group.add_argument(
        "--ignore-label",
        type=int,
        action=in_range(0, 65535),
        default=255,
        help="label of pixels that do not count (default: 255)",
    )
    group.add_argument(
        "--reduce-zero-label", action="store_true", help="take 0 for no class, and all other labels one less"
    )
    group.add_argument(
        "--depth-scale",
        type=float,
        action=positive(),
        default=0.001,
        help="metres for one unit of the depth files (default: 0.001)",
    )
    group.add_argument("--eigen-crop", action="store_true", help="count only Eigen's crop of NYUv2's images")


def label_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Get the fields of `DataConfig` that `add_labels` added; none for verbs without them."""
    names = ("ignore_label", "reduce_zero_label", "depth_scale", "eigen_crop", "short_side")
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


def load_model(options: argparse.Namespace, feature: str = "", weights: bool = True) -> Any:
    """Load the network that the command line names.

    Args:
        options: the options of the verb.
        feature: a feature that the network must have, by its name in `unsupported`.
        weights: whether to load weights; without them the network is on the meta device.

    Raises:
        OSError: if there is no such folder of images, or files cannot be fetched.
        ValueError: if there is no such network, it lacks the feature, or no images are named that the verb needs.
    """
    if hasattr(options, "needs_images") and (options.needs_images or options.data_dir):
        from ..data.config import check_data_dir

        check_data_dir(_data_config(options))  # before weights are fetched
    from ..families.registry import require
    from ..hub.loading import load

    check_device(options.device)
    plan = plan_options(options)
    classes = {} if options.num_classes is None else {"num_classes": options.num_classes}
    network = load(options.model, pretrained=weights, device=options.device if weights else "meta", **classes, **plan)
    return require(network, feature)


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here.

    Raises:
        ValueError: with torch's reason.
    """
    import torch

    with library_errors(f"--device {device} cannot be used", RuntimeError, AssertionError):
        torch.empty(0, device=device)


def set_threads(threads: int | None, default: int | None = None) -> None:
    """Set the number of CPU threads of the network, if one is given.

    Raises:
        ValueError: if it is not positive.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be 1 or more, got {threads}.")
    if threads or default:
        import torch

        torch.set_num_threads(threads or default or 1)


def load_images(options: argparse.Namespace, model: Any, shuffled: bool = False) -> DataLoader[Any]:
    """Load the images that the command line names, prepared as for evaluation."""
    from torch.utils.data import DataLoader, IterableDataset

    from ..data.dataset import build_dataset
    from ..data.loader import reading_processes
    from ..data.pairs import PairedImages
    from ..families.registry import require

    require(model, "named_data")
    config = _data_config(options)
    data = build_dataset(config, model, training=shuffled, augment=False)
    shuffle = shuffled and not isinstance(data, IterableDataset)  # an iterable dataset has its own order
    size = data.batch_size(config.batch_size) if isinstance(data, PairedImages) else config.batch_size
    return DataLoader(data, size, shuffle=shuffle, num_workers=reading_processes(config.workers))


def _data_config(options: argparse.Namespace) -> DataConfig:
    """Read the options of `add_images` and `add_labels`."""
    from ..data.config import DataConfig
    from ..data.yaml_text import read_argument

    return DataConfig(
        dataset=options.dataset, data_dir=options.data_dir, val_split=options.split, train_split=options.split,
        dataset_args=read_argument(options.dataset_args), batch_size=options.batch_size, workers=options.workers,
        **label_fields(options),
    )  # fmt: skip


def images_fingerprint(options: argparse.Namespace, model: Any) -> str:
    """Compute a fingerprint of the choice and preparation of images, which hides the name of their folder."""
    from ..data.dataset import image_config
    from ..families.registry import require

    require(model, "named_data")
    folder = os.path.realpath(options.data_dir) if options.data_dir else None
    choice: tuple[object, ...] = (
        options.dataset,
        folder,
        options.split,
        options.dataset_args,
        sorted(image_config(model).items()),
    )
    choice += () if model.objective is None else (sorted(label_fields(options).items()),)
    return hashlib.blake2b(repr(choice).encode(), digest_size=8).hexdigest()


@contextmanager
def json_alone() -> Iterator[None]:
    """Keep stdout for `print_json`: whatever else is printed meanwhile goes to stderr."""
    _json_streams.append(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_streams.pop()


def print_json(value: object) -> None:
    """Print a value as one line of JSON, at once; numbers that are not finite, which JSON lacks, become null."""
    print(json.dumps(_finite(value), allow_nan=False), file=_json_streams[-1] if _json_streams else None, flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_path(path: object, as_json: bool) -> None:
    """Print where a verb has written to."""
    if as_json:
        print_json({"path": str(path)})
    else:
        print(path)


def print_url(url: object, as_json: bool) -> None:
    """Print the address of what a verb has put on the Hub."""
    if as_json:
        print_json({"url": str(url)})
    else:
        print(url)


def print_rows(rows: Sequence[Row], as_json: bool) -> None:
    """Print rows as JSON lines, or as a table for people."""
    if not as_json:
        print_table(rows)
        return
    for row in rows:
        print_json(row)
