"""Errors that a user's input causes, of types that Python and libraries also raise for programming mistakes.

The command line shows these, as any ValueError, in one line; a plain TypeError or RuntimeError shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class WrongTypeError(TypeError):
    """An argument of a type that does not fit."""


class OutputInUseError(RuntimeError):
    """Another run is training into the same output."""


class RunInterrupted(KeyboardInterrupt):
    """The end of a run by a signal, after its checkpoint.

    Args:
        message: the checkpoint, and how to continue.
        number: the number of the signal.
    """

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def missing_extra(what: str, extra: str) -> ImportError:
    """Make the error for packages that an extra installs.

    Args:
        what: the beginning of the message, such as "drawing needs matplotlib".
        extra: the name of the extra.
    """
    return ImportError(f"{what}: pip install '.[{extra}]' in a clone of timm_stitch.")


@contextmanager
def library_errors(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors by which a library refuses input into one that names the input.

    Args:
        what: the beginning of the message, such as "timm cannot make 'resnet'".
        kinds: the types that the library raises.

    Raises:
        WrongTypeError, ValueError: with the first line of the library's message; the first for a TypeError.
    """
    try:
        yield
    except kinds as error:
        if isinstance(error, WrongTypeError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = WrongTypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what} ({reason:.240}).") from error


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn whatever a library raises on files that it does not expect into one line.

    Errors of our own types, which are one line already, stay as they are.

    Args:
        what: the beginning of the message, such as "the network in 'folder' cannot be loaded".

    Raises:
        OSError: for an OSError of several lines.
        ValueError: for all other errors.
    """
    try:
        yield
    except Exception as error:
        text = str(error).strip()
        if isinstance(error, (ValueError, OSError, WrongTypeError, OutputInUseError)) and "\n" not in text:
            raise
        line = f"{what} ({type(error).__name__}: {' '.join(text.split()):.240})."
        raise (OSError if isinstance(error, OSError) else ValueError)(line) from error
