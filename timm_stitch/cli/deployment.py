"""`export` and `demo`: stitches for other runtimes, and a web page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..choices import EXPORT_FORMATS, QUANTIZATIONS
from .numbers import MOST_IMAGES, in_range
from .options import add_images, add_model, add_verb, load_images, load_model, print_json, print_rows, print_url

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `export` and `demo` to the command line."""
    verb = add_verb(
        verbs,
        "export",
        run_export,
        "stitches as files for ONNX, torch.export, OpenVINO, ExecuTorch, LiteRT or the browser, with shared weights",
        "export net --stitch-ids 3 24 56 --output deploy",
    )
    add_model(verb)
    add_images(verb, "validation", required=False)
    verb.add_argument(
        "--stitch-ids",
        type=int,
        action=in_range(0),
        nargs="+",
        help="stitches to export (default: the one that is set; for web those of the frontier)",
    )
    verb.add_argument("--output", required=True, help="new or empty folder")
    verb.add_argument("--format", choices=EXPORT_FORMATS, default="onnx", help="format of the files (default: onnx)")
    verb.add_argument(
        "--export-batch-size", type=int, action=in_range(1, MOST_IMAGES), nargs="+", metavar="N",
        help="images per call: a number, or the smallest and the largest (default: any for onnx, openvino and program, "
        "else 1)",
    )  # fmt: skip
    verb.add_argument(
        "--quantize",
        choices=QUANTIZATIONS,
        help="precision of the weights; needs images (--data-dir) to measure the change",
    )
    verb.add_argument("--images", type=int, action=in_range(1), default=256, help="images to compare on (default: 256)")
    verb.add_argument(
        "--image-size", type=int, action=in_range(1, 65_536), help="side of the images (default: the network's)"
    )

    verb = add_verb(
        verbs,
        "demo",
        run_demo,
        "a web page with an image, a slider along the frontier, and the predictions",
        "demo net --examples cat.jpg dog.jpg",
    )
    add_model(verb)
    verb.add_argument(
        "--port", type=int, action=in_range(1, 65_535), help="port to listen at (default: the first free one from 7860)"
    )
    verb.add_argument(
        "--share", action="store_true", help="give the page a public address too, through gradio's servers"
    )
    verb.add_argument("--examples", nargs="+", default=[], metavar="IMAGE", help="images to choose from on the page")
    verb.add_argument("--push", metavar="USER/SPACE", help="put the page of hf-hub:USER/NAME on the Hub instead")
    verb.add_argument("--private", action="store_true", default=None, help="make a new Space private")


def run_export(options: argparse.Namespace) -> None:
    """Write stitches as files of a format."""
    import torch

    from ..data.loader import first_images
    from ..deployment.exporting import export

    model, images = load_model(options, "export"), None
    if options.data_dir or options.dataset:
        torch.manual_seed(0)
        images = torch.cat(list(first_images(load_images(options, model, shuffled=True), options.images)))
    manifest = export(
        model, options.output, options.stitch_ids, format=options.format, quantize=options.quantize, images=images,
        image_size=options.image_size, progress=not options.json,
        batch_size=options.export_batch_size,
    )  # fmt: skip
    if options.json:
        print_json(manifest)
        return
    shown = ("stitch_id", "name", "macs", "params", "file", "agreement")
    rows = [{k: row[k] for k in shown if k in row} for row in manifest["stitches"]]
    for row, full in zip(rows, manifest["stitches"], strict=True):
        row["max_difference"] = f"{full['max_difference']:.1e}"
    print_rows(rows, False)
    print(f"{options.output}: {manifest['bytes']:,} bytes for tensors of {manifest['union_bytes']:,}.")


def run_demo(options: argparse.Namespace) -> None:
    """Serve the web page, or push it as a Space."""
    if options.push:
        from ..deployment.spaces import push_space

        url = push_space(options.model[0], options.push, examples=options.examples, private=options.private)
        print_url(url, options.json)
        return
    from ..deployment.demo import make_page

    title = " + ".join(Path(name).name if Path(name).is_dir() else name for name in options.model)
    page = make_page(load_model(options, "demo"), title=title, examples=options.examples)
    _, url, shared = page.launch(
        server_port=options.port, share=options.share, quiet=options.json, prevent_thread_lock=True
    )
    if options.json:
        print_json({"url": url, "shared": shared})
    page.block_thread()
