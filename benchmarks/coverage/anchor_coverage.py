"""Which of timm's models do all that an anchor does? One row a name, on random weights, at its smallest input.

A name is stitched with itself and with another of its module. Of each network every stitch runs, its costs are
counted, it is saved and loaded (equal), a stitch is extracted (equal), layers are initialised by least squares
(of a few stitches), and a stitch takes a training step.

    python benchmarks/coverage/anchor_coverage.py rows.jsonl --one-of-each-kind   # the quick sweep
    python benchmarks/coverage/anchor_coverage.py rows.jsonl                      # all names, cheap ones first
    python benchmarks/coverage/anchor_coverage.py rows.jsonl --summary            # tables of the rows

Names are of one kind if their modules have the same classes and their tensors and settings the same names: only widths,
depths and sizes differ. Names that the file has already are skipped, so a sweep goes on where it stopped
(anchor_coverage.jsonl has the rows so far). Each name runs in a worker process with a limit on time and memory. Models
of more parameters than `--max-params` are opened on the meta device only and marked `"not run: size"`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models._registry import _model_to_module
from timm_checks import examine
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import append_row, make_parser, read_rows
from processes import LimitedWorker


def names_by_size(cache: Path) -> list[tuple[int, str, str]]:
    """List (parameters, name, kind) of all of timm's models, smallest first: opened on the meta device once."""
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
    """Hash what models have in common if only widths, depths and sizes differ."""
    classes = {type(m).__qualname__ for m in model.modules()}
    tensors = {key.rpartition(".")[2] for key in model.state_dict()}
    settings = [getattr(model, setting, None) for setting in ("global_pool", "num_prefix_tokens", "no_embed_class")]
    content = repr((_model_to_module[name], sorted(classes), sorted(tensors), settings))
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def sweep(path: Path, jobs: list[tuple[Any, ...]], seconds: float, gigabytes: int) -> None:
    """Examine names, each within limits, and add their rows to a file."""
    worker = LimitedWorker(examine, seconds, gigabytes)
    for job in jobs:
        answer = worker.run(*job)
        if isinstance(answer, str):
            row = {"name": job[0], "module": _model_to_module[job[0]], "params": job[1], "exact": None}
            answer = row | {"reason": f"not run: {answer}"}
        append_row(path, answer)
    worker.close()


def summary(rows: list[dict[str, Any]], kinds: dict[str, str]) -> str:
    """Write a Markdown table by module, the totals, and the reasons ranked by the names that they cost."""
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
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--summary", action="store_true", help="print tables of the rows, and examine nothing")
    parser.add_argument("--one-of-each-kind", action="store_true", help="the smallest name of each kind")
    parser.add_argument("--filter", default="*", help="names to take, as in timm.list_models")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th name, from the i-th")
    parser.add_argument("--limit-seconds", type=float, default=300, help="processor time for one name")
    parser.add_argument("--memory", type=int, default=12, help="GiB of address space for one name")
    parser.add_argument("--max-params", type=int, default=400_000_000, help="larger models are not run")
    parser.add_argument("--pair-params", type=int, default=150_000_000, help="larger models are not stitched")
    args = parser.parse_args()
    done = read_rows(args.rows)
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
        done = read_rows(args.rows)
    print(summary(done, kinds))


if __name__ == "__main__":
    main()
