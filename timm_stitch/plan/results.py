"""Measured rows of stitches, and the weights that they belong to.

A row is a dict of `stitch_id` and figures (`top1`, `latency_ms`, …); files hold one JSON object a line. `Results`
knows the weights of its rows by their fingerprint (`network.weights`) and refuses rows of several weights.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import PathLike, whole_file
from .stitch_plan import StitchPlan
from .timings import Row, merge_rows

Rows = list[dict[str, Any]]

# The columns that the network itself fills; all others were measured.
OWN = (
    "stitch_id", "name", "macs", "params", "published_macs", "published_params", "published_top1", "published_miou",
    "published_aacc", "published_macc", "projection_macs", "head_macs", "length", "weights",
)  # fmt: skip


@dataclass(frozen=True)
class Results:
    """Measured rows by stitch, and the weights that they belong to.

    Args:
        rows: `{stitch_id: {quantity: value}}`, without the columns that the network itself fills.
        weights_id: the fingerprint of the weights, or another value that identifies them; None only without rows.
    """

    rows: Mapping[int, Row] = field(default_factory=dict)
    weights_id: Hashable = None

    @classmethod
    def of(cls, rows: Iterable[Row], weights_id: Hashable = None) -> Results:
        """Collect rows, as `evaluate` and `profile` give them.

        Args:
            rows: rows with a `stitch_id`, and with the fingerprint as `weights` if it is known.
            weights_id: the weights of rows that name none.

        Raises:
            ValueError: if the rows belong to several weights.

        Examples:
            >>> from timm_stitch.plan.results import Results
            >>> results = Results.of([{"stitch_id": 24, "name": "a + b", "top1": 74.5, "weights": "0f3a"}])
            >>> results.weights_id, results.rows
            ('0f3a', {24: {'top1': 74.5}})
        """
        rows = list(rows)
        ids: set[Hashable] = {row.get("weights") or weights_id for row in rows}
        if len(ids) > 1:
            raise ValueError(
                f"rows must belong to one network, got those of {len(ids)} different weights "
                f"({', '.join(sorted(map(str, ids)))})."
            )
        merged = merge_rows((int(row["stitch_id"]), measured(row)) for row in rows)
        return cls(merged, ids.pop()) if merged else cls()

    def updated(self, newer: Results) -> Results:
        """Put newer rows over these; if they belong to other weights, keep the newer ones alone.

        Times and memory stay only if they come from the device and precision of the newest rows.
        """
        if not newer.rows:
            return self
        if not self.rows or newer.weights_id != self.weights_id:
            return newer
        return Results(merge_rows([*self.rows.items(), *newer.rows.items()]), self.weights_id)


@dataclass(frozen=True)
class SavedResults:
    """The contents of a saved network's `stitches.json`.

    Args:
        weights_id: the fingerprint of the weights that the rows belong to.
        plan: the network's plan.
        rows: the rows of the stitches, one each.
        training: the history of the weights: base models, training runs, repository.
    """

    weights_id: str
    plan: StitchPlan
    rows: Rows
    training: Mapping[str, Any] = field(default_factory=dict)


def measured(row: Row) -> Row:
    """Select the measured figures of a row, without the columns that the network itself fills."""
    return {key: value for key, value in row.items() if key not in OWN and value is not None}


def check_one_network(rows: Iterable[Row], source: PathLike) -> None:
    """Refuse rows of a file that holds those of several networks, or of several sets of images.

    Raises:
        ValueError: naming the file and what differs.
    """
    rows = list(rows)
    for column, what in (("weights", "weights"), ("data", "sets of images")):
        values = sorted({str(row[column]) for row in rows if row.get(column)})
        if len(values) > 1:
            raise ValueError(
                f"{str(source)!r} holds rows of {len(values)} different {what} ({', '.join(values[:4])}): evaluate one "
                "network on one set of images into a file of its own."
            )


def check_overwrite(path: PathLike, weights: str, stitch_ids: Collection[int], resume: bool) -> None:
    """Refuse to write rows into a file whose rows would be lost, or mixed with those of other weights.

    Args:
        path: the file; it need not exist.
        weights: the fingerprint of the network.
        stitch_ids: the stitches whose rows are to be written.
        resume: whether the rows in the file stay.

    Raises:
        ValueError: naming the file.
    """
    if not Path(path).exists():
        return
    old = read_rows(path)
    foreign = sorted({str(row["weights"]) for row in old if row.get("weights") not in (None, weights)})
    if resume and foreign:
        raise ValueError(
            f"{str(path)!r} holds rows of other weights ({', '.join(foreign[:4])}) than the network's ({weights}): "
            "give another --output, or remove it."
        )
    lost = sorted({str(row.get("stitch_id")) for row in old if row.get("stitch_id") not in stitch_ids})
    if lost and not resume:
        raise ValueError(
            f"{str(path)!r} holds rows of stitches that would be lost ({', '.join(lost[:6])}): keep them by --resume, "
            "or give another --output."
        )


def write_rows(path: PathLike, rows: Iterable[Row]) -> None:
    """Write rows as JSON lines; the file appears whole or not at all.

    Examples:
        >>> import tempfile, timm_stitch
        >>> path = tempfile.mkdtemp() + "/results.jsonl"
        >>> timm_stitch.write_rows(path, [{"stitch_id": 24, "top1": 74.5}])
        >>> timm_stitch.read_rows(path)
        [{'stitch_id': 24, 'top1': 74.5}]
    """
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(dict(row)) + "\n" for row in rows), encoding="utf-8")


def read_rows(path: PathLike) -> Rows:
    """Read the rows that `write_rows` wrote.

    Raises:
        OSError: if there is no such file.
        ValueError: if a line is not a JSON object.

    Examples:
        >>> import tempfile, timm_stitch
        >>> path = tempfile.mkdtemp() + "/results.jsonl"
        >>> timm_stitch.write_rows(path, [{"stitch_id": 24, "top1": 74.5}])
        >>> timm_stitch.read_rows(path)[0]["top1"]
        74.5
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        where = f"{str(path)!r}, line {number},"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON ({error}): expected one object a line.") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where} is not a JSON object: expected one row a line.")
        rows.append(row)
    return rows
