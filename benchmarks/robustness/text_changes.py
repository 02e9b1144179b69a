"""Does a changed model of transformers do in a network what it does alone? Types x changes, each equal or refused.

    python benchmarks/robustness/text_changes.py rows.jsonl             # all types that take tokens, 19 changes each
    python benchmarks/robustness/text_changes.py rows.jsonl --summary   # a table of the rows

A change is a field of the configuration set after building or not declared, an output asked for, more tokens, an
argument of `from_pretrained`, a setting of generation. Its outcome is `equal` if the network's anchor gives what the
model alone gives, and what was saved and loaded the same; `refused` by one line; `skipped` where the model alone does
not do it; else `DIFFERENT`, or `RAW` for an error of several lines or of another kind. The exit status is 1 if there is
one of the last two.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
sys.path.insert(0, str(Path(__file__).parents[1] / "coverage"))
from command_line import append_row, make_parser, read_rows
from processes import LimitedWorker
from text_change_checks import CHANGES, examine
from transformers_coverage import list_types

CLASSIFIERS = (
    "bert", "roberta", "distilbert", "electra", "deberta-v2", "modernbert", "llama", "gpt2", "qwen2", "mistral",
    "gemma2", "bloom", "opt", "gpt_neox", "phi3",
)  # fmt: skip
JOBS, BOUND = 20, 120  # types to a worker, and seconds of the processor for a type


def classifiers() -> list[tuple[str, str, str]]:
    """List classifiers of texts of some types, whose other tasks are tried too."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as NAMES

    return [(kind, str(NAMES[kind]), "ForSequenceClassification") for kind in CLASSIFIERS]


def summary(rows: list[dict[str, Any]]) -> str:
    """Write a Markdown table by change, and what went wrong."""
    tried = [row for row in rows if row.get("outcomes")]
    lines = ["| change | equal | refused | skipped | different | raw errors |", "|---|---|---|---|---|---|"]
    for change in CHANGES:
        counts = Counter(row["outcomes"].get(change) for row in tried)
        figures = (counts[outcome] for outcome in ("equal", "refused", "skipped", "DIFFERENT", "RAW"))
        lines.append(f"| {change} | {' | '.join(map(str, figures))} |")
    types = len({row["type"] for row in tried})
    lines.append(f"\n{len(tried)} models of {types} types were tried; {len(rows) - len(tried)} are no anchors here.\n")
    for row in tried:
        for change, detail in row["details"].items():
            if row["outcomes"][change] in ("DIFFERENT", "RAW"):
                lines.append(f"- {row['type']}, {change}: {row['outcomes'][change]} {detail}")
    return "\n".join(lines)


def main() -> int:
    """Try what is missing, then print the summary."""
    parser = make_parser(__doc__)
    parser.add_argument("rows", type=Path, help="JSON-lines file to append to")
    parser.add_argument("--summary", action="store_true", help="print tables of the rows, and try nothing")
    parser.add_argument("--only", nargs="+", default=[], help="types to try (default: all)")
    parser.add_argument("--most", type=int, default=1000, help="number of types to try in this run")
    parser.add_argument("--memory", type=int, default=12, help="GiB of address space for a worker")
    args = parser.parse_args()
    if not args.summary:
        seen = {row["class"] for row in read_rows(args.rows)}
        types = [t for t in (*classifiers(), *list_types()) if t[2] != "ForImageClassification" and t[1] not in seen]
        worker = LimitedWorker(examine, BOUND, args.memory, JOBS)
        for kind, name, task in [t for t in types if not args.only or t[0] in args.only][: args.most]:
            row = worker.run(kind, name, task)
            if isinstance(row, str):
                row = {"type": kind, "class": name, "task": task, "reason": row}
            append_row(args.rows, row)
            print(kind, row.get("reason") or dict(Counter(row["outcomes"].values())), flush=True)
        worker.close()
    rows = read_rows(args.rows)
    print(summary(rows))
    return int(any({"DIFFERENT", "RAW"} & set(row.get("outcomes", {}).values()) for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
