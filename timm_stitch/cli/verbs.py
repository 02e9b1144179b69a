"""What each verb of the command line does: a thin layer over one public function.

Imports all of the package; `cli` has the arguments.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from ..data.dataset import build_dataset, image_config
from ..data.processes import rank
from ..deployment.demo import make_page
from ..deployment.exporting import export
from ..deployment.spaces import push_space
from ..evaluation.accuracy import evaluate
from ..evaluation.plotting import plot_curve
from ..evaluation.profiling import profile
from ..evaluation.selection import select
from ..hub.json_files import STITCHES_FILE, read_stitches
from ..hub.pull import from_hub
from ..hub.push import list_hub, push_to_hub
from ..hub.saving import save_pretrained
from ..models.checkpoints import convert_checkpoint
from ..models.published import published_table
from ..network.network import SNNet
from ..network.stitching import meeting_points
from ..plan.frontier import pareto_frontier
from ..plan.results import read_rows, write_rows
from ..training.checkpointing import Checkpoints
from ..training.config import TEXTS, TrainConfig
from ..training.least_squares import least_squares_init
from ..training.recalibration import recalibrate
from ..training.recipe import read_recipe
from ..training.trainer import train


def _load(options: argparse.Namespace, pretrained: bool = True, **kwargs: Any) -> SNNet:
    """The network that the command line names."""
    names = options.model
    if len(names) > 1:
        model = timm.create_model("snnet", anchors=names, pretrained=pretrained, **kwargs)
    else:
        name = f"local-dir:{names[0]}" if Path(names[0]).is_dir() else names[0]
        if ":" not in name and not timm.is_model(name.split(".")[0]):
            known = ", ".join(timm.list_models("snnet*"))
            raise ValueError(
                f"there is no folder and no model {name!r}: expected a folder, hf-hub:USER/NAME or {known}."
            )
        model = timm.create_model(name, pretrained=pretrained, **kwargs)
    if not isinstance(model, SNNet):
        raise ValueError(f"{names[0]!r} is one network, not a stitchable one: name several to stitch them.")
    return model if "device" in kwargs else model.to(getattr(options, "device", "cpu"))


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    """Rows as JSON lines, or as a table for people."""
    if as_json:
        for row in rows:
            print(json.dumps(row))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *cells]) for i in range(len(columns))]
    for line in [columns, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def run_list(options: argparse.Namespace) -> None:
    """Print the registered networks, or those on the Hub."""
    if options.hub is not None:
        rows = list_hub(options.hub or None, author=options.author, limit=options.limit)
        if not rows and not options.json:
            print("the Hub lists none.")
            return
        _print(rows, options.json)
        return
    rows = []
    for name in timm.list_models("snnet*"):
        if name != "snnet":
            model = timm.create_model(name, device="meta")
            tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
            anchors, weights = " + ".join(model.plan.anchor_names), ", ".join(tags)
            rows.append({"name": name, "stitches": model.num_stitches, "anchors": anchors, "weights": weights})
    _print(rows, options.json)


def run_plan(options: argparse.Namespace) -> None:
    """Print what stitches there are, or where two models can meet."""
    if len(options.model) == 2 and options.meet:
        models = [timm.create_model(name, device="meta") for name in options.model]
        _print(meeting_points(*models), options.json)
        return
    model = _load(options, pretrained=False, device="meta")
    if options.json:
        print(json.dumps(model.plan.to_dict()))
    else:
        _print(model.stitch_table(), False)


def _loader(options: argparse.Namespace, model: SNNet, some: bool = False) -> DataLoader[Any]:
    """The images that the command line names, prepared as for evaluation; `some` of them are drawn at random."""
    config = TrainConfig(
        dataset=options.dataset, data_dir=options.data_dir, val_split=options.split, train_split=options.split,
        dataset_args=yaml.safe_load(options.dataset_args), batch_size=options.batch_size,
    )  # fmt: skip
    data = build_dataset(config, model, training=some, augment=False)
    shuffle = some and not isinstance(data, IterableDataset)  # which has an order of its own
    return DataLoader(data, options.batch_size, shuffle=shuffle, num_workers=options.workers)


def _mark(options: argparse.Namespace, model: SNNet) -> str:
    """A fingerprint of which images these are and how they are prepared; a folder's name stays private in it."""
    folder = os.path.realpath(options.data_dir) if options.data_dir else None
    parts = (options.dataset, folder, options.split, options.dataset_args, sorted(image_config(model).items()))
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def run_init(options: argparse.Namespace) -> None:
    """Initialise by least squares and save."""
    model = _load(options)
    torch.manual_seed(options.seed)
    _initialise(model, _loader(options, model, some=True), options.images, options.method)
    save_pretrained(model, options.output)


