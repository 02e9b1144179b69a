"""Answers to mistakes on the command line: the nearest verb, flag or choice, and the flag that an error is about."""

from __future__ import annotations

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from .tables import paint


def nearest(word: str, choices: Iterable[str]) -> str:
    """Suggest the choice that a word is nearest to: ` (did you mean eval?)`; nothing if none is near."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def fail(message: str, status: int) -> int:
    """Say in one line what went wrong; returns the status."""
    print(f"{paint('error:', '31', sys.stderr)} {' '.join(message.split())}", file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the nearest choice."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and keep the words for `error`."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def _has(self, flag: str) -> bool:
        """Whether a flag, or one that it abbreviates, is of this parser."""
        return any(own.startswith(flag) for own in self._option_string_actions)

    def error(self, message: str) -> NoReturn:
        """Say in one line what cannot be read, and end the program."""
        unknown = [word for word in self._words if word.startswith("--") and not self._has(word.partition("=")[0])]
        if unknown and message.startswith("the following arguments are required"):
            message = unknown_arguments(unknown, self)
        self.exit(fail(f"{message.rstrip('.')}; see {self.prog} --help.", 2))

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        choices = [str(choice) for choice in action.choices]
        near = nearest(str(value), choices) or f" (choose from {', '.join(choices)})"
        raise argparse.ArgumentError(action, f"invalid choice: {value!r}{near}")


def unknown_arguments(unknown: list[str], verb: argparse.ArgumentParser) -> str:
    """Describe arguments that a verb does not have, with the nearest flag of each."""
    flags = list(verb._option_string_actions)
    words = [word + nearest(word.partition("=")[0], flags) if word.startswith("--") else word for word in unknown]
    text = f"unknown arguments: {' '.join(words)}"
    if "--beside" in flags and not any(word.startswith("--") for word in unknown):
        text += " (one curve is drawn, others after --beside)"
    return text


def name_network(message: str, names: Sequence[str]) -> str:
    """Put the networks of this command in place of `NET` in the commands that an error shows."""
    return re.sub(r"(timm-stitch [a-z]+ )NET\b", lambda command: command[1] + shlex.join(names), message)


def name_flag(message: str, verb: argparse.ArgumentParser) -> str:
    """Put the flag before an error that begins with the name of an argument: `stitch_id=99 is not …`."""
    begins = re.match(r"([a-z]\w*)(=| must )", message)
    flags = {action.dest: action.option_strings[0] for action in verb._actions if action.option_strings}
    return f"{flags[begins[1]]}: {message}" if begins and begins[1] in flags else message
