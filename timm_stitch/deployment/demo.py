"""A web page on Gradio that shows a network at work: an image, a slider along its frontier, and the predictions.

Needs gradio and matplotlib (`pip install '.[demo]'`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from ..data.dataset import image_config
from ..errors import missing_extra
from ..evaluation.curve_page import curve_page
from ..evaluation.plotting import curve_svg
from ..families.registry import require
from ..families.timm_models.network import SNNet
from ..hub.model_card import plain_text
from ..plan.costs import short
from ..plan.frontier import pareto_frontier
from ..plan.metrics import main_score, metric_of
from ..plan.results import Row
from .class_names import class_names, pillow_mode, task_of
from .maps import MapPredictor, overlay

_LARGEST_SHOWN = 1024  # pixels of the longer side of an image under a mask
_CALLS, _PATIENCE = 7, 0.5  # of a timing: the most calls, and the seconds after which no further one starts

_STYLE = """<style>
.facts {display: grid; grid-template-columns: repeat(4, 1fr); gap: .6rem}
.facts div {background: var(--background-fill-secondary); border-radius: 8px; padding: .55rem .8rem; min-width: 0}
.facts .stitch {grid-column: 1 / -1}
.facts small {display: block; color: var(--body-text-color-subdued)}
.facts b {font-size: 1.2rem; font-variant-numeric: tabular-nums; color: var(--body-text-color)}
.facts .stitch b {font-family: var(--font-mono); font-size: .95rem; font-weight: 500; overflow-wrap: anywhere}
.paths iframe {width: 100%; height: 52rem; border: 0}
.curve svg {width: 100%; height: auto; border-radius: 8px; background: white; padding: 6px}
#image img {width: 100%; height: 100%; object-fit: contain}
@media (max-width: 640px) {.facts {grid-template-columns: repeat(2, 1fr)}}
</style>"""


@dataclass(frozen=True)
class Prediction:
    """The prediction of a stitch for an image.

    Args:
        top: the (at most) five likeliest classes and their probabilities, likeliest first; for a mask the classes with
            the largest shares of its pixels, for depth none.
        latency_ms: the median latency of a call with this image, after one to warm up, in milliseconds.
        calls: the number of timed calls.
        picture: the mask over the image, or the depths; none for a classifier.
    """

    top: dict[str, float]
    latency_ms: float
    calls: int
    picture: Image.Image | None = None


class Viewer:
    """The network behind the page. It keeps nothing of a user, and sets nothing in the network.

    Args:
        model: the network; put in eval mode.
        labels: one name for each class; default the names in its configuration, ImageNet's if it has the number of
            classes of one of its subsets, else numbers.

    Raises:
        ValueError: if the network does not classify or takes no ordinary images, the labels do not fit, or its
            known accuracies belong to other weights.
    """

    def __init__(self, model: SNNet, labels: Sequence[str] | None = None) -> None:
        self.mode = pillow_mode(model, "the page shows")
        self.model = model.eval()
        self.labels = class_names(model, labels)
        model.results.check()
        table = model.stitch_table()
        self.score = main_score(table)
        self.known: list[Row] = [row for row in table if row.get(self.score) is not None]
        # The steps of the slider, cheapest first.
        self.steps = (
            pareto_frontier(self.known, score=self.score) if self.known else sorted(table, key=lambda row: row["macs"])
        )
        self.maps = (
            None
            if task_of(model) == "classification"
            else MapPredictor.of(model, "the page shows", size=model.image_size)
        )
        self.transform = self.maps.prepare if self.maps else create_transform(**image_config(model))
        self._drawn = curve_svg(self.known) if self.known else None

    def prepare(self, image: Image.Image | None) -> Tensor | None:
        """Turn an image (PIL) into the network's input, shape (1, C, H, W); None stays None."""
        if image is None:
            return None
        x: Tensor = self.transform(image.convert(self.mode))
        return x[None]

    @torch.inference_mode()
    def predict(self, x: Tensor, step: int, image: Image.Image | None = None) -> Prediction:
        """Classify an image by a stitch, or predict its mask or depths, and time it.

        Args:
            x: the network's input, from `prepare`.
            step: the place of the stitch in `steps`.
            image: the image under the mask.
        """
        reference = next(self.model.parameters())
        x = x.to(reference.device, reference.dtype)

        def call() -> Tensor:
            out = self.model(x, stitch_id=self.steps[step]["stitch_id"])
            return out[0].float().cpu()  # waits for the device

        logits, times, began = call(), list[float](), time.perf_counter()
        while len(times) < _CALLS and (not times or time.perf_counter() - began < _PATIENCE):
            at = time.perf_counter()
            call()
            times.append(time.perf_counter() - at)
        took = 1000 * statistics.median(times)
        if self.maps is not None:
            shown = image or Image.new("RGB", (x.shape[3], x.shape[2]))
            pixels = self.maps.finish(logits, (shown.height, shown.width))
            shares: Any = self.maps.describe(pixels, 5).get("classes", ())
            picture = overlay(shown, pixels, self.labels)
            return Prediction({one["label"]: one["share"] for one in shares}, took, len(times), picture)
        values, classes = logits.softmax(0).topk(min(5, len(logits)))
        top = {self.labels[i]: p for i, p in zip(classes.tolist(), values.tolist(), strict=True)}
        return Prediction(top, took, len(times))

    def facts(self, step: int, prediction: Prediction | None = None) -> str:
        """Describe the stitch of a step, as HTML."""
        row = self.steps[step]
        device, threads = next(self.model.parameters()).device, torch.get_num_threads()
        metric = metric_of(self.score)
        known = f"{row.get(self.score, 0.0):.{metric.digits}f}{' %' * metric.percent}"
        where = f"{threads} CPU thread{'s' * (threads > 1)}" if device.type == "cpu" else str(device)
        tiles = [
            (f"stitch {row['stitch_id']}", row["name"], "stitch"),
            (metric.words.removesuffix(", %"), known if self.known else "unknown", "top1"),
            ("multiply-adds", short(row["macs"]), "macs"),
            ("parameters", short(row["params"]), "params"),
            (f"latency on {where}, median of {prediction.calls}", f"{prediction.latency_ms:.2f} ms", "latency")
            if prediction
            else ("latency", "–", "latency"),
        ]
        cells = "".join(f'<div class="{c}"><small>{escape(s)}</small><b>{escape(b)}</b></div>' for s, b, c in tiles)
        return f'<div class="facts" data-stitch-id="{row["stitch_id"]}">{cells}</div>'

    def curve(self, step: int) -> str:
        """Draw the curve with the stitch of a step marked, as HTML; a note if there is none."""
        if self._drawn is None:
            return (
                '<div class="curve">The accuracy of these stitches is not known, so the slider goes through all of '
                "them by cost. <code>timm-stitch eval</code> measures it.</div>"
            )
        row, (svg, place) = self.steps[step], self._drawn
        x, y = place(row)
        mark = (
            f'<circle class="here" data-stitch-id="{row["stitch_id"]}" cx="{x:.2f}" cy="{y:.2f}" r="9" '
            'fill="#f2a541" fill-opacity=".85" stroke="#222" stroke-width="1.5"/></svg>'
        )
        return f'<div class="curve">{mark.join(svg.rsplit("</svg>", 1))}</div>'

    def paths(self, title: str) -> str:
        """Frame the interactive curve, which shows the path of each stitch, as HTML."""
        page = escape(curve_page(self.known, title))
        return f'<div class="paths"><iframe title="Curve with the path of each stitch" srcdoc="{page}"></iframe></div>'

    @property
    def images(self) -> str:
        """The names of the images on which the accuracies were measured, if the rows have them."""
        names = {", ".join(str(row[k]) for k in ("dataset", "split") if row.get(k)) for row in self.known} - {""}
        return "; ".join(sorted(names))


