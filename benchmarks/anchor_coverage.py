"""Which of timm's models do all that an anchor does: one row a name, on random weights, at its smallest input.

A name is stitched with itself and with another of its module. Of each network every stitch runs, its costs are
counted, it is saved and loaded (equal), a stitch is extracted (equal), layers are initialised by least squares
(of a few stitches), and a stitch takes a training step.

    python benchmarks/anchor_coverage.py rows.jsonl --one-of-each-kind   # the quick sweep
    python benchmarks/anchor_coverage.py rows.jsonl                      # all names, cheap ones first
    python benchmarks/anchor_coverage.py rows.jsonl --summary            # what the rows say

Names are of a kind that are made of the same classes of modules and have tensors and settings of the same names, so
that only widths, depths and sizes differ. Names that the file has already are skipped, so a sweep goes on where it
stopped (anchor_coverage.jsonl has the rows so far). Each name runs in a worker process with a limit on time and
memory. Models of more parameters than `--max-params` are opened on the meta device only and marked `"not run: size"`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import hashlib
import json
import multiprocessing
import resource
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import psutil
import timm
import torch
from timm.models._registry import _model_to_module
from torch import nn
from torch.overrides import TorchFunctionMode

import timm_stitch
from timm_stitch.anchors.macs import Macs
from timm_stitch.anchors.view import ImageInputs, View
from timm_stitch.families.timm_models.network import SNNet
from timm_stitch.families.timm_models.stitching import stitch
from timm_stitch.families.timm_models.traced_view import TracedView
from timm_stitch.families.timm_models.views import view_of

SIZES = (64, 96, 128, 192)


def names_by_size(cache: Path) -> list[tuple[int, str, str]]:
    """(parameters, name, kind) of all of timm's models, smallest first; from the meta device, and kept in a file."""
    if cache.exists():
        found = json.loads(cache.read_text())
    else:
        found = {}
        for name in timm.list_models(exclude_filters="snnet*"):
            with torch.device("meta"):
                try:
                    model = timm.create_model(name)
                    found[name] = sum(p.numel() for p in model.parameters()), kind_of(name, model)
                except Exception:
                    found[name] = 10**12, name
        cache.write_text(json.dumps(found))
    return sorted((count, name, kind) for name, (count, kind) in found.items())


