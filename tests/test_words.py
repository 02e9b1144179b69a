"""What a machine can hold of the house style: options explain themselves, arguments have nouns, examples run."""

import argparse
import ast
import doctest
import inspect
import re
from pathlib import Path

import pytest
import timm
import torch

import timm_stitch
from timm_stitch.cli.entry import make_parser

PACKAGE = Path(timm_stitch.__file__).parent
# An Args line is a noun phrase, or a clause that begins with "whether"; it does not begin with one of these.
BARE = re.compile(r"(of|which|what|where|how|that|as|by|from|in|for|with|at|beside|on|under)\b")


def verbs():
    (action,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


@pytest.mark.parametrize("verb", verbs())
def test_every_option_has_a_help_text_that_stands_alone(verb):
    for action in verbs()[verb]._actions:
        if action.help is argparse.SUPPRESS:
            continue  # another spelling of an option that is shown
        assert action.help, f"{verb}: {action.option_strings or action.dest} has no help"
        assert not re.match(r"(of|that|which)\b", action.help), (
            f"{verb}: {action.option_strings or action.dest}: {action.help}"
        )


def args_lines():
    """Each line under Args of every docstring: (place, text)."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", text, re.MULTILINE)
            for line in re.findall(r"^ {4}([*\w][\w*, ]*): (.*)", section[1] if section else "", re.MULTILINE):
                yield f"{file.relative_to(PACKAGE)}: {node.name}: {line[0]}", line[1]


def test_every_argument_is_described_by_a_noun():
    assert [f"{place}: {text}" for place, text in args_lines() if BARE.match(text)] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", timm_stitch.__all__)
def test_every_public_name_has_an_example_that_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(timm_stitch, name)
    tests = doctest.DocTestFinder(recurse=False).find(
        value, name, globs={"timm_stitch": timm_stitch, "timm": timm, "torch": torch}
    )
    assert any(test.examples for test in tests), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        assert runner.run(test).failed == 0
