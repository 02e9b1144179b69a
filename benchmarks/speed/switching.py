"""How much does switching cost? An SN-Net at one of its anchors against the bare timm model; mixed batches.

    python benchmarks/speed/switching.py                         # snnet_deit_tsb, eager
    python benchmarks/speed/switching.py --only overhead         # what a call adds, on tiny networks
    python benchmarks/speed/switching.py --only overhead --against PATH  # and in another checkout, in turns
    python benchmarks/speed/switching.py --only mixed            # batches with an id for each image
    python benchmarks/speed/switching.py --only blocks whole     # compiled by inductor; needs a C++ compiler

Times are medians of interleaved runs, and ratios are medians of the ratios of neighbours, with their quartiles.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import timm_stitch
from timm_stitch.plan.prefix_sharing import shared_macs

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser
from measuring import compare, time_in_turns
from processes import run_script

if TYPE_CHECKING:
    from timm_stitch.families.timm_models.network import SNNet


class ByHand(nn.Module):
    """One stitch of two DeiTs, written out: what somebody would write who wanted this network alone."""

    def __init__(self, model: SNNet, stitch_id: int) -> None:
        super().__init__()
        stitch = model.plan[stitch_id]
        first, last = stitch.segments
        front, back = model.anchors[first.anchor], model.anchors[last.anchor]
        self.stem, self.front = front, nn.Sequential(*front.blocks[: first.stop])
        self.stitch = model.stitching_layers[stitch.layers[0]]
        self.back = nn.Sequential(*back.blocks[last.start :])
        self.norm, self.head = back.norm if model.stitched_norm else nn.Identity(), back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem._pos_embed(self.stem.patch_embed(x))
        x = self.stem.norm_pre(self.stem.patch_drop(x))
        return self.head.forward_head(self.norm(self.back(self.stitch(self.front(x)))))


def ratio(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> str:
    """Compare two calls: the ratio of neighbours, and the milliseconds of the second."""
    times = time_in_turns({"ours": ours, "theirs": theirs}, rounds)
    return f"{compare(times['ours'], times['theirs'])} of {statistics.median(times['theirs']):.1f} ms"


def against_bare(model: SNNet, batch: int, rounds: int, label: str, whole: str | None = None) -> None:
    """Each anchor's stitch against the bare model, and an extracted stitch against one written by hand.

    With `whole`, a backend of torch.compile, both are compiled whole, ours as an extracted stitch.
    """
    x = torch.randn(batch, 3, *model.image_size)
    pairs = [(f"anchor {k} against the bare model", k, model.anchors[k]) for k in range(len(model.anchors))]
    middle = 24
    pairs += [(f"stitch {middle} extracted against one by hand", middle, ByHand(model, middle))]
    for name, k, bare in pairs:
        bare.eval()
        ours: nn.Module = model.set_stitch(k) if k != middle and whole is None else model.extract(k)
        if whole is not None:
            torch._dynamo.reset()
            ours, bare = torch.compile(ours, backend=whole), torch.compile(bare, backend=whole)
        torch.testing.assert_close(ours(x), bare(x), rtol=1e-4, atol=1e-4)
        found = ratio(lambda ours=ours: ours(x), lambda bare=bare: bare(x), rounds)
        print(f"{label}, batch {batch}, {name}: {found}", flush=True)


def overhead(calls: int = 2000) -> dict[str, float]:
    """What a call adds to the same network without stitching: time, Python calls and opcodes.

    The networks have twelve blocks that compute next to nothing: an anchor's stitch against the bare model, and a
    stitch of two against one written by hand.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {"img_size": 16, "patch_size": 16, "depth": 12, "num_heads": 1}
    anchors = [VisionTransformer(embed_dim=width, **sizes).eval() for width in (8, 16)]
    model, x = timm_stitch.stitch(anchors).eval(), torch.randn(1, 3, 16, 16)
    two = next(stitch.stitch_id for stitch in model.plan if not stitch.is_anchor)
    figures: dict[str, float] = {}
    for name, stitch_id, plain in (("anchor", 0, anchors[0]), ("stitch", two, ByHand(model, two).eval())):
        model.set_stitch(stitch_id)
        torch.testing.assert_close(model(x), plain(x))
        times: dict[str, list[float]] = {"ours": [], "plain": []}
        for turn in range(calls):
            for which, call in (("ours", model), ("plain", plain))[:: 1 if turn % 2 else -1]:
                began = time.perf_counter()
                call(x)
                times[which].append(1e6 * (time.perf_counter() - began))
        ours, bare = (statistics.median(times[which]) for which in ("ours", "plain"))
        figures |= {f"{name}: microseconds added": ours - bare, f"{name}: microseconds without": bare}
        added = [a - b for a, b in zip(count_instructions(model, x), count_instructions(plain, x), strict=True)]
        figures |= {f"{name}: Python calls added": added[0], f"{name}: opcodes added": added[1]}
    torch.set_num_threads(threads)
    return figures


