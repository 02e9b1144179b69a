"""The command line: `timm-stitch VERB`, also `python -m timm_stitch VERB`.

A user's mistake is one line and a non-zero status; a mistake of ours shows its traceback. The verbs are in the other
files here, each with a function `add_verbs`.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress

from .. import __version__
from ..errors import OutputInUseError, RunInterrupted, WrongTypeError
from . import check, deployment, evaluation, plans, prediction, serving, training, weights
from .mistakes import Parser, fail, name_flag, name_network, unknown_arguments
from .options import json_alone

# The errors of input: arguments, files, the network, packages, a diverging run, memory. Others are our mistakes.
_ERRORS = (
    ValueError,
    WrongTypeError,
    OSError,
    ImportError,
    OutputInUseError,
    FloatingPointError,
)

_SIGPIPE = 13


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    try:
        try:
            return _run(argv)
        finally:
            _flush()
    except BrokenPipeError:  # whoever reads the output has closed it, as `head` does
        _discard_output()
        return 128 + _SIGPIPE


def _run(argv: Sequence[str] | None) -> int:
    try:
        parser = make_parser()
        _complete(parser)
        options, unknown = parser.parse_known_args(argv)
    except ValueError as error:  # a number out of range
        return fail(str(error), 1)
    verb: argparse.ArgumentParser = options.parser
    if unknown and options.verb != "train":  # which says what fields there are
        return fail(f"{unknown_arguments(unknown, verb)}; see timm-stitch {options.verb} --help.", 2)
    options.unknown = unknown
    try:
        with json_alone() if options.json else nullcontext():
            status: int | None = options.run(options)
    except Exception as error:
        closed = isinstance(error, BrokenPipeError) and _output_is_closed()  # and not a connection that broke
        if closed or not isinstance(error, _errors()):
            raise
        message = name_flag(str(error) or repr(error), verb)
        return fail(name_network(message, getattr(options, "model", None) or ["NET"]), 1)
    except RunInterrupted as ended:
        return fail(str(ended), 128 + ended.number) if _is_first() else 128 + ended.number
    except KeyboardInterrupt:
        return fail("interrupted.", 130)
    finally:
        _leave()
    return status or 0


def _errors() -> tuple[type[Exception], ...]:
    """List the errors of input, with those of the libraries that are imported."""
    torch, yaml = sys.modules.get("torch"), sys.modules.get("yaml")
    more = [getattr(torch, "OutOfMemoryError", None), getattr(yaml, "YAMLError", None)]
    return (*_ERRORS, *(kind for kind in more if kind is not None))


def _is_first() -> bool:
    """Whether this is the first process of a run, or the only one."""
    from ..data.processes import rank

    return rank() == 0


def _leave() -> None:
    """Leave the process group, if there is one."""
    if "torch" in sys.modules:
        from ..data.processes import leave

        leave()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; it sets `run` to the function that does what a verb says."""
    parser = Parser(prog="timm-stitch", description="Stitchable neural networks for timm.")
    parser.add_argument("--version", action="version", version=f"timm-stitch {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for group in (plans, check, training, evaluation, prediction, weights, deployment, serving):
        group.add_verbs(verbs)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a line can go on, by argcomplete, and end."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)


def _flush() -> None:
    """Write what is printed; a closed pipe shows here at the latest."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()


def _output_is_closed() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads any more."""
    if not hasattr(select, "poll"):  # Windows
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # one that is no file
            poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _discard_output() -> None:
    """Let what is still to be printed vanish, so that the interpreter ends without a message."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # one that is no file
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
