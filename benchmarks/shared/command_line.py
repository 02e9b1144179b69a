"""What every benchmark's command line does: parse arguments, and read, print and keep rows as JSON lines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make a parser whose help is the benchmark's module docstring, as it is written."""
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


def read_rows(path: Path) -> list[Row]:
    """Read all rows; a missing file has none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows in place of what a file holds."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add a row to a file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def print_row(row: Mapping[str, Any], path: Path | None = None) -> None:
    """Print a row at once, and add it to a file if one is given."""
    print(json.dumps(row), flush=True)
    if path is not None:
        append_row(path, row)