def _initialise(model: SNNet, loader: DataLoader[Any], count: int, method: str = "joint") -> None:
    least_squares_init(model, _first(loader, count), method=method, progress=True)


def _first(loader: DataLoader[Any], count: int) -> Iterator[torch.Tensor]:
    """The first images of a loader, in batches."""
    seen = 0
    for images, *_ in loader:
        yield images[: count - seen]
        seen += len(images)
        if seen >= count:
            return


def run_train(options: argparse.Namespace) -> None:
    """Train by a recipe."""
    recipe = read_recipe(options.recipe, _overrides(options.rest))
    options.model, config = [recipe.model], recipe.config
    model = _load(options, pretrained=recipe.pretrained, **recipe.model_args)
    if recipe.init_images and not (config.resume and Checkpoints(Path(str(config.output)) / "checkpoints").last):
        data = build_dataset(config, model, training=True, augment=False)
        generator = torch.Generator().manual_seed(config.seed)
        size, shuffle = min(16, recipe.init_images), not isinstance(data, IterableDataset)
        loader = DataLoader(data, size, shuffle=shuffle, generator=generator)
        _initialise(model, loader, recipe.init_images)
    log = train(model, config)
    if rank() == 0:
        print(
            json.dumps(log)
            if options.json
            else f"{log['steps']} steps in {log['seconds']:.0f} s, loss {log['loss']:.3f}"
        )


def _overrides(rest: Sequence[str]) -> dict[str, Any]:
    """`--lr 1e-4 --epochs 3` as values; a recipe's fields are described in `TrainConfig`."""
    if len(rest) % 2 or not all(flag.startswith("--") for flag in rest[::2]):
        raise ValueError(f"cannot read {' '.join(rest)}: give fields as --name value, e.g. --lr 1e-4 --epochs 15.")
    values = {}
    for flag, text in zip(rest[::2], rest[1::2], strict=True):
        name, value = flag[2:].replace("-", "_"), yaml.safe_load(text)
        with contextlib.suppress(ValueError):
            value = float(text) if isinstance(value, str) else value  # YAML reads 1e-4 as text
        values[name] = text if name in TEXTS and value is not None else value
    return values


