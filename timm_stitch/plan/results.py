"""What was measured of a network's stitches: rows of plain values, and which weights they belong to.

A row is a dict with `stitch_id` and what was measured (`top1`, `latency_ms`, …); files hold one JSON object a
line. Figures of other weights are never taken for a network's own: `Results` says whose they are, by the
fingerprint that `network.weights` makes, and rows of several weights are refused.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import PathLike, whole_file
from .stitch_plan import StitchPlan
from .timings import together

Row = Mapping[str, Any]
Rows = list[dict[str, Any]]

# What the network itself says of a stitch; everything else in a row was measured.
OWN = ("stitch_id", "name", "macs", "params", "published_macs", "published_params", "published_top1", "weights")


@dataclass(frozen=True)
class Results:
    """Measured rows by stitch, and the weights that they belong to.

    Args:
        rows: `{stitch_id: {quantity: value}}`, without what the network itself says of a stitch.
        weights: the fingerprint of the weights, or another mark by which a network knows its own; None only
            without rows.
    """

    rows: Mapping[int, Row] = field(default_factory=dict)
    weights: Hashable = None

    @classmethod
    def of(cls, rows: Iterable[Row], weights: Hashable = None) -> Results:
        """Collect rows, as `evaluate` and `profile` give them.

        Args:
            rows: each with a `stitch_id`, and with the fingerprint as `weights` if it is known.
            weights: those of rows that do not say.

        Raises:
            ValueError: if the rows belong to several weights.
        """
        rows = list(rows)
        marks: set[Hashable] = {row.get("weights") or weights for row in rows}
        if len(marks) > 1:
            raise ValueError(
                f"these rows belong to {len(marks)} different weights ({', '.join(sorted(map(str, marks)))}): give "
                "those of one network."
            )
        found = together((int(row["stitch_id"]), measured(row)) for row in rows)
        return cls(found, next(iter(marks), None)) if found else cls()

    def updated(self, newer: Results) -> Results:
        """These rows with newer ones over them; of other weights, the newer ones alone.

        Of times and memory only what was measured on the device and in the precision of the newest stays: a table
        mixes neither.
        """
        if not newer.rows:
            return self
        if not self.rows or newer.weights != self.weights:
            return newer
        return Results(together([*self.rows.items(), *newer.rows.items()]), self.weights)

    def only(self, stitch_ids: Collection[int]) -> Results:
        """The rows of some stitches."""
        rows = {k: row for k, row in self.rows.items() if k in stitch_ids}
        return Results(rows, self.weights) if rows else Results()


@dataclass(frozen=True)
class SavedResults:
    """The contents of a saved network's `stitches.json`.

    Args:
        weights: the fingerprint of the weights that the rows belong to.
        plan: the network's plan.
        rows: one row a stitch.
        training: how the weights came about.
    """

    weights: str
    plan: StitchPlan
    rows: Rows
    training: Mapping[str, Any] = field(default_factory=dict)


def measured(row: Row) -> dict[str, Any]:
    """What a row says beyond what the network itself knows of a stitch."""
    return {key: value for key, value in row.items() if key not in OWN and value is not None}


def check_one_network(rows: Iterable[Row], source: PathLike) -> None:
    """Refuse rows of a file that holds those of several networks, or of several sets of images.

    Raises:
        ValueError: naming the file and what differs.
    """
    rows = list(rows)
    for mark, what in (("weights", "weights"), ("data", "sets of images")):
        marks = sorted({str(row[mark]) for row in rows if row.get(mark)})
        if len(marks) > 1:
            raise ValueError(
                f"{str(source)!r} holds rows of {len(marks)} different {what} ({', '.join(marks[:4])}): evaluate one "
                "network on one set of images into a file of its own."
            )


def check_kept(path: PathLike, weights: str, stitch_ids: Collection[int], resume: bool) -> None:
    """Refuse to write rows into a file where others would be lost or mixed with them.

    Args:
        path: the file; it need not be there.
        weights: the fingerprint of the network.
        stitch_ids: whose rows are to be written.
        resume: whether the rows that are there stay.

    Raises:
        ValueError: naming the file.
    """
    if not Path(path).exists():
        return
    kept = read_rows(path)
    foreign = sorted({str(row["weights"]) for row in kept if row.get("weights") not in (None, weights)})
    if resume and foreign:
        raise ValueError(
            f"{str(path)!r} holds rows of other weights ({', '.join(foreign[:4])}) than the network's ({weights}): "
            "give another --output, or remove it."
        )
    lost = sorted({str(row.get("stitch_id")) for row in kept if row.get("stitch_id") not in stitch_ids})
    if lost and not resume:
        raise ValueError(
            f"{str(path)!r} holds rows of stitches that would be lost ({', '.join(lost[:6])}): keep them by --resume, "
            "or give another --output."
        )


def write_rows(path: PathLike, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines; the file appears whole or not at all."""
    with whole_file(path) as beside:
        beside.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: PathLike) -> Rows:
    """Read what `write_rows` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{str(path)!r}, line {number}, is not JSON ({error}): expected one object a line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{str(path)!r}, line {number}, is not a JSON object: expected one row a line.")
        rows.append(row)
    return rows
