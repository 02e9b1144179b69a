"""The command line as people expect one: typos, tables that fit, colours, progress, completion."""

import io
import os
import sys

import pytest

from timm_stitch import progress
from timm_stitch.cli import tables
from timm_stitch.cli.entry import main
from timm_stitch.cli.mistakes import fail


class Terminal(io.StringIO):
    def isatty(self):
        return True


def fails(line, capsys):
    """The one line with which a command ends."""
    try:
        status = main(line.split())
    except SystemExit as stop:
        status = stop.code
    assert status
    (error,) = capsys.readouterr().err.splitlines()
    return error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("evl net", "error: argument VERB: invalid choice: 'evl' (did you mean eval?); see timm-stitch --help."),
        ("--hlp", "error: unknown arguments: --hlp (did you mean --help?); see timm-stitch --help."),
        ("eval net --data-dri x", "--data-dri (did you mean --data-dir?) x; see timm-stitch eval --help."),
        ("export net --formt onnx", "--formt (did you mean --format?); see timm-stitch export --help."),
        (
            "export net --format onx --output x",
            "argument --format: invalid choice: 'onx' (did you mean onnx?); see timm-stitch export --help.",
        ),
        ("train deit_tsb --epoch 3", "unknown fields epoch (did you mean epochs?): the fields are"),
        ("plot a.jsonl b.jsonl", "unknown arguments: b.jsonl (one curve is drawn, others after --beside); see"),
        ("xyzzy", "argument VERB: invalid choice: 'xyzzy' (choose from list, plan"),
    ],
)
def test_a_typo_is_answered_by_the_nearest(line, message, capsys):
    assert message in fails(line, capsys)


def test_errors_of_arguments_name_the_flag(capsys):
    error = fails("extract snnet_levit_192_256.anchors_in1k --stitch-id 99 --output x --device nowhere", capsys)
    assert error.startswith("error: --device nowhere cannot be used")
    assert fails("train deit_tsb --epochs many --output x", capsys).startswith(
        "error: --epochs: epochs must be of type"
    )


def lines_of(capsys):
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
def test_a_table_fits_the_terminal(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [
        {"stitch_id": n, "name": f"deit_tiny[0:{n}] + deit_small_patch16_224[{n}:12]", "macs": 10**n, "top1": 70.0 + n}
        for n in range(1, 9)
    ]
    tables.print_table(rows)
    shown, notes = capsys.readouterr()
    assert max(map(len, shown.splitlines())) <= columns
    assert all(f"{10**n:,}" in shown for n in range(1, 9)) or "macs" in notes
    assert ("left out for lack of room" in notes) == ("top1" not in shown)


def test_a_file_or_pipe_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    tables.print_table([{"name": "x" * 300, "macs": 1}])
    assert lines_of(capsys)[1] == "x" * 300 + "  1"


def test_colours_are_for_terminals_without_no_color(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    fail("no", 1)
    monkeypatch.setenv("NO_COLOR", "1")
    fail("no", 1)
    assert sys.stderr.getvalue() == "\x1b[31merror:\x1b[0m no\nerror: no\n"


def test_progress_is_a_line_now_and_then_elsewhere(monkeypatch, capsys):
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    bar = progress.progress_bar(total=8, desc="evaluate", unit="batch")
    for _ in range(8):
        bar.set_postfix({"loss": 1})
        bar.update()
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all(line.startswith("evaluate: ") and "\r" not in line for line in lines)
    for _ in progress.progress_bar(range(3), progress=False):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert type(progress.progress_bar(range(3), desc="evaluate")) is progress.tqdm


def test_shell_completion():
    pytest.importorskip("argcomplete")
    import subprocess

    env = os.environ | {"_ARGCOMPLETE": "1", "COMP_LINE": "timm-stitch ev", "COMP_POINT": "14", "_ARGCOMPLETE_IFS": " "}
    script = f"exec 8>&1; {sys.executable} -m timm_stitch 9>/dev/null >/dev/null"
    ended = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert "eval" in ended.stdout
