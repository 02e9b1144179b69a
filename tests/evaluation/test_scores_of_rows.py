"""Curves, cards, tables and the command line rank rows by the score that they have."""

import json
import re

import pytest

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.evaluation.curve_page import write_curve_page
from timm_stitch.hub.json_files import is_plain
from timm_stitch.plan.results import write_rows
from timm_stitch.training.verdict import training_report

DEPTH = [
    {"stitch_id": 0, "name": "small", "macs": 2e6, "params": 10, "abs_rel": 0.25},
    {"stitch_id": 1, "name": "large", "macs": 8e6, "params": 40, "abs_rel": 0.1234},
    {"stitch_id": 2, "name": "small[0:2] + large[2:4]", "macs": 5e6, "params": 30, "abs_rel": 0.3},
]
MASKS = [{**row, "miou": 100 * (1 - row["abs_rel"])} for row in DEPTH]


@pytest.fixture
def results(tmp_path):
    write_rows(tmp_path / "depth.jsonl", DEPTH)
    return str(tmp_path / "depth.jsonl")


def test_the_command_line_ranks_in_the_metrics_direction(results, capsys):
    main(["frontier", results, "--json"])
    assert [json.loads(line)["stitch_id"] for line in capsys.readouterr().out.splitlines()] == [0, 1]
    main(["frontier", results])
    assert "0.123" in capsys.readouterr().out
    assert main(["frontier", results, "--score", "miou"]) != 0
    assert "has no row with a miou" in capsys.readouterr().err


def test_the_page_names_its_score(tmp_path):
    page = write_curve_page(DEPTH, tmp_path / "curve.html").read_text()
    assert 'aria-label="Absolute relative error of depth of each stitch' in page
    assert '"words": "absolute relative error of depth"' in page
    rows = json.loads(re.search(r"^const rows = (.*);$", page, re.MULTILINE)[1])
    assert {row["stitch_id"]: row["frontier"] for row in rows} == {0: True, 1: True, 2: False}
    assert 'aria-label="Mean IoU of each' in write_curve_page(MASKS, tmp_path / "curve.html").read_text()


def test_the_curve_is_drawn_for_any_score(tmp_path):
    pytest.importorskip("matplotlib")
    for score in ("miou", "abs_rel"):
        assert timm_stitch.plot_curve(MASKS, tmp_path / f"{score}.png", score=score).stat().st_size > 1000
    with pytest.raises(ValueError, match="has no top5"):
        timm_stitch.plot_curve(DEPTH, tmp_path / "top5.png", score="top5")


def test_percentages_are_bounded():
    assert is_plain("miou", 100.0)
    assert not is_plain("miou", 101.0)
    assert is_plain("abs_rel", 101.0)


def test_a_report_knows_that_errors_grow():
    lines = training_report(DEPTH, {0: 0.2, 1: 0.2})
    assert "1 of 2 anchors lost accuracy in training: small from 0.200 to 0.250." in lines[0]
