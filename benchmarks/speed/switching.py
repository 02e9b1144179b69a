"""How much does switching cost? An SN-Net at one of its anchors against the bare timm model; mixed batches.

    python benchmarks/speed/switching.py                         # snnet_deit_tsb, eager
    python benchmarks/speed/switching.py --only overhead         # microseconds that a call adds, on tiny networks
    python benchmarks/speed/switching.py --only mixed            # batches with an id for each image
    python benchmarks/speed/switching.py --only blocks whole     # compiled by inductor; needs a C++ compiler

Times are medians of interleaved runs, and ratios are medians of the ratios of neighbours, with their quartiles.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import timm_stitch
from timm_stitch import SNNet
from timm_stitch.plan.prefix_sharing import shared_macs

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser
from measuring import compare, time_in_turns


class ByHand(nn.Module):
    """One stitch of two DeiTs, written out: what somebody would write who wanted this network alone."""

    def __init__(self, model: SNNet, stitch_id: int) -> None:
        super().__init__()
        stitch = model.plan[stitch_id]
        first, last = stitch.segments
        front, back = model.anchors[first.anchor], model.anchors[last.anchor]
        self.patch_embed, self.cls_token, self.pos_embed = front.patch_embed, front.cls_token, front.pos_embed
        self.front = nn.Sequential(*front.blocks[: first.stop])
        self.stitch = model.stitching_layers[stitch.layers[0]]
        self.back = nn.Sequential(*back.blocks[last.start :])
        self.norm, self.head = back.norm if model.stitched_norm else nn.Identity(), back.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.back(self.stitch(self.front(x))))[:, 0])


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


def overhead(calls: int = 3000) -> None:
    """What a call adds to the bare model's, in microseconds: anchors of twelve blocks that compute next to nothing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {"img_size": 16, "patch_size": 16, "depth": 12, "num_heads": 1}
    anchors = [VisionTransformer(embed_dim=width, **sizes).eval() for width in (8, 16)]
    model, x = timm_stitch.stitch(anchors).eval().set_stitch(0), torch.randn(1, 3, 16, 16)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    for turn in range(calls):
        for name, call in (("ours", model), ("bare", anchors[0]))[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            call(x)
            times[name].append(1e6 * (time.perf_counter() - began))
    torch.set_num_threads(threads)
    ours, bare = (statistics.median(found) for found in times.values())
    print(f"a call of a stitch adds {ours - bare:.0f} microseconds to {bare:.0f} of the bare model", flush=True)


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
    options = parser.parse_args()
    torch.manual_seed(0)
    model = timm.create_model(options.model).eval()
    if "eager" in options.only:
        for batch in options.batches:
            against_bare(model, batch, options.rounds, "eager")
    if "overhead" in options.only:
        overhead()
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
