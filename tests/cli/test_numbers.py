"""Numbers of the command line: what is no number, or out of range, is one line that names the flag."""

import argparse

import pytest

from timm_stitch.cli.entry import main, make_parser
from timm_stitch.cli.numbers import InRange
from timm_stitch.training.config import TrainConfig

CHECKED_BY_THE_SERVER = {"--latency-ms", "--port", "--max-body-mb"}  # whose errors say more
VERBS = make_parser()._subparsers._group_actions[0].choices
NUMBERS = [
    (verb, action)
    for verb, parser in VERBS.items()
    for action in parser._actions
    if action.type in (int, float) and not (verb == "serve" and action.option_strings[0] in CHECKED_BY_THE_SERVER)
]
IDS = [f"{verb} {action.option_strings[0]}" for verb, action in NUMBERS]
NEEDED = {"train": ["folder"], "plot": ["x"], "frontier": ["x"], "convert": ["x", "y"], "check": ["x"], "list": []}


def run(verb, *words):
    return main([verb, *NEEDED.get(verb, ["net"]), *words])


@pytest.mark.parametrize(("verb", "action"), NUMBERS, ids=IDS)
def test_every_number_has_a_range(verb, action, capsys):
    assert isinstance(action, InRange)
    flag = action.option_strings[0]
    beyond = [int(action.least) - 1 if action.least <= 0 else 0]
    beyond += [] if action.most == float("inf") else [int(action.most) + 1, 10**30]
    for value in beyond:
        assert run(verb, f"{flag}={value}") == 1
        assert capsys.readouterr().err.startswith(f"error: {flag} must be ")


@pytest.mark.parametrize(("verb", "action"), NUMBERS, ids=IDS)
@pytest.mark.parametrize("text", ["", "nan", "1.5.2", "five"])
def test_what_is_no_number_is_one_line(verb, action, text, capsys):
    flag = action.option_strings[0]
    try:
        status = run(verb, f"{flag}={text}")
    except SystemExit as end:
        status = end.code
    assert status in (1, 2)
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith((f"error: {flag} must be ", f"error: argument {flag}: invalid "))


def test_a_misuse_is_one_line(capsys):
    for words, message in (
        ([], "the following arguments are required: VERB"),
        (["fly"], "argument VERB: invalid choice: 'fly'"),
        (["extract", "net"], "the following arguments are required: --stitch-id, --output"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(words)
        error = capsys.readouterr().err.splitlines()
        assert len(error) == 1
        assert error[0].startswith(f"error: {message}")
        assert error[0].endswith("--help.")


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 10**30])
@pytest.mark.parametrize("name", ["lr", "weight_decay", "mixup", "warmup_lr"])
def test_figures_of_a_run_are_finite(name, value):
    with pytest.raises(ValueError, match=rf"{name} must be finite, and below 2\^63 as a whole number, got"):
        TrainConfig(data_dir="x", **{name: value})


@pytest.mark.parametrize("name", ["seed", "epochs", "keep", "repeated_aug", "crop_scale"])
def test_whole_numbers_of_a_run_are_those_of_torch(name):
    value = (0.1, float("inf")) if name == "crop_scale" else 10**30
    with pytest.raises(ValueError, match=rf"{name} must be finite, and below 2\^63"):
        TrainConfig(data_dir="x", **{name: value})


def test_ranges_are_checked_for_each_of_several_numbers():
    parser = argparse.ArgumentParser()
    from timm_stitch.cli.numbers import in_range, positive

    parser.add_argument("--n", type=int, nargs="+", action=in_range(1, 9))
    parser.add_argument("--x", type=float, action=positive())
    assert parser.parse_args(["--n", "1", "9"]).n == [1, 9]
    assert parser.parse_args(["--x", "inf"]).x == float("inf")
    for words, message in ((["--n", "1", "12"], "--n must be at most 9, got 12."), (["--x=0"], "--x must be above 0")):
        with pytest.raises(ValueError, match=message):
            parser.parse_args(words)
