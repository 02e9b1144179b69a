"""The interactive page: every row is in it, as data that cannot become markup."""

import json
import re

import pytest

from timm_stitch.cli import main
from timm_stitch.evaluation.curve_page import path_of, write_curve_page

ROWS = [
    {"stitch_id": 0, "name": "small", "macs": 2e6, "params": 10, "top1": 70.0},
    {"stitch_id": 1, "name": "large", "macs": 8e6, "params": 40, "top1": 80.0},
    {"stitch_id": 2, "name": "small[0:2] + large[2:4]", "macs": 5e6, "params": 30, "top1": 69.0},
]


def data_of(page):
    return json.loads(re.search(r"^const rows = (.*);$", page, re.MULTILINE)[1])


def test_each_row_has_its_path_and_whether_it_is_on_the_frontier(tmp_path):
    path = write_curve_page(ROWS, tmp_path / "curve.html", title="one & <two>")
    page = path.read_text()
    rows = {row["stitch_id"]: row for row in data_of(page)}
    assert rows[2]["path"] == [["small", 0, 2], ["large", 2, 4]]
    assert [rows[i]["frontier"] for i in range(3)] == [True, True, False]
    assert "<h1>one &amp; &lt;two&gt;</h1>" in page


def test_a_name_cannot_end_the_script(tmp_path):
    page = write_curve_page([{**ROWS[0], "name": "</script><b>"}], tmp_path / "curve.html").read_text()
    assert page.count("</script>") == 1
    assert data_of(page)[0]["name"] == "</script><b>"


@pytest.mark.parametrize(("name", "segments"), [
    ("a[0:1] + b[1:3] + a[3:4]", [("a", 0, 1), ("b", 1, 3), ("a", 3, 4)]),
    ("vit#0", [("vit#0", 0, -1)]),
])  # fmt: skip
def test_the_path_of_a_name(name, segments):
    assert path_of(name) == segments


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "snnet_levit_192_256", "--html"]) == 0
    assert len(data_of((tmp_path / "curve.html").read_text())) == 8
    assert main(["plot", "snnet_levit_192_256", "--html", "--beside", "snnet_deit_tsb"]) == 1
    assert "leave --beside out" in capsys.readouterr().err
