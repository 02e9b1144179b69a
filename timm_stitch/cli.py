"""The command line: `timm-stitch VERB`, also `python -m timm_stitch VERB`.

Each verb is a thin layer over one public function. Errors are one line and a non-zero status.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from .checkpointing import Checkpoints
from .checkpoints import convert_checkpoint
from .choosing import select
from .config import TrainConfig
from .data import build_dataset
from .distributed import leave, rank
from .evaluation import evaluate, read_rows, write_rows
from .exporting import FORMATS, export
from .frontier import pareto_frontier
from .least_squares import METHODS, least_squares_init
from .network import SNNet
from .plotting import plot_curve
from .profiling import PRECISIONS, profile
from .recipes import read_recipe, shipped_recipes
from .saving import save_pretrained
from .sharing import from_hub, list_hub, push_to_hub
from .spaces import push_space
from .stitching import meeting_points
from .training import train
from .web_page import make_page

_MODEL = "a registered name, a folder, hf-hub:USER/NAME, or several timm names to stitch (fastest first)"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options, rest = _parser().parse_known_args(argv)
    if rest and options.verb != "train":
        print(f"error: unknown arguments: {' '.join(rest)}; see timm-stitch {options.verb} --help.", file=sys.stderr)
        return 2
    options.rest = rest
    try:
        options.run(options)
    except (
        ValueError,
        TypeError,
        OSError,
        ImportError,
        RuntimeError,
        AssertionError,
        ArithmeticError,
        yaml.YAMLError,
    ) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    finally:
        leave()
    return 0


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


def _list(options: argparse.Namespace) -> None:
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


def _plan(options: argparse.Namespace) -> None:
    if len(options.model) == 2 and options.meet:
        models = [timm.create_model(name, device="meta") for name in options.model]
        _print(meeting_points(*models), options.json)
        return
    model = _load(options, pretrained=False, device="meta")
    if options.json:
        print(json.dumps(model.plan.to_dict()))
    else:
        _print(model.stitch_table(), False)


def _loader(options: argparse.Namespace, model: SNNet, training: bool = False) -> DataLoader[Any]:
    config = TrainConfig(
        dataset=options.dataset, data_dir=options.data_dir, val_split=options.split, train_split=options.split,
        auto_augment=None, color_jitter=0, hflip=0, erase=0,
    )  # fmt: skip
    data = build_dataset(config, model, training=False)
    return DataLoader(data, batch_size=options.batch_size, num_workers=options.workers, shuffle=training)


def _init(options: argparse.Namespace) -> None:
    model = _load(options)
    torch.manual_seed(options.seed)
    _initialise(model, _loader(options, model, training=True), options.images, options.method)
    save_pretrained(model, options.output)


def _initialise(model: SNNet, loader: DataLoader[Any], count: int, method: str = "joint") -> None:
    least_squares_init(model, _first(loader, count), method=method, progress=True)


def _first(loader: DataLoader[Any], count: int) -> Iterator[torch.Tensor]:
    """The first images of a loader, in batches."""
    seen = 0
    for images, _ in loader:
        yield images[: count - seen]
        seen += len(images)
        if seen >= count:
            return


def _train(options: argparse.Namespace) -> None:
    recipe = read_recipe(options.recipe, _overrides(options.rest))
    options.model, config = [recipe.model], recipe.config
    model = _load(options, pretrained=recipe.pretrained, **recipe.model_args)
    if recipe.init_images and not (config.resume and Checkpoints(Path(str(config.output)) / "checkpoints").last):
        data = build_dataset(config, model, training=False)
        generator = torch.Generator().manual_seed(config.seed)
        loader = DataLoader(
            data, batch_size=min(16, recipe.init_images), shuffle=True, num_workers=0, generator=generator
        )
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
        value = yaml.safe_load(text)
        with contextlib.suppress(ValueError):
            value = float(text) if isinstance(value, str) else value  # YAML reads 1e-4 as text
        values[flag[2:].replace("-", "_")] = value
    return values


def _eval(options: argparse.Namespace) -> None:
    model = _load(options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a launcher started several processes: join them
        model.to(Accelerator().device)
    rows = evaluate(
        model, _loader(options, model), options.stitch_ids, passes=options.passes, progress=not options.json,
        results=options.output if options.resume else None,
    )  # fmt: skip
    if rank() == 0:
        if options.output and not options.resume:
            write_rows(options.output, rows)
        _print(rows, options.json)


def _plot(options: argparse.Namespace) -> None:
    others = {Path(path).stem: read_rows(path) for path in options.beside}
    print(plot_curve(read_rows(options.results), options.output, title=options.title, others=others))


def _select(options: argparse.Namespace) -> None:
    model = _load(options)
    rows = read_rows(options.results) if options.results else None
    budgets = {k: getattr(options, k) for k in ("macs", "params", "latency_ms", "memory_mb")}
    chosen = select(model, rows, **budgets)
    known = {row["stitch_id"]: row for row in rows or []}
    row = next(row for row in model.stitch_table() if row["stitch_id"] == chosen)
    _print([row | known.get(chosen, {})], options.json)


def _profile(options: argparse.Namespace) -> None:
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


def _frontier(options: argparse.Namespace) -> None:
    _print([dict(row) for row in pareto_frontier(read_rows(options.results))], options.json)


def _extract(options: argparse.Namespace) -> None:
    small = _load(options).extract(options.stitch_id)
    save_file(small.state_dict(), options.output)
    print(
        f"{options.output}: {sum(p.numel() for p in small.parameters()):,} parameters of {small.plan.stitches[0].name}"
    )


def _export(options: argparse.Namespace) -> None:
    model, images = _load(options), None
    if options.data_dir or options.dataset:
        torch.manual_seed(0)
        images = torch.cat(list(_first(_loader(options, model, training=True), options.images)))
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


def _convert(options: argparse.Namespace) -> None:
    state, args = convert_checkpoint(options.checkpoint, options.name)
    model = timm.create_model(options.name, **args)
    model.load_state_dict(state)
    print(save_pretrained(model, options.output))


def _push(options: argparse.Namespace) -> None:
    model = _load(options)
    rows = read_rows(options.results) if options.results else None
    url = push_to_hub(
        model, options.repo, results=rows, dataset=options.dataset, split=options.split, private=options.private,
        revision=options.revision, create_pr=options.create_pr, commit_message=options.message,
    )  # fmt: skip
    print(json.dumps({"url": str(url)}) if options.json else url)


def _pull(options: argparse.Namespace) -> None:
    if options.stitch_id is not None:
        small = from_hub(options.repo, extract=options.stitch_id, revision=options.revision)
        save_file(small.state_dict(), options.output)
        print(f"{options.output}: {small.plan.stitches[0].name}")
    else:
        print(save_pretrained(from_hub(options.repo, revision=options.revision), options.output))


def _demo(options: argparse.Namespace) -> None:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="timm-stitch", description="Stitchable neural networks for timm.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str, example: str, model: bool = False, data: bool = False) -> Any:
        sub = verbs.add_parser(
            name, help=about, description=about, epilog=f"example: timm-stitch {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run)
        sub.add_argument("--json", action="store_true", help="print JSON lines for a program")
        if model:
            sub.add_argument("model", nargs="+", help=_MODEL)
            sub.add_argument("--device", default="cpu", help="where it runs (default: cpu)")
        if data:
            sub.add_argument("--data-dir", help="a folder of class folders, or the reader's root")
            sub.add_argument("--dataset", help="a timm reader: torch/…, hfds/…, wds/…, tfds/…")
            sub.add_argument("--split", default="validation", help="default: validation")
            sub.add_argument("--batch-size", type=int, default=64)
            sub.add_argument("--workers", type=int, default=0)
        return sub

    sub = verb("list", _list, "the registered networks, or those on the Hub", "list --hub deit --author timm")
    sub.add_argument("--hub", nargs="?", const="", metavar="SEARCH", help="those on the Hub, whose names hold SEARCH")
    sub.add_argument("--author", help="on the Hub: a user or an organisation")
    sub.add_argument("--limit", type=int, default=50, help="on the Hub: the most to list (default: 50)")
    sub = verb("plan", _plan, "what stitches there are, and what each costs; needs no weights",
               "plan deit_tiny_patch16_224 deit_small_patch16_224", model=True)  # fmt: skip
    sub.add_argument("--meet", action="store_true", help="of two models: where they can meet")
    sub = verb("init", _init, "initialise stitching layers by least squares and save the network",
               "init deit_tiny_patch16_224 deit_small_patch16_224 --data-dir images --split train --output net",
               model=True, data=True)  # fmt: skip
    sub.add_argument("--images", type=int, default=100)
    sub.add_argument("--method", choices=METHODS, default="joint")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--output", required=True, help="folder")
    sub = verb(
        "train",
        _train,
        "train by a recipe; any of its fields as --name value",
        "train deit_tsb --data-dir imagenet --epochs 15",
    )
    sub.add_argument(
        "recipe",
        help="a YAML file of model, model_args, pretrained, init_images and the fields of TrainConfig; or one of "
        + ", ".join(shipped_recipes()),
    )
    sub.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    sub = verb("eval", _eval, "accuracy of every stitch", "eval net --data-dir images --output results.jsonl",
               model=True, data=True)  # fmt: skip
    sub.add_argument("--stitch-ids", type=int, nargs="+")
    sub.add_argument("--resume", action="store_true", help="take the rows of these weights that --output has already")
    sub.add_argument(
        "--passes", type=int, default=1, help="spread the stitches over so many passes, each kept when done"
    )
    sub.add_argument("--output", help="JSON lines file")
    sub = verb("plot", _plot, "draw accuracy against macs", "plot results.jsonl --output curve.png")
    sub.add_argument("results")
    sub.add_argument("--output", default="curve.png")
    sub.add_argument("--title", default="")
    sub.add_argument("--beside", nargs="*", default=[], help="more results to draw beside")
    sub = verb(
        "select", _select, "the best stitch within budgets", "select net --results results.jsonl --macs 3e9", model=True
    )
    sub.add_argument("--results", help="JSON lines of eval; default what the network's own table knows")
    for name in ("macs", "params", "latency-ms", "memory-mb"):
        sub.add_argument(f"--{name}", type=float)
    sub = verb("profile", _profile, "latency, throughput and memory of every stitch on this device",
               "profile net --batch-size 8 --save", model=True)  # fmt: skip
    sub.add_argument("--batch-size", type=int, default=1)
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32")
    sub.add_argument("--repeats", type=int, default=10, help="rounds; each figure is their median (default: 10)")
    sub.add_argument("--quick", action="store_true", help="time parts and add them up")
    sub.add_argument("--compile", action="store_true", help="measure it compiled")
    sub.add_argument("--stitch-ids", type=int, nargs="+")
    sub.add_argument("--output", help="JSON lines file")
    sub.add_argument("--save", action="store_true", help="keep the figures in the network's folder, for select")
    sub = verb("frontier", _frontier, "the rows that no other beats at its cost", "frontier results.jsonl")
    sub.add_argument("results")
    sub = verb("extract", _extract, "one stitch's weights to a safetensors file",
               "extract net --stitch-id 24 --output 24.safetensors", model=True)  # fmt: skip
    sub.add_argument("--stitch-id", type=int, required=True)
    sub.add_argument("--output", required=True)
    sub = verb("export", _export, "stitches as ONNX files or torch.export programs that share their weights",
               "export net --stitch-ids 3 24 56 --output deploy", model=True, data=True)  # fmt: skip
    sub.add_argument("--stitch-ids", type=int, nargs="+", help="default: the stitch that is set")
    sub.add_argument("--output", required=True, help="a new or empty folder")
    sub.add_argument("--format", choices=FORMATS, default="onnx")
    sub.add_argument("--quantize", choices=["int8"], help="needs images (--data-dir) to measure what it changes")
    sub.add_argument("--images", type=int, default=256, help="how many of them (default: 256)")
    sub.add_argument("--image-size", type=int, help="default: the network's")
    sub = verb("convert", _convert, "one of the authors' checkpoints to a folder in our layout",
               "convert snnet_deit.pth snnet_deit_tsb --output net")  # fmt: skip
    sub.add_argument("checkpoint")
    sub.add_argument("name")
    sub.add_argument("--output", required=True)
    sub = verb("push", _push, "put a network on the Hub; the token is huggingface_hub's own",
               "push net --repo user/name --results results.jsonl", model=True)  # fmt: skip
    sub.add_argument("--repo", required=True, help="user/name")
    sub.add_argument("--results", help="JSON lines of eval")
    sub.add_argument("--dataset", help="that they were evaluated on, e.g. imagenet-1k")
    sub.add_argument("--split", help="of that dataset")
    sub.add_argument("--private", action="store_true", default=None)
    sub.add_argument("--revision", help="branch")
    sub.add_argument("--create-pr", action="store_true")
    sub.add_argument("--message", help="commit message")
    sub = verb("pull", _pull, "fetch a network from the Hub to a folder, or one stitch to a safetensors file",
               "pull user/name --stitch-id 24 --output 24.safetensors")  # fmt: skip
    sub.add_argument("repo", help="user/name")
    sub.add_argument("--stitch-id", type=int, help="fetch only what this stitch uses")
    sub.add_argument("--revision", help="branch, tag or commit")
    sub.add_argument("--output", required=True)
    sub = verb("demo", _demo, "a web page with an image, a slider along the frontier, and what changes",
               "demo net --examples cat.jpg dog.jpg", model=True)  # fmt: skip
    sub.add_argument("--port", type=int, help="default: the first free one from 7860")
    sub.add_argument("--share", action="store_true", help="also at a public address, through gradio's servers")
    sub.add_argument("--examples", nargs="+", default=[], metavar="IMAGE", help="images to choose from on the page")
    sub.add_argument("--push", metavar="USER/SPACE", help="instead put the page of hf-hub:USER/NAME on the Hub")
    sub.add_argument("--private", action="store_true", default=None, help="of a Space that is made now")
    return parser