def make_page(
    model: SNNet, labels: Sequence[str] | None = None, *, title: str = "", examples: Iterable[str] = ()
) -> Any:
    """Make the page of a network, to `launch()` or to mount in another app.

    Any number of users may use it at once: each call names its stitch and sets none. Calls run one after another, so
    that one user's load is not another's latency.

    Args:
        model: the network, on the device where it runs; put in eval mode.
        labels: one name for each class; default the names in its configuration, ImageNet's, or numbers.
        title: the title of the page; default the repository that the network was pulled from, or its name.
        examples: paths of images to choose from.

    Returns:
        A `gradio.Blocks`.

    Raises:
        ImportError: if gradio or matplotlib is missing.
        ValueError: as `Viewer`.

    Examples:
        >>> network = timm.create_model("snnet_levit_192_256")
        >>> page = timm_stitch.make_page(network, title="LeViT")  # doctest: +SKIP
        >>> page.launch()  # doctest: +SKIP
    """
    require(model, "demo")
    try:
        import gradio as gr
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_extra(f"the page needs {error.name}", "demo") from error
    viewer = Viewer(model, labels)
    config: dict[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    title = title or str(model.trained.get("pulled_from") or config.get("architecture") or "SN-Net")
    along = f", {len(viewer.steps)} of them on the frontier" if viewer.known else ""
    measured = f"Accuracy on {viewer.images}." if viewer.images else ""
    with gr.Blocks(title=f"{title} – timm_stitch", analytics_enabled=False) as page:
        gr.HTML(_STYLE, padding=False)
        gr.Markdown(
            f"# {plain_text(title)}\n{model.num_stitches} networks in one set of weights{along}. "
            f"Drop an image and move the slider. {plain_text(measured)}"
        )
        _fill(gr, viewer, list(map(str, examples)))
        if viewer.known:
            with gr.Accordion("The path of each stitch", open=False, elem_id="paths"):
                gr.HTML(viewer.paths(title))
    return page


def _fill(gr: Any, viewer: Viewer, examples: Sequence[str]) -> None:
    """Put the fields on an open page, and connect them."""
    last = len(viewer.steps) - 1

    def show(seen: tuple[Tensor, Image.Image] | None, step: float) -> tuple[object, ...]:
        step = min(max(int(step), 0), last)
        prediction = None if seen is None else viewer.predict(seen[0], step, seen[1])
        top, picture = (prediction.top or None, prediction.picture) if prediction else (None, None)
        pictures = (picture,) if viewer.maps else ()
        return top, *pictures, viewer.facts(step, prediction), viewer.curve(step)

    def prepare(image: Image.Image | None) -> tuple[Tensor, Image.Image] | None:  # its name is the page's endpoint
        x = viewer.prepare(image)
        if image is None or x is None:
            return None
        image.thumbnail((_LARGEST_SHOWN, _LARGEST_SHOWN))
        return x, image

    seen = gr.State()
    pictures = []
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            image = gr.Image(type="pil", image_mode=viewer.mode, label="image", height=280, elem_id="image")
            if viewer.maps:
                pictures = [
                    gr.Image(type="pil", label=task_of(viewer.model), height=280, elem_id="map", interactive=False)
                ]
            top = gr.Label(
                num_top_classes=5, label="prediction", elem_id="prediction", visible=task_of(viewer.model) != "depth"
            )
        with gr.Column(scale=3, min_width=320):
            step = gr.Slider(
                0, max(last, 1), last, step=1, label="cheapest ← stitch → most expensive", interactive=last > 0,
                elem_id="slider",
            )  # fmt: skip
            facts = gr.HTML(viewer.facts(last), elem_id="facts")
            curve = gr.HTML(viewer.curve(last), elem_id="curve")
    if examples:
        gr.Examples([[path] for path in examples], image)
    # One call at a time over all users; of a user's many moves of the slider only the last runs.
    how = {"show_progress": "hidden", "concurrency_id": "network", "concurrency_limit": 1}
    shown = {"fn": show, "inputs": [seen, step], "outputs": [top, *pictures, facts, curve], **how}
    image.change(prepare, image, seen, **how).then(**shown)
    step.change(**shown, trigger_mode="always_last")