def kind_of(name: str, model: nn.Module) -> str:
    """What models have in common between which only widths, depths and sizes differ."""
    classes = {type(m).__qualname__ for m in model.modules()}
    tensors = {key.rpartition(".")[2] for key in model.state_dict()}
    settings = [getattr(model, setting, None) for setting in ("global_pool", "num_prefix_tokens", "no_embed_class")]
    content = repr((_model_to_module[name], sorted(classes), sorted(tensors), settings))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class QuickNoise(TorchFunctionMode):
    """Random values from a table, as the generator would take most of the time that a large model is built in."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.rand((1 << 20) + 7)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fill from the table where a large tensor is to be uniform."""
        if func is not torch.Tensor.uniform_ or args[0].numel() < 4096 or args[0].device.type != "cpu":
            return func(*args, **(kwargs or {}))
        low, high = [*args[1:3], *((kwargs or {}).get(end, value) for end, value in (("from", 0.0), ("to", 1.0)))][:2]
        start = int(torch.randint(len(self.table), ()))
        filled = torch.roll(self.table, start).repeat(-(-args[0].numel() // len(self.table)))[: args[0].numel()]
        return args[0].copy_(filled.view(args[0].shape)).mul_(high - low).add_(low)


def build(name: str, size: int | None = None, **kwargs: Any) -> tuple[nn.Module, tuple[int, int]]:
    """The model with random weights that let every path matter, and the smallest image size that it takes."""
    cfg = timm.get_pretrained_cfg(name)
    native = tuple(cfg.input_size[-2:])
    sizes = [*((s, s) for s in SIZES if s < min(native)), native] if size is None else [(size, size)]
    problem: Exception | None = None
    for side in sizes:
        try:
            torch.manual_seed(0)
            with QuickNoise():
                try:
                    model = timm.create_model(name, img_size=side, **kwargs)
                except TypeError:
                    model = timm.create_model(name, **kwargs)
            with torch.no_grad():
                model.eval()(torch.zeros(1, cfg.input_size[0], *side))
            return shaken(model), side
        except Exception as error:
            problem = error
    raise RuntimeError(f"the model itself does not run: {problem!r:.150}")


@torch.no_grad()
def shaken(model: nn.Module) -> nn.Module:
    """Give constant parameters and running statistics random values: zeros would hide a wrong path."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.is_floating_point() and float(parameter.std()) < 1e-3:
            parameter.add_(torch.randn_like(parameter) * 0.05)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return model


def whole(part: View, x: torch.Tensor) -> Any:
    """Stem, all blocks, norm and head in a row."""
    return part.head(part.norm(part.run(part.stem(x), 0, part.depth, ImageInputs(x))))


def is_exact(model: nn.Module, part: View, side: tuple[int, int]) -> bool:
    """Whether the parts in a row equal the model bit for bit, at two batch sizes."""
    channels = model.pretrained_cfg["input_size"][0]
    for batch in (1, 3):
        x = torch.randn(batch, channels, *side)
        expected = model(x)
        if not torch.isfinite(expected).all() or float(expected.std()) == 0:
            raise RuntimeError("random weights give no finite, varied logits")
        if not torch.equal(whole(part, x), expected):
            return False
    return True


def gradients_agree(model: nn.Module, part: View, side: tuple[int, int]) -> bool:
    """Whether both give the same gradients in training mode with the stochastic layers off."""
    model.train()
    for module in model.modules():
        for rate in ("drop_prob", "p", "prob", "drop_rate", "drop"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
        for jitter in ("shift_coords", "jitter_coords", "rescale_coords"):  # of rotary embeddings
            if getattr(module, jitter, None) is not None:
                setattr(module, jitter, None)
    x = torch.randn(2, model.pretrained_cfg["input_size"][0], *side)
    found = []
    for run in (model, lambda image: whole(part, image)):
        torch.manual_seed(0)
        model.zero_grad(set_to_none=True)
        out = run(x)
        sum(o.float().square().mean() for o in (out if isinstance(out, (tuple, list)) else [out])).backward()
        found.append([p.grad for p in model.parameters()])
    model.eval()
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.allclose(a, b, rtol=1e-3, atol=1e-6))
        for a, b in zip(*found, strict=True)
    )


def cuts(part: View, x: torch.Tensor) -> int:
    """How many boundaries have between 10 % and 90 % of the multiply-adds before them (at the native size if known)."""
    if isinstance(part, TracedView):
        return part._usual.partition.middle
    counter, before = Macs(), []
    with torch.no_grad(), counter:
        h = part.stem(x)
        for index in range(part.depth + 1):
            before.append(counter.total)
            if index < part.depth:
                h = part.run(h, index, index + 1, ImageInputs(x))
        part.head(part.norm(h))
    return sum(0.1 <= macs / (counter.total or 1) <= 0.9 for macs in before)


def joined(first: nn.Module, second: nn.Module) -> SNNet:
    """The two as a network, the smaller first."""
    anchors = sorted((first, second), key=lambda m: sum(p.numel() for p in m.parameters()))
    try:
        return stitch(anchors).eval()
    except ValueError:  # a window of two does not fit levels of one block
        return stitch(anchors, kernel_size=1).eval()


def uses(network: SNNet, x: torch.Tensor) -> str:
    """What does not work of all that is done with a network, or an empty text."""
    step, between = "run", [s.stitch_id for s in network.plan if not s.is_anchor]
    some = sorted({0, 1, *between[:1], *between[-1:], network.stitch_ids[-1]})
    try:
        with torch.no_grad():
            logits = dict(network.forward_each(x))
            if set(logits) != set(network.stitch_ids) or not all(torch.isfinite(y).all() for y in logits.values()):
                raise ValueError("a stitch gives no finite logits")
            step = "costs"
            if min(min(row["macs"], row["params"]) for row in network.stitch_table()) <= 0:
                raise ValueError("a stitch that costs nothing")
            step = "save and load"
            with tempfile.TemporaryDirectory() as folder:
                timm_stitch.save_pretrained(network, folder)
                again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            for k in some:  # the same weights, but elsewhere in memory, by which sums may round otherwise
                few = 1e-4 * float(logits[k].std())  # random weights give some networks logits of many thousands
                torch.testing.assert_close(again(x, stitch_id=k), logits[k], rtol=1e-4, atol=few + 1e-5)
            step = "extract"
            if not all(torch.equal(network.extract(k)(x), logits[k]) for k in some):
                raise ValueError("other logits than before")
            step = "least squares"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan = dataclasses.replace(network.plan, stitches=tuple(network.plan[k] for k in some))
                few = SNNet(network.views, plan)
                timm_stitch.least_squares_init(few, torch.randn(_enough(few, x), *x.shape[1:]), batch_size=128)
            if not all(torch.isfinite(p).all() for p in few.stitching_layers.parameters()):
                raise ValueError("layers that are not finite")
        step = "train"
        network.train()
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        chosen = network.plan[between[len(between) // 2] if between else 0]
        out = network(torch.randn(2, *x.shape[1:]), stitch_id=chosen.stitch_id)
        sum(o.float().square().mean() for o in (out if isinstance(out, (tuple, list)) else [out])).backward()
        for layer in (network.stitching_layers[number] for number in chosen.layers):
            if layer.weight.grad is None or not torch.isfinite(layer.weight.grad).all():
                raise ValueError("a stitching layer without a gradient")
        optimizer.step()
    except Exception as error:
        return f"{step}: {type(error).__name__}: {str(error)[:150]}"
    return ""


def _enough(network: SNNet, x: torch.Tensor) -> int:
    """How many images determine the widest stitching layer."""
    wanted = 2
    for number, layer in enumerate(network.plan.layers):
        if not network.plan.pairs(number):
            continue
        leave = network.plan.pairs(number)[0][0]
        reduction = network.views[layer.front].reductions[leave]
        positions = max((x.shape[-1] // reduction) * (x.shape[-2] // reduction), 1)
        wanted = max(wanted, -(-(layer.in_width + 2) // positions))
    return wanted


def pair(name: str, model: nn.Module, side: tuple[int, int], others: list[str]) -> str:
    """Use a network with the first model that it meets, of the smallest and the most alike."""
    reason = "no other member of its size or smaller"
    alike = sorted(others, key=lambda other: -SequenceMatcher(None, name, other).ratio())
    for other in dict.fromkeys([*others[:3], *alike[:6]]):
        try:
            second, _ = build(other, side[0], num_classes=model.num_classes)
            network = joined(copy.deepcopy(model), second)
            wrong = uses(network, torch.randn(1, model.pretrained_cfg["input_size"][0], *side))
            if not wrong:
                return f"{other}: {sum(not s.is_anchor for s in network.plan)}"
            reason = f"{other}: {wrong}"
        except Exception as error:
            reason = f"{other}: {type(error).__name__}: {str(error)[:120]}"
    return f"no ({reason})"


def examine(name: str, count: int, others: list[str], max_params: int, pair_params: int) -> dict[str, Any]:
    """The row of one name."""
    torch.set_num_threads(1)
    row: dict[str, Any] = {"name": name, "module": _model_to_module[name], "params": count}
    started = time.process_time()
    try:
        if count > max_params:
            with torch.device("meta"):
                part = view_of(timm.create_model(name))
            found = part._usual.partition.middle if isinstance(part, TracedView) else None
            row.update(exact=None, mechanism=type(part).__name__, depth=part.depth, cuts=found, reason="not run: size")
            return row
        model, side = build(name)
        keys = list(model.state_dict())
        part = view_of(model)
        row.update(size=side[0], mechanism=type(part).__name__, depth=part.depth)
        row["layouts"] = sorted({part.form_at(i)[0] for i in range(part.depth + 1)})
        with torch.no_grad():
            row["exact"] = is_exact(model, part, side)
            row["cuts"] = cuts(part, torch.randn(1, model.pretrained_cfg["input_size"][0], *side))
        try:
            row["gradients"] = gradients_agree(model, part, side)
        except Exception as error:
            row.update(gradients=None, reason=f"training: {type(error).__name__}: {str(error)[:150]}")
        row["keys"] = list(model.state_dict()) == keys
        if count <= pair_params:
            model.eval()
            x = torch.randn(1, model.pretrained_cfg["input_size"][0], *side)
            row["itself"] = uses(joined(copy.deepcopy(model), copy.deepcopy(model)), x) or "all"
            row["pair"] = pair(name, model, side, others)
    except Exception as error:
        row.update(exact=row.get("exact", False), reason=f"{type(error).__name__}: {str(error)[:200]}")
    row["seconds"] = round(time.process_time() - started, 1)
    return row


def _worker(inbox: Any, outbox: Any, gigabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (gigabytes << 30, gigabytes << 30))
    while True:
        job = inbox.recv()
        outbox.send(examine(*job))


def _answers(ask: Any, pid: int, seconds: float) -> bool:
    """Whether a worker answers before it has used so much time of the processor."""
    used = psutil.Process(pid).cpu_times
    start = sum(used()[:2])
    while not ask.poll(5):
        if sum(used()[:2]) - start > seconds:
            return False
    return True


def sweep(rows: Path, todo: list[tuple[Any, ...]], seconds: float, gigabytes: int) -> None:
    """Examine names in a worker that is replaced when it dies or takes too long."""
    process = None
    for job in todo:
        if process is None:
            ask, inbox = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_worker, args=(inbox, inbox, gigabytes))
            process.start()
        ask.send(job)
        row = {"name": job[0], "module": _model_to_module[job[0]], "params": job[1], "exact": None}
        try:
            late = {**row, "reason": f"not run: more than {seconds:.0f} s"}
            row = ask.recv() if _answers(ask, process.pid, seconds) else late
        except EOFError:
            row["reason"] = f"not run: its process died (limit {gigabytes} GiB)"
        if str(row.get("reason", "")).startswith("not run: ") and "size" not in row["reason"]:
            process.kill()
            process.join()
            process = None
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if process is not None:
        process.kill()


def summary(rows: list[dict[str, Any]], kinds: dict[str, str]) -> str:
    """A Markdown table by module, the totals, and the reasons ranked by the names that they cost."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["module"]].append(row)
    names = Counter(_model_to_module[name] for name in timm.list_models(exclude_filters="snnet*"))
    titles = (
        "module", "names in timm", "run", "exact", "gradients", "3+ cuts", "cuts", "mechanism", "all with itself",
        "with another",
    )  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for module in sorted(groups, key=lambda m: -names[m]):
        some = groups[module]
        found = [r.get("cuts") or 0 for r in some]
        mechanisms = "/".join(sorted({r["mechanism"] for r in some if r.get("mechanism")}))
        itself = sum(r.get("itself") == "all" for r in some)
        pairs = sum(not r.get("pair", "no").startswith("no") for r in some)
        lines.append(
            f"| {module} | {names[module]} | {len(some)} | {sum(bool(r.get('exact')) for r in some)} "
            f"| {sum(bool(r.get('gradients')) for r in some)} | {sum(c >= 3 for c in found)} "
            f"| {min(found)}-{max(found)} | {mechanisms} | {itself} | {pairs} |"
        )
    good = [r for r in rows if r.get("exact") and (r.get("cuts") or 0) >= 3]
    equal = sum(bool(r.get("gradients")) for r in good)
    used = [r for r in good if r.get("itself") == "all"]
    both = [r for r in used if not r.get("pair", "no").startswith("no")]
    lines += [
        "",
        f"{len(rows)} names, {len(good)} exact with 3 or more cuts, {equal} of these with equal gradients; "
        f"{len(used)} do all with themselves, {len(both)} of these also with another.",
    ]
    seen, whole = {kinds[r["name"]] for r in rows}, {kinds[r["name"]] for r in both}
    lines.append(
        f"{len(seen)} of {len(set(kinds.values()))} kinds of models, in {len(whole)} of these some name does all; "
        f"timm has {sum(kind in whole for kind in kinds.values())} names of these {len(whole)} kinds."
    )
    bad = [r for r in rows if r not in both or not r.get("gradients")]
    reasons = Counter(f"{r['module']}: {_reason(r)}"[:200] for r in bad)
    return "\n".join([*lines, "", *(f"- {count} x {reason}" for reason, count in reasons.most_common())])


def _reason(row: dict[str, Any]) -> str:
    if row.get("reason"):
        return str(row["reason"])
    if (row.get("cuts") or 0) < 3:
        return f"cuts {row.get('cuts')}"
    if row.get("itself", "all") != "all":
        return f"with itself: {row['itself']}"
    return f"with another: {row.get('pair', 'not stitched: size')}"


def main() -> None:
    """Parse arguments, sweep, print the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--summary", action="store_true", help="only print what the rows say")
    parser.add_argument("--one-of-each-kind", action="store_true", help="the smallest name of each kind")
    parser.add_argument("--filter", default="*", help="names to take, as in timm.list_models")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th name, from the i-th")
    parser.add_argument("--limit-seconds", type=float, default=300, help="of the processor, for one name")
    parser.add_argument("--memory", type=int, default=12, help="GiB of address space for one name")
    parser.add_argument("--max-params", type=int, default=400_000_000, help="larger models are not run")
    parser.add_argument("--pair-params", type=int, default=150_000_000, help="larger models are not stitched")
    args = parser.parse_args()
    done = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    sizes = names_by_size(args.rows.with_suffix(".kinds.json"))
    kinds = {name: kind for _, name, kind in sizes}
    if not args.summary:
        counts = {name: count for count, name, _ in sizes}
        members: dict[str, list[str]] = defaultdict(list)
        for _, name, _ in sizes:
            members[_model_to_module[name]].append(name)
        wanted = set(timm.list_models(args.filter)) - {row["name"] for row in done}
        if args.one_of_each_kind:
            known = {kinds[row["name"]] for row in done}
            first = {kind: name for _, name, kind in reversed(sizes) if kind not in known}
            wanted &= set(first.values())

        def meets(name: str, most: int) -> list[str]:
            group = members[_model_to_module[name]]
            return [other for other in group if other != name and counts[other] <= most]

        index, shards = map(int, args.shard.split("/"))
        todo = [
            (name, count, meets(name, max(count, 30_000_000)), args.max_params, args.pair_params)
            for count, name, _ in sizes
            if name in wanted
        ][index::shards]
        sweep(args.rows, todo, args.limit_seconds, args.memory)
        done = [json.loads(line) for line in args.rows.read_text().splitlines()]
    print(summary(done, kinds))


if __name__ == "__main__":
    main()
