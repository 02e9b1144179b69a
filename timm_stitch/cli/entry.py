"""The command line: `timm-stitch VERB`, also `python -m timm_stitch VERB`.

A user's mistake is one line and a non-zero status; a mistake of ours shows its traceback. The verbs are in the other
files here, each with a function `add_verbs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
import yaml

from ..data.processes import leave, rank
from ..errors import OutputInUseError, WrongTypeError
from ..training.interruption import RunInterrupted
from . import check, deployment, evaluation, plans, serving, training, weights

# The errors of input: arguments, files, the network, packages, a diverging run, memory. Others are our mistakes.
_ERRORS = (
    ValueError,
    WrongTypeError,
    OSError,
    ImportError,
    OutputInUseError,
    FloatingPointError,
    torch.OutOfMemoryError,
    yaml.YAMLError,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    options, unknown = make_parser().parse_known_args(argv)
    if unknown and options.verb != "train":  # which says what fields there are
        return _fail(f"unknown arguments: {' '.join(unknown)}; see timm-stitch {options.verb} --help.", 2)
    options.unknown = unknown
    try:
        status: int | None = options.run(options)
    except _ERRORS as error:
        return _fail(str(error) or repr(error), 1)
    except RunInterrupted as ended:
        return _fail(str(ended), 128 + ended.number) if rank() == 0 else 128 + ended.number
    except KeyboardInterrupt:
        return _fail("interrupted.", 130)
    finally:
        leave()
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; it sets `run` to the function that does what a verb says."""
    parser = argparse.ArgumentParser(prog="timm-stitch", description="Stitchable neural networks for timm.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in (plans, check, training, evaluation, weights, deployment, serving):
        group.add_verbs(verbs)
    return parser


def _fail(message: str, status: int) -> int:
    """Say in one line what went wrong."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status
