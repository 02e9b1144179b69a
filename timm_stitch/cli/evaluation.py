"""`eval`, `plot`, `select`, `profile` and `frontier`: accuracy, speed, and the choice of a stitch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import ENGINES, SERVED_PRECISIONS
from ..models.published import is_registered, published_table
from ..plan.frontier import pareto_frontier
from ..plan.metrics import METRICS, main_score
from ..plan.results import Rows, check_one_network, check_overwrite, read_rows, write_rows
from ..plan.timings import call_times, latency_key
from .numbers import MOST_IMAGES, MOST_THREADS, in_range, positive
from .options import (
    add_images,
    add_labels,
    add_model,
    add_verb,
    images_fingerprint,
    load_images,
    load_model,
    print_path,
    print_rows,
    set_threads,
)

if TYPE_CHECKING:
    from .options import Verbs

_RESULTS = (
    "JSON lines file of eval, folder of a saved network, hf-hub:USER/NAME, or registered name for its authors' results"
)


def add_verbs(verbs: Verbs) -> None:
    """Add `eval`, `plot`, `select`, `profile` and `frontier` to the command line."""
    _add_eval(verbs)
    verb = add_verb(
        verbs,
        "plot",
        run_plot,
        "draw accuracy, or another score, against multiply-adds",
        "plot results.jsonl --beside earlier.jsonl snnet_deit_tsb --output curve.png",
    )
    verb.add_argument("results", help=_RESULTS)
    verb.add_argument("--output", help="image file to write (default: curve.png)")
    verb.add_argument("--html", action="store_true", help="write an interactive page instead (default: curve.html)")
    verb.add_argument("--title", default="", help="title of the plot")
    _add_score(verb)
    verb.add_argument("--beside", nargs="*", default=[], metavar="RESULTS", help="further results to draw faintly")

    verb = add_verb(
        verbs,
        "select",
        run_select,
        "select the best stitch within budgets",
        "select net --results results.jsonl --macs 3e9",
    )
    add_model(verb)
    verb.add_argument("--results", help="JSON lines file of eval (default: the results saved with the network)")
    verb.add_argument("--macs", type=float, action=positive(), help="limit of multiply-adds per image or text")
    verb.add_argument("--params", type=float, action=positive(), help="limit of parameters")
    verb.add_argument(
        "--latency-ms", type=float, action=positive(), help="limit of milliseconds per call, as measured by profile"
    )
    verb.add_argument(
        "--memory-mb", type=float, action=positive(), help="limit of memory in MB, as measured by profile"
    )
    verb.add_argument(
        "--batch-size", type=int, action=in_range(1, MOST_IMAGES), help="images in the call that --latency-ms limits"
    )
    _add_score(verb)
    _add_profile(verbs)
    verb = add_verb(
        verbs, "frontier", run_frontier, "print the rows that no other beats at its cost", "frontier results.jsonl"
    )
    verb.add_argument("results", help=_RESULTS)
    _add_score(verb)


def _add_score(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--score", choices=METRICS, metavar="METRIC",
        help=f"metric to rank by, in its own direction: {', '.join(METRICS)} (default: the first of them in the rows)",
    )  # fmt: skip


def _add_eval(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "eval",
        run_eval,
        "measure the accuracy of every stitch, or mIoU, or errors of depth",
        "eval net --data-dir images --output results.jsonl",
    )
    add_model(verb)
    add_images(verb, "validation")
    add_labels(verb)
    verb.add_argument(
        "--short-side",
        type=int,
        action=in_range(1, 16384),
        help="shorter side to which images with masks or depth are resized (default: their own)",
    )
    verb.add_argument(
        "--stitch-ids",
        type=int,
        action=in_range(0),
        nargs="+",
        metavar="ID",
        help="stitches to evaluate (default: all)",
    )
    verb.add_argument("--resume", action="store_true", help="keep rows that --output has already")
    verb.add_argument(
        "--passes",
        type=int,
        action=in_range(1),
        default=1,
        help="passes over the images; each saves its rows (default: 1)",
    )
    verb.add_argument("--output", help="JSON lines file to write")
    verb.add_argument("--save", action="store_true", help="add the rows to the network's folder, for select")


def _check_folder(options: argparse.Namespace) -> None:
    """Refuse `--save` where there is no folder of a network to save into."""
    if not (len(options.model) == 1 and Path(options.model[0]).is_dir()):
        raise ValueError(
            f"--save adds figures to a network's folder, and {options.model[0]!r} is not one: use --output."
        )


def run_eval(options: argparse.Namespace) -> None:
    """Evaluate stitches, on one process or several."""
    from ..data.processes import rank
    from ..evaluation.accuracy import evaluate
    from ..hub.saving import save_pretrained
    from ..network.weights import fingerprint

    if options.save:
        _check_folder(options)
    model = load_model(options)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # a launcher started several processes: join them
        from accelerate import Accelerator

        model.to(Accelerator().device)
    data, ids = images_fingerprint(options, model), options.stitch_ids or model.stitch_ids
    if options.output:
        check_overwrite(options.output, fingerprint(model), ids, options.resume)
    rows = evaluate(
        model, load_images(options, model), options.stitch_ids, passes=options.passes, progress=not options.json,
        results=options.output if options.resume else None, data=data,
    )  # fmt: skip
    if rank() == 0:
        if options.save:
            known = {"dataset": options.dataset, "split": options.split} if options.dataset else {}
            save_pretrained(model, options.model[0], results=rows, **known)
        if options.output and not options.resume:
            write_rows(options.output, rows)
        print_rows(rows, options.json)


def run_plot(options: argparse.Namespace) -> None:
    """Draw accuracy against multiply-adds to a file."""
    if options.html:
        if options.beside:
            raise ValueError("--html shows one network: leave --beside out, or draw an image without --html.")
        from ..evaluation.curve_page import write_curve_page

        rows, score = _read_results(options.results, options.score)
        path = write_curve_page(rows, options.output or "curve.html", title=options.title, score=score)
        print_path(path, options.json)
        return
    from ..evaluation.plotting import plot_curve

    rows, score = _read_results(options.results, options.score)
    others = {Path(source).stem: _read_results(source, score)[0] for source in options.beside}
    path = plot_curve(rows, options.output or "curve.png", title=options.title, others=others, score=score)
    print_path(path, options.json)


def _read_results(source: str, score: str | None) -> tuple[Rows, str]:
    """Read evaluated rows: from a file of `eval`, a saved network's folder or repository, or published ones by name.

    Args:
        source: the name of the file, folder, network or repository.
        score: the key of the score that rows must have; default the first that a row has.

    Returns:
        The rows that have the score, and its key.
    """
    path = Path(source)
    if source.startswith("hf-hub:"):
        rows = _fetch_results(source.removeprefix("hf-hub:"))
    elif not path.exists() and is_registered(source.split(".")[0]):
        rows = published_table(source.split(".")[0]).get("stitches", [])
    else:
        from ..families.family import STITCHES_FILE
        from ..hub.json_files import parse_stitches, read_json

        rows = parse_stitches(read_json(path / STITCHES_FILE)).rows if path.is_dir() else read_rows(path)
    check_one_network(rows, source)
    score = score or main_score(rows)
    evaluated = [row for row in rows if row.get(score) is not None]
    if not evaluated:
        raise ValueError(
            f"{source!r} has no row with a {score}: evaluate it first, timm-stitch eval {source} --output FILE."
        )
    return evaluated, score


def _fetch_results(place: str) -> Rows:
    """Fetch the rows of a network on the Hub, without its weights."""
    from ..hub.repository import Repository, fetch_network

    repo_id, _, revision = place.partition("@")
    _, saved = fetch_network(Repository(repo_id, revision or None, None, None), whole=False)
    return saved.results.rows if saved.results else []


def run_select(options: argparse.Namespace) -> None:
    """Print the best stitch within budgets."""
    from ..evaluation.selection import select

    rows = read_rows(options.results) if options.results else None
    name = options.model[0].split(".")[0]
    if rows is None and len(options.model) == 1 and not Path(options.model[0]).is_dir() and is_registered(name):
        model = load_model(options, weights=False)  # published figures need none
    else:
        model = load_model(options)
    budgets = {k: getattr(options, k) for k in ("macs", "params", "latency_ms", "memory_mb")}
    chosen = select(model, rows, **budgets, batch_size=options.batch_size, score=options.score)
    measured = {row["stitch_id"]: row for row in rows or []}
    row = next(row for row in model.stitch_table() if row["stitch_id"] == chosen)
    print_rows([row | measured.get(chosen, {})], options.json)


def _add_profile(verbs: Verbs) -> None:
    verb = add_verb(
        verbs,
        "profile",
        run_profile,
        "measure latency, throughput and memory of every stitch on this device",
        "profile net --batch-sizes 1 2 4 8 --save",
    )
    add_model(verb)
    verb.add_argument("--batch-size", type=int, action=in_range(1, MOST_IMAGES), help="images per call (default: 1)")
    verb.add_argument(
        "--batch-sizes",
        type=int,
        action=in_range(1, MOST_IMAGES),
        nargs="+",
        metavar="N",
        help="several numbers of images per call",
    )
    verb.add_argument(
        "--precision",
        choices=SERVED_PRECISIONS,
        default="fp32",
        help="precision of the call; int8 is for openvino and onnxruntime (default: fp32)",
    )
    verb.add_argument(
        "--engine",
        choices=[name for name in ENGINES if name != "auto"],
        default="torch",
        help="what runs the stitches, as in serve; engines measure those that serve prepares (default: torch)",
    )
    verb.add_argument("--calibration", metavar="FOLDER", help="folder of images, half of which calibrate int8")
    verb.add_argument(
        "--repeats",
        type=int,
        action=in_range(1, 1_000_000),
        default=10,
        help="rounds; each figure is their median (default: 10)",
    )
    verb.add_argument(
        "--threads",
        type=int,
        action=in_range(1, MOST_THREADS),
        help="CPU threads; serve uses one less than there are cores",
    )
    verb.add_argument(
        "--length", type=int, action=in_range(1, 1_000_000), help="tokens of the texts (default: the network's length)"
    )
    verb.add_argument("--quick", action="store_true", help="time stem, blocks and head, and add them up")
    verb.add_argument("--compile", action="store_true", help="compile the network first")
    verb.add_argument(
        "--stitch-ids", type=int, action=in_range(0), nargs="+", metavar="ID", help="stitches to measure (default: all)"
    )
    verb.add_argument("--output", help="JSON lines file to write")
    verb.add_argument("--save", action="store_true", help="add the figures to the network's folder, for select")


def run_profile(options: argparse.Namespace) -> None:
    """Measure stitches on this device."""
    from ..evaluation.profiling import profile
    from ..hub.saving import save_pretrained

    if options.save:
        _check_folder(options)
    if options.engine == "torch" and (options.precision == "int8" or options.calibration):
        raise ValueError("--precision int8 and --calibration are for an engine: add --engine openvino or onnxruntime.")
    if options.engine != "torch" and (options.quick or options.compile or options.length):
        raise ValueError(
            f"--quick, --compile and --length measure torch, not --engine {options.engine}: leave them out."
        )
    set_threads(options.threads)
    model = load_model(options)
    if options.compile:
        model.compile()
    if options.engine == "torch":
        rows = profile(
            model, options.batch_size, options.device, batch_sizes=options.batch_sizes, stitch_ids=options.stitch_ids,
            precision=options.precision, repeats=options.repeats, length=options.length, quick=options.quick,
            progress=not options.json,
        )  # fmt: skip
    else:
        from ..deployment.serving.engine_profile import profile_engine

        rows = profile_engine(
            model.to(options.device), options.engine, options.precision, options.batch_size,
            batch_sizes=options.batch_sizes, stitch_ids=options.stitch_ids, calibration=options.calibration,
            repeats=options.repeats,
        )  # fmt: skip
    if options.output:
        write_rows(options.output, rows)
    if options.save:
        save_pretrained(model, options.model[0])
    if options.json:
        print_rows(rows, True)
        return
    sizes = list(call_times(rows[0]))
    hidden = {"batch_size", "precision", "profiled_on", "weights", "latency_error"}
    hidden.add("latency_ms" if len(sizes) > 1 else latency_key(sizes[0]))  # it would be in the table twice
    print_rows([{k: v for k, v in row.items() if k not in hidden} for row in rows], False)
    print(f"batch {', '.join(map(str, sizes))}, {options.precision}, on {rows[0]['profiled_on']}", end="")
    print(f"; all but ms_N are of batch {sizes[0]}" if len(sizes) > 1 else "", end="")
    print(f"; sums over stem, blocks and head, off by {rows[0]['latency_error']:.1%} (median)" if options.quick else "")


def run_frontier(options: argparse.Namespace) -> None:
    """Print the Pareto frontier of rows."""
    rows, score = _read_results(options.results, options.score)
    print_rows([dict(row) for row in pareto_frontier(rows, score=score)], options.json)