def count_instructions(model: nn.Module, x: torch.Tensor) -> tuple[int, int]:
    """The Python functions that one call enters, and the opcodes that it executes."""
    counts = {"call": 0, "opcode": 0}

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object]:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event in counts:
            counts[event] += 1
        return trace

    model(x)  # whatever is made at the first call
    sys.settrace(trace)
    try:
        model(x)
    finally:
        sys.settrace(None)
    return counts["call"], counts["opcode"]


def compare_overhead(other: str, rounds: int) -> None:
    """Print what a call adds here and in another checkout, from processes that run in turns."""
    here = str(Path(timm_stitch.__file__).parents[1])
    figures: dict[str, list[dict[str, float]]] = {other: [], here: []}
    for turn in range(rounds):
        for path in (other, here)[:: 1 if turn % 2 else -1]:
            figures[path].append(run_script(__file__, "--only", "overhead", "--json", env={"PYTHONPATH": path}))
    for name in figures[here][0]:
        before, now = (statistics.median(found[name] for found in figures[path]) for path in (other, here))
        print(f"{name}: {before:.1f} before, {now:.1f} now ({now / before:.2f})", flush=True)


def switches(model: SNNet, count: int) -> None:
    """Random switches among all stitches after one pass over them: graphs compiled, and fall-backs to eager."""
    from torch._dynamo.utils import counters

    x = torch.randn(1, 3, *model.image_size)
    began = time.perf_counter()
    for k in model.stitch_ids:
        model(x, stitch_id=k)
    first, graphs = time.perf_counter() - began, counters["stats"]["unique_graphs"]
    frames = dict(counters["frames"])
    rng = random.Random(0)
    for _ in range(count):
        model.set_stitch(rng.choice(model.stitch_ids))(x)
    more = counters["stats"]["unique_graphs"] - graphs
    fallen = sum(counters["graph_break"].values()) + (frames.get("total", 0) - frames.get("ok", 0))
    print(f"first pass over {model.num_stitches} stitches: {graphs} graphs, {first:.0f} s")
    print(f"{count} random switches: {more} recompilations, {fallen} fall-backs", flush=True)


def mixed(model: SNNet, batch: int, distinct: int, rounds: int) -> None:
    """A batch with an id for each image, and all ids on a few images, against one call for each id."""
    x = torch.randn(batch, 3, *model.image_size)
    few = x[:distinct]
    rng, costs = random.Random(0), model.costs()
    for name, pool in (("any", model.stitch_ids), ("of one front", [s.stitch_id for s in model.plan if s.front == 0])):
        chosen = rng.sample(list(pool), distinct)
        ids = [chosen[i % distinct] for i in range(batch)]
        rows = {k: torch.tensor([i for i, own in enumerate(ids) if own == k]) for k in chosen}
        found = ratio(
            lambda ids=ids: model(x, stitch_id=ids),
            lambda rows=rows: [model(x[own], stitch_id=k) for k, own in rows.items()],
            rounds,
        )
        print(f"batch {batch}, {distinct} ids {name}, one an image, against {distinct} calls: {found}; macs 1.00")
        stitches = [model.plan[k] for k in chosen]
        allowed = shared_macs(stitches, costs) / sum(costs.cost(s).macs for s in stitches)
        found = ratio(
            lambda chosen=chosen: list(model.forward_each(few, chosen)),
            lambda chosen=chosen: [model(few, stitch_id=k) for k in chosen],
            rounds,
        )
        print(f"batch {len(few)}, all {distinct} ids {name} on all images: {found}; macs {allowed:.2f}", flush=True)


@torch.inference_mode()
def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="snnet_deit_tsb", help="name of a registered network")
    parser.add_argument("--rounds", type=int, default=40, help="runs of each side")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="batch sizes")
    parser.add_argument(
        "--only", nargs="+", default=["eager"], choices=["eager", "overhead", "mixed", "blocks", "whole"],
        help="comparisons to make",
    )  # fmt: skip
    parser.add_argument("--backend", default="inductor", help="backend of torch.compile")
    parser.add_argument("--against", help="another checkout, whose overhead is measured in turns with ours")
    parser.add_argument("--json", action="store_true", help="print the figures of the overhead as JSON, and no others")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.against:
        compare_overhead(options.against, rounds=6)
        return
    if options.json:
        print(json.dumps(overhead()))
        return
    model = timm.create_model(options.model).eval()
    if "eager" in options.only:
        for batch in options.batches:
            against_bare(model, batch, options.rounds, "eager")
    if "overhead" in options.only:
        for name, figure in overhead().items():
            print(f"{name}: {figure:.1f}", flush=True)
    if "mixed" in options.only:
        mixed(model, 64, 8, options.rounds)
    if "whole" in options.only:
        for batch in options.batches:
            against_bare(model, batch, options.rounds, "compiled whole", options.backend)
    if "blocks" in options.only:
        torch._dynamo.reset()
        model.compile(backend=options.backend)
        switches(model, 200)
        for batch in options.batches:  # the bare models share the compiled blocks
            against_bare(model, batch, options.rounds, "compiled blocks")


if __name__ == "__main__":
    main()
