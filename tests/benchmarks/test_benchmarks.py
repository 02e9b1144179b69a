"""The benchmarks in `benchmarks/`: each starts, explains itself and is listed; they measure by one set of functions."""

import argparse
import re
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if '__name__ == "__main__"' in path.read_text())
TEXTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *FOLDER.rglob("*.py"), ROOT / ".pre-commit-config.yaml"]


@pytest.fixture
def _isolated(monkeypatch):
    """Leave `sys.path` and `sys.modules` as they were: files of two folders may have one name."""
    monkeypatch.setattr(sys, "path", [str(FOLDER / "shared"), *sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


class Parsed(Exception):  # noqa: N818 (it is no error)
    """Carries the parser out of a benchmark."""


@pytest.mark.usefixtures("_isolated")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_benchmark_starts_and_explains_itself(path, monkeypatch):
    def stop(parser, *args, **kwargs):
        raise Parsed(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    sys.path.insert(0, str(path.parent))
    with pytest.raises(Parsed) as caught:
        runpy.run_path(str(path), run_name="__main__")
    parser = caught.value.args[0]
    assert "?" in parser.description.splitlines()[0], "the first line is the question"
    assert parser.format_help()
    for action in parser._actions:
        assert action.help, f"{action.dest} has no help"
        assert not action.help.startswith("of "), action.dest


def test_every_benchmark_is_in_the_table():
    table = (FOLDER / "README.md").read_text()
    for path in SCRIPTS:
        assert (
            f"`{path.relative_to(FOLDER).as_posix()} " in table or f"`{path.relative_to(FOLDER).as_posix()}`" in table
        )
    for name in re.findall(r"`(\w+/\w+\.(?:py|jsonl))", table):
        assert (FOLDER / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_benchmarks_that_a_text_names_exist(path):
    for name in re.findall(r"\bbenchmarks/[\w/]+\.(?:py|jsonl)\b", path.read_text()):
        assert (ROOT / name).exists(), name


@pytest.mark.usefixtures("_isolated")
def test_calls_are_timed_in_turns_whose_order_changes():
    from measuring import time_in_turns

    order = []
    clock = iter(range(100)).__next__
    times = time_in_turns({name: lambda name=name: order.append(name) for name in "abc"}, 4, warm_up=2, clock=clock)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert len(rounds) == 6
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert all(rounds[i] == rounds[i + 1][::-1] for i in (0, 2, 4))
    assert times == {name: [1000.0] * 4 for name in "abc"}


@pytest.mark.usefixtures("_isolated")
def test_a_comparison_is_of_neighbours():
    from measuring import compare

    drifting = [1.0, 2.0, 4.0, 8.0]
    assert compare([2 * t for t in drifting], drifting).as_list() == [2.0, 2.0, 2.0]
    assert str(compare([3.0], [2.0])) == "1.500 (1.500 to 1.500)"


@pytest.mark.usefixtures("_isolated")
def test_two_checkouts_run_in_turns(tmp_path):
    from measuring import compare_checkouts

    for name in ("ours", "theirs"):
        package = tmp_path / name / "timm_stitch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"NAME = {name!r}\n")
    setup, statement = "import timm_stitch", f"print(timm_stitch.NAME, file=open({str(tmp_path / 'log')!r}, 'a'))"
    row = compare_checkouts(tmp_path / "ours", tmp_path / "theirs", statement, setup, rounds=2)
    ran = (tmp_path / "log").read_text().split()
    assert sorted(ran[:2]) == sorted(ran[2:]) == ["ours", "theirs"]
    assert ran[0] == ran[3]
    assert row["ours_ms"]["min"] <= row["ours_ms"]["median"] <= row["ours_ms"]["max"]
    assert row["theirs_peak_mb"]["median"] > 1
    assert len(row["quartiles_of_ratio_of_ms"]) == 3


@pytest.mark.usefixtures("_isolated")
def test_a_package_from_elsewhere_is_refused(tmp_path):
    from measuring import run_snippet

    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    checkout.mkdir()
    (elsewhere / "timm_stitch").mkdir(parents=True)
    (elsewhere / "timm_stitch/__init__.py").touch()
    setup = f"import sys; sys.path.insert(0, {str(elsewhere)!r})"
    with pytest.raises(RuntimeError, match=re.escape(f"expected timm_stitch from {checkout}, got {elsewhere}")):
        run_snippet(checkout, "import timm_stitch", setup)
