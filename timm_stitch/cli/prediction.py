"""`predict` and `info`: what a network says of an image or a text, and what it is."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..plan.costs import short
from ..plan.frontier import with_score
from ..plan.metrics import main_score, metric_of
from .numbers import MOST_IMAGES, in_range, positive
from .options import add_verb, load_model, print_json, print_rows

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `predict` and `info` to the command line."""
    verb = add_verb(
        verbs,
        "predict",
        run_predict,
        "predict the classes, masks or depths of images, or the labels or continuations of texts",
        "predict net cat.jpg photos --macs 2e9",
    )
    _add_network(verb)
    verb.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image file or folder; for networks of texts a text or a file of lines; - reads stdin",
    )
    verb.add_argument("--stitch-id", type=int, action=in_range(0), help="stitch to run (default: the network's own)")
    verb.add_argument(
        "--macs",
        type=float,
        action=positive(),
        help="limit of multiply-adds per image or text, for the best stitch within",
    )
    verb.add_argument("--params", type=float, action=positive(), help="limit of parameters, for the best stitch within")
    verb.add_argument(
        "--latency-ms", type=float, action=positive(), help="limit of milliseconds per call, as measured by profile"
    )
    verb.add_argument(
        "--top", type=int, action=in_range(1, 1_000_000), default=5, help="classes or words to print (default: 5)"
    )
    verb.add_argument(
        "--batch-size",
        type=int,
        action=in_range(1, MOST_IMAGES),
        default=64,
        help="images per call (default: 64); texts run one by one",
    )
    verb.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        help="folder or repository of the tokenizer, for a network of texts without one",
    )

    group = verb.add_argument_group("masks and depth")
    group.add_argument(
        "--output", default="predictions", metavar="FOLDER",
        help="folder of masks (PNG of class numbers with a palette) or depths (16-bit PNG of millimetres), each under "
        "its image's name (default: predictions)",
    )  # fmt: skip
    group.add_argument("--npy", action="store_true", help="write arrays of numpy instead: class numbers, or metres")
    group.add_argument(
        "--short-side", type=int, action=in_range(1, 16384),
        help="shorter side to which images are resized (default: their own, or the one size that the network takes)",
    )  # fmt: skip

    verb = add_verb(
        verbs,
        "info",
        run_info,
        "describe a network: anchors, stitches, known accuracies, size, and where its weights come from",
        "info snnet_deit_tsb",
    )
    _add_network(verb)


def _add_network(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs=1, metavar="NET", help="network: a registered name, a folder, or hf-hub:USER/NAME")
    verb.add_argument("--device", default="cpu", help="device of the network (default: cpu)")
    verb.set_defaults(num_classes=None)


def run_predict(options: argparse.Namespace) -> None:
    """Print the predictions for images or texts."""
    from ..deployment.class_names import task_of
    from ..deployment.prediction import find_images, find_texts, predict_images, predict_maps, predict_texts
    from ..evaluation.selection import select
    from ..families.registry import family_of

    budgets = {name: getattr(options, name) for name in ("macs", "params", "latency_ms")}
    if options.stitch_id is not None and any(value is not None for value in budgets.values()):
        raise ValueError("give --stitch-id or a limit (--macs, --params, --latency-ms), not both.")
    model = load_model(options)
    if options.stitch_id is not None:
        model.set_stitch(options.stitch_id)
    elif any(value is not None for value in budgets.values()):
        model.set_stitch(select(model, **budgets))
    if options.tokenizer is not None:
        family_of(model).set_tokenizer(model, options.tokenizer)
    if family_of(model).takes_texts(model):
        rows = predict_texts(model, find_texts(options.inputs), top=options.top)
    elif task_of(model) != "classification":
        rows = predict_maps(
            model, find_images(options.inputs), options.output, top=options.top, short_side=options.short_side,
            npy=options.npy,
        )  # fmt: skip
    else:
        files = find_images(options.inputs)
        rows = predict_images(model, files, top=options.top, batch_size=options.batch_size)
    if options.json:
        for row in rows:
            print_json(row)
    else:
        listed = list(rows)
        print_rows([line for row in listed for line in _lines(row)], False)
        if any("classes" in row or "depth" in row for row in listed):
            print(f"written to {options.output}", file=sys.stderr)


def _lines(row: dict[str, Any]) -> Iterable[dict[str, object]]:
    """Make the lines of a prediction in a table, one for each class."""
    if "depth" in row:
        return [{"input": row["input"], **{f"{name} m": value for name, value in row["depth"].items()}}]
    if "classes" in row:
        return [
            {"input": "" if n else row["input"], "label": one["label"], "%": 100 * one["share"]}
            for n, one in enumerate(row["classes"])
        ]
    if "output" in row:
        return [{"input": row["input"], "output": row["output"]}]
    return [
        {"input": "" if n else row["input"], "label": one["label"], "%": 100 * one["probability"]}
        for n, one in enumerate(row["top"])
    ]


def run_info(options: argparse.Namespace) -> None:
    """Print what a network is."""
    from ..models.published import ALIASES, NETWORKS, is_registered

    name = options.model[0].partition(".")[0]
    registered = is_registered(name) and not Path(options.model[0]).is_dir()
    model = load_model(options, weights=False) if registered else load_model(options)
    table = model.stitch_table()
    macs = [row["macs"] for row in table]
    score = main_score(table)
    accuracies = [row[score] for row in with_score(table, score)]
    trained: dict[str, Any] = dict(model.trained)
    network = NETWORKS.get(ALIASES.get(name, name)) if registered else None
    facts: dict[str, object] = {
        "name": options.model[0],
        "family": model.family,
        "anchors": list(network.anchors if network is not None else model.plan.anchor_names),
        "stitches": model.num_stitches,
        "stitch_id": model.stitch_id,
        "macs": [min(macs), max(macs)],
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "megabytes": sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6,
        "rows_with_accuracy": len(accuracies),
        f"best_{score}": max(accuracies, key=metric_of(score).gain, default=None),
        "rows_with_latency": sum("latency_ms" in row for row in table),
        "from": trained.get("pulled_from") or ("timm's registry" if registered else _kind(options.model[0])),
        "base_models": list(trained.get("base_models", ())),
        "runs": len(trained.get("runs", ())),
    }
    if registered:
        facts["weights"] = _origin(model)
    if options.json:
        print_json(facts)
        return
    for key, value in facts.items():
        shown = _shown(key, value)
        if shown:
            print(f"{key.replace('_', ' ') + ':':20}{shown}")


def _kind(name: str) -> str:
    return "a folder" if Path(name).is_dir() else "a file" if Path(name).is_file() else "the Hub"


def _origin(model: Any) -> str:
    """The address of a registered network's weights."""
    cfg = model.pretrained_cfg or {}
    return str(cfg.get("hf_hub_id") or cfg.get("url") or "those of its anchors, with untrained stitching layers")


def _shown(key: str, value: object) -> str:
    """Write a fact for people; nothing where there is none."""
    if value is None or value in ([], 0):
        return "0" if key == "stitch_id" else ""
    if key == "macs" and isinstance(value, list):
        return f"{short(value[0])} to {short(value[1])} per input"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