def run_eval(options: argparse.Namespace) -> None:
    """Evaluate stitches, on one process or several."""
    model = _load(options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a launcher started several processes: join them
        model.to(Accelerator().device)
    rows = evaluate(
        model, _loader(options, model), options.stitch_ids, passes=options.passes, progress=not options.json,
        results=options.output if options.resume else None, data=_mark(options, model),
    )  # fmt: skip
    if rank() == 0:
        if options.output and not options.resume:
            write_rows(options.output, rows)
        _print(rows, options.json)


def run_plot(options: argparse.Namespace) -> None:
    """Draw a curve to a file."""
    others = {Path(source).stem: _rows(source) for source in options.beside}
    path = plot_curve(_rows(options.results), options.output, title=options.title, others=others)
    print(json.dumps({"path": str(path)}) if options.json else path)


def _rows(source: str) -> list[dict[str, Any]]:
    """Evaluated rows: of a file that `eval` wrote, of a saved network's folder, or published ones by name."""
    path = Path(source)
    if not path.exists() and timm.is_model(source.split(".")[0]):
        rows = published_table(source.split(".")[0]).get("stitches", [])
    else:
        rows = read_stitches(path / STITCHES_FILE)["stitches"] if path.is_dir() else read_rows(path)
    known = [row for row in rows if row.get("top1") is not None]
    if not known:
        raise ValueError(
            f"{source!r} has no row with a top1: evaluate it first, timm-stitch eval {source} --output FILE."
        )
    return known


def run_select(options: argparse.Namespace) -> None:
    """Print the best stitch within budgets."""
    model = _load(options)
    rows = read_rows(options.results) if options.results else None
    budgets = {k: getattr(options, k) for k in ("macs", "params", "latency_ms", "memory_mb")}
    chosen = select(model, rows, **budgets)
    known = {row["stitch_id"]: row for row in rows or []}
    row = next(row for row in model.stitch_table() if row["stitch_id"] == chosen)
    _print([row | known.get(chosen, {})], options.json)


def run_profile(options: argparse.Namespace) -> None:
    """Measure stitches on this device."""
    if options.save and not (len(options.model) == 1 and Path(options.model[0]).is_dir()):
        raise ValueError(f"--save keeps figures in a network's folder, and {options.model[0]!r} is none: use --output.")
    model = _load(options)
    if options.compile:
        model.compile()
    rows = profile(
        model, options.batch_size, options.device, stitch_ids=options.stitch_ids, precision=options.precision,
        repeats=options.repeats, quick=options.quick, progress=not options.json,
    )  # fmt: skip
    if options.output:
        write_rows(options.output, rows)
    if options.save:
        save_pretrained(model, options.model[0])
    if options.json:
        _print(rows, True)
        return
    hidden = ("batch_size", "precision", "profiled_on", "weights", "latency_error")
    _print([{k: v for k, v in row.items() if k not in hidden} for row in rows], False)
    print(f"batch {options.batch_size}, {options.precision}, on {rows[0]['profiled_on']}", end="")
    print(f"; sums of parts, off by {rows[0]['latency_error']:.1%} (median)" if options.quick else "")


def run_frontier(options: argparse.Namespace) -> None:
    """Print the Pareto frontier of rows."""
    _print([dict(row) for row in pareto_frontier(_rows(options.results))], options.json)


def run_extract(options: argparse.Namespace) -> None:
    """Save one stitch's weights."""
    _save_alone(_load(options).extract(options.stitch_id), options)


def _save_alone(small: SNNet, options: argparse.Namespace) -> None:
    """One stitch's weights to a file, written beside and renamed."""
    path, name = Path(options.output), small.plan.stitches[0].name
    beside = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        save_file(small.state_dict(), beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    params = sum(p.numel() for p in small.parameters())
    row = {"path": str(path), "stitch_id": options.stitch_id, "name": name, "params": params}
    print(json.dumps(row) if options.json else f"{path}: {params:,} parameters of {name}")


def run_recalibrate(options: argparse.Namespace) -> None:
    """Measure BatchNorm's statistics again and save."""
    model = _load(options)
    if options.stitch_id is not None:
        model = model.extract(options.stitch_id, copy=True)
    torch.manual_seed(options.seed)
    images = _first(_loader(options, model, some=True), options.images)
    if not recalibrate(model, images, options.stitch_id, progress=not options.json):
        raise ValueError("this network has no BatchNorm: there is nothing to recalibrate.")
    if options.stitch_id is not None:
        _save_alone(model, options)
    else:
        path = save_pretrained(model, options.output)
        print(json.dumps({"path": str(path)}) if options.json else path)


def run_export(options: argparse.Namespace) -> None:
    """Write stitches as ONNX files or programs."""
    model, images = _load(options), None
    if options.data_dir or options.dataset:
        torch.manual_seed(0)
        images = torch.cat(list(_first(_loader(options, model, some=True), options.images)))
    manifest = export(
        model, options.output, options.stitch_ids, format=options.format, quantize=options.quantize, images=images,
        image_size=options.image_size, progress=not options.json,
    )  # fmt: skip
    if options.json:
        print(json.dumps(manifest))
        return
    shown = ("stitch_id", "name", "macs", "params", "file", "agreement")
    rows = [{k: row[k] for k in shown if k in row} for row in manifest["stitches"]]
    for row, full in zip(rows, manifest["stitches"], strict=True):
        row["max_difference"] = f"{full['max_difference']:.1e}"
    _print(rows, False)
    print(f"{options.output}: {manifest['bytes']:,} bytes for tensors of {manifest['union_bytes']:,}.")


def run_convert(options: argparse.Namespace) -> None:
    """Save one of the authors' checkpoints as a network of ours."""
    state, args = convert_checkpoint(options.checkpoint, options.name)
    model = timm.create_model(options.name, **args)
    model.load_state_dict(state)
    print(save_pretrained(model, options.output))


def run_push(options: argparse.Namespace) -> None:
    """Put a network on the Hub."""
    model = _load(options)
    rows = read_rows(options.results) if options.results else None
    url = push_to_hub(
        model, options.repo, results=rows, dataset=options.dataset, split=options.split, private=options.private,
        revision=options.revision, create_pr=options.create_pr, commit_message=options.message,
    )  # fmt: skip
    print(json.dumps({"url": str(url)}) if options.json else url)


def run_pull(options: argparse.Namespace) -> None:
    """Fetch a network, or one stitch, from the Hub."""
    if options.stitch_id is not None:
        _save_alone(from_hub(options.repo, extract=options.stitch_id, revision=options.revision), options)
    else:
        print(save_pretrained(from_hub(options.repo, revision=options.revision), options.output))


def run_demo(options: argparse.Namespace) -> None:
    """Serve the web page, or push it as a Space."""
    if options.push:
        url = push_space(options.model[0], options.push, examples=options.examples, private=options.private)
        print(json.dumps({"url": url}) if options.json else url)
        return
    title = " + ".join(Path(name).name if Path(name).is_dir() else name for name in options.model)
    page = make_page(_load(options), title=title, examples=options.examples)
    _, url, shared = page.launch(
        server_port=options.port, share=options.share, quiet=options.json, prevent_thread_lock=True
    )
    if options.json:
        print(json.dumps({"url": url, "shared": shared}), flush=True)
    page.block_thread()
