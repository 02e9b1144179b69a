"""The command line: `timm-stitch VERB`, also `python -m timm_stitch VERB`.

The arguments of each verb; what it does is in `verbs`. Errors are one line and a non-zero status.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import yaml

from ..data.processes import leave
from ..deployment.exporting import FORMATS
from ..evaluation.profiling import PRECISIONS
from ..training.least_squares import METHODS
from ..training.recipe import shipped_recipes
from . import verbs

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
        LookupError,
        AssertionError,
        ArithmeticError,
        yaml.YAMLError,
    ) as error:
        print(f"error: {' '.join((str(error) or repr(error)).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
        return 130
    finally:
        leave()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="timm-stitch", description="Stitchable neural networks for timm.")
    subparsers = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, run: Any, about: str, example: str, model: bool = False, data: str = "") -> Any:
        sub = subparsers.add_parser(
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
            sub.add_argument("--split", default=data, help=f"default: {data}")
            sub.add_argument("--dataset-args", default="null", metavar="YAML",
                             help="of the reader, e.g. '{input_key: img, target_key: fine_label}'")  # fmt: skip
            sub.add_argument("--batch-size", type=int, default=64)
            sub.add_argument("--workers", type=int, default=0)
        return sub

    sub = verb("list", verbs.run_list, "the registered networks, or those on the Hub", "list --hub deit --author timm")
    sub.add_argument("--hub", nargs="?", const="", metavar="SEARCH", help="those on the Hub, whose names hold SEARCH")
    sub.add_argument("--author", help="on the Hub: a user or an organisation")
    sub.add_argument("--limit", type=int, default=50, help="on the Hub: the most to list (default: 50)")
    sub = verb("plan", verbs.run_plan, "what stitches there are, and what each costs; needs no weights",
               "plan deit_tiny_patch16_224 deit_small_patch16_224", model=True)  # fmt: skip
    sub.add_argument("--meet", action="store_true", help="of two models: where they can meet")
    sub = verb("init", verbs.run_init, "initialise stitching layers by least squares and save the network",
               "init deit_tiny_patch16_224 deit_small_patch16_224 --data-dir images --output net",
               model=True, data="train")  # fmt: skip
    sub.add_argument("--images", type=int, default=100)
    sub.add_argument("--method", choices=METHODS, default="joint")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--output", required=True, help="folder")
    sub = verb(
        "train",
        verbs.run_train,
        "train by a recipe; any of its fields as --name value",
        "train deit_tsb --data-dir imagenet --epochs 15",
    )
    sub.add_argument(
        "recipe",
        help="a YAML file of model, model_args, pretrained, init_images and the fields of TrainConfig; or one of "
        + ", ".join(shipped_recipes()),
    )
    sub.add_argument("--device", default="cpu", help=argparse.SUPPRESS)
    sub = verb("eval", verbs.run_eval, "accuracy of every stitch", "eval net --data-dir images --output results.jsonl",
               model=True, data="validation")  # fmt: skip
    sub.add_argument("--stitch-ids", type=int, nargs="+")
    sub.add_argument(
        "--resume", action="store_true", help="take the rows of these weights and images that --output has already"
    )
    sub.add_argument(
        "--passes", type=int, default=1, help="spread the stitches over so many passes, each kept when done"
    )
    sub.add_argument("--output", help="JSON lines file")
    sub = verb("recalibrate", verbs.run_recalibrate, "measure BatchNorm's statistics again, for all or one",
               "recalibrate net --data-dir images --output net2", model=True, data="train")  # fmt: skip
    sub.add_argument("--images", type=int, default=1024)
    sub.add_argument("--stitch-id", type=int, help="for this one alone: its weights to a safetensors file")
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument("--output", required=True, help="folder, or the file of one stitch")
    sub = verb("plot", verbs.run_plot, "draw accuracy against macs",
               "plot results.jsonl --beside earlier.jsonl snnet_deit_tsb --output curve.png")  # fmt: skip
    rows_of = "JSON lines of eval, a saved network's folder, or a registered name for what its authors published"
    sub.add_argument("results", help=rows_of)
    sub.add_argument("--output", default="curve.png")
    sub.add_argument("--title", default="")
    sub.add_argument("--beside", nargs="*", default=[], metavar="RESULTS", help="more of them to draw beside")
    sub = verb(
        "select",
        verbs.run_select,
        "the best stitch within budgets",
        "select net --results results.jsonl --macs 3e9",
        model=True,
    )
    sub.add_argument("--results", help="JSON lines of eval; default what the network's own table knows")
    for name in ("macs", "params", "latency-ms", "memory-mb"):
        sub.add_argument(f"--{name}", type=float)
    sub = verb("profile", verbs.run_profile, "latency, throughput and memory of every stitch on this device",
               "profile net --batch-size 8 --save", model=True)  # fmt: skip
    sub.add_argument("--batch-size", type=int, default=1)
    sub.add_argument("--precision", choices=PRECISIONS, default="fp32")
    sub.add_argument("--repeats", type=int, default=10, help="rounds; each figure is their median (default: 10)")
    sub.add_argument("--quick", action="store_true", help="time parts and add them up")
    sub.add_argument("--compile", action="store_true", help="measure it compiled")
    sub.add_argument("--stitch-ids", type=int, nargs="+")
    sub.add_argument("--output", help="JSON lines file")
    sub.add_argument("--save", action="store_true", help="keep the figures in the network's folder, for select")
    sub = verb("frontier", verbs.run_frontier, "the rows that no other beats at its cost", "frontier results.jsonl")
    sub.add_argument("results", help=rows_of)
    sub = verb("extract", verbs.run_extract, "one stitch's weights to a safetensors file",
               "extract net --stitch-id 24 --output 24.safetensors", model=True)  # fmt: skip
    sub.add_argument("--stitch-id", type=int, required=True)
    sub.add_argument("--output", required=True)
    sub = verb("export", verbs.run_export, "stitches as ONNX files or torch.export programs that share their weights",
               "export net --stitch-ids 3 24 56 --output deploy", model=True, data="validation")  # fmt: skip
    sub.add_argument("--stitch-ids", type=int, nargs="+", help="default: the stitch that is set")
    sub.add_argument("--output", required=True, help="a new or empty folder")
    sub.add_argument("--format", choices=FORMATS, default="onnx")
    sub.add_argument("--quantize", choices=["int8"], help="needs images (--data-dir) to measure what it changes")
    sub.add_argument("--images", type=int, default=256, help="how many of them (default: 256)")
    sub.add_argument("--image-size", type=int, help="default: the network's")
    sub = verb("convert", verbs.run_convert, "one of the authors' checkpoints to a folder in our layout",
               "convert snnet_deit.pth snnet_deit_tsb --output net")  # fmt: skip
    sub.add_argument("checkpoint")
    sub.add_argument("name")
    sub.add_argument("--output", required=True)
    sub = verb("push", verbs.run_push, "put a network on the Hub; the token is huggingface_hub's own",
               "push net --repo user/name --results results.jsonl", model=True)  # fmt: skip
    sub.add_argument("--repo", required=True, help="user/name")
    sub.add_argument("--results", help="JSON lines of eval")
    sub.add_argument("--dataset", help="that they were evaluated on, e.g. imagenet-1k")
    sub.add_argument("--split", help="of that dataset")
    sub.add_argument("--private", action="store_true", default=None)
    sub.add_argument("--revision", help="branch")
    sub.add_argument("--create-pr", action="store_true")
    sub.add_argument("--message", help="commit message")
    sub = verb("pull", verbs.run_pull, "fetch a network from the Hub to a folder, or one stitch to a safetensors file",
               "pull user/name --stitch-id 24 --output 24.safetensors")  # fmt: skip
    sub.add_argument("repo", help="user/name")
    sub.add_argument("--stitch-id", type=int, help="fetch only what this stitch uses")
    sub.add_argument("--revision", help="branch, tag or commit")
    sub.add_argument("--output", required=True)
    sub = verb("demo", verbs.run_demo, "a web page with an image, a slider along the frontier, and what changes",
               "demo net --examples cat.jpg dog.jpg", model=True)  # fmt: skip
    sub.add_argument("--port", type=int, help="default: the first free one from 7860")
    sub.add_argument("--share", action="store_true", help="also at a public address, through gradio's servers")
    sub.add_argument("--examples", nargs="+", default=[], metavar="IMAGE", help="images to choose from on the page")
    sub.add_argument("--push", metavar="USER/SPACE", help="instead put the page of hf-hub:USER/NAME on the Hub")
    sub.add_argument("--private", action="store_true", default=None, help="of a Space that is made now")
    return parser
