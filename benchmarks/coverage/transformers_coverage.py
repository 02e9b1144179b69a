"""Which models of transformers are anchors? Every type of four tasks at a tiny size, opened, stitched, saved.

    python benchmarks/coverage/transformers_coverage.py rows.jsonl             # causal, masked, sequence, image
    python benchmarks/coverage/transformers_coverage.py rows.jsonl --summary   # tables of the rows

A type counts as open if a network of two of its models (other widths where it takes them) gives bit for bit what the
models give, eager and sdpa, at two batch sizes with padding; gradients are within 1e-5; what was saved and loaded, and
one stitch extracted, give the same. Of causal models: with a cache as without on every stitch tried, padded on the
left, with beams, and after a switch. Each type runs in a worker that is replaced when it dies or takes too long. Types
that need other inputs than tokens or images, or have an encoder and a decoder, are listed with the reason.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from transformers_checks import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import append_row, make_parser, read_rows
from processes import LimitedWorker

TASKS = ("ForCausalLM", "ForMaskedLM", "ForSequenceClassification", "ForImageClassification")
JOBS = 20  # types to a worker
BOUND = 90  # seconds of the processor for a type


def list_types() -> list[tuple[str, str, str]]:
    """List every type and its class, task by task; one that does several tasks is tried with the first."""
    from transformers.models.auto import modeling_auto as auto

    lists = {
        "ForCausalLM": auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "ForMaskedLM": auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        "ForSequenceClassification": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "ForImageClassification": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    }
    found: dict[str, tuple[str, str, str]] = {}  # by the type
    for task in ("ForMaskedLM", "ForSequenceClassification", "ForCausalLM", "ForImageClassification"):
        for kind, name in lists[task].items():
            first = name if isinstance(name, str) else name[0]
            decoder = kind in lists["ForCausalLM"] and kind not in lists["ForMaskedLM"]
            if task == "ForSequenceClassification" and decoder:
                continue
            found.setdefault(kind, (kind, first, task))
    return sorted(found.values(), key=lambda t: (TASKS.index(t[2]), t[0]))


def sweep(path: Path, types: list[tuple[str, str, str]], gigabytes: int) -> None:
    """Examine types, each within limits, and add their rows to a file."""
    worker = LimitedWorker(examine, BOUND, gigabytes, JOBS)
    for kind, name, task in types:
        row = worker.run(kind, name, task)
        if isinstance(row, str):
            row = {"type": kind, "class": name, "task": task, "open": False, "reason": row}
        append_row(path, row)
        print(kind, task, "open" if row["open"] else row.get("reason", ""), row.get("generates", ""), flush=True)
    worker.close()


def summary(rows: list[dict[str, Any]]) -> str:
    """Write a Markdown table by task, and the reasons."""
    lines = ["| task | types | open | generate with a cache | switch |", "|---|---|---|---|---|"]
    built = [r for r in rows if not str(r.get("reason", "")).startswith("build:")]
    for task in TASKS:
        some = [r for r in built if r["task"] == task]
        counts = [sum(bool(r.get(what)) for r in some) for what in ("open", "generates", "switches")]
        lines.append(f"| {task} | {len(some)} | {counts[0]} | {counts[1]} | {counts[2]} |")
    opened = sum(bool(r.get("open")) for r in built)
    lines.append(
        f"\n{opened} of {len(built)} types that were built are open; {len(rows) - len(built)} were kept aside.\n"
    )
    reasons = Counter(f"{r['type']}: {r['reason']}" for r in rows if r.get("reason"))
    return "\n".join([*lines, *(f"- {reason}" for reason in reasons)])


def main() -> None:
    """Examine what is missing, then print tables of the rows."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--summary", action="store_true", help="print tables of the rows, and examine nothing")
    parser.add_argument("--only", nargs="+", default=[], help="types to examine (default: all)")
    parser.add_argument("--memory", type=int, default=12, help="GiB of address space for a worker")
    args = parser.parse_args()
    done = read_rows(args.rows)
    if not args.summary:
        seen = {row["type"] for row in done}
        todo = [t for t in list_types() if t[0] not in seen and (not args.only or t[0] in args.only)]
        sweep(args.rows, todo, args.memory)
        done = read_rows(args.rows)
    print(summary(done))


if __name__ == "__main__":
    main()
