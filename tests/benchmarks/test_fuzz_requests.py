"""The short form of the fuzz of requests: nothing wrong, nobody waits, the server stays healthy."""

import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "robustness"


@pytest.mark.skipif(sys.platform != "linux", reason="it reads the server's memory from /proc")
def test_changed_requests_get_right_answers_or_refusals(monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parents[1]))
    before = set(sys.modules)
    main = runpy.run_path(str(FOLDER / "fuzz_requests.py"))["main"]
    try:
        assert main(["--requests", "150", "--seed", "4"]) == 0, capsys.readouterr().out
    finally:
        for name in set(sys.modules) - before:
            if str(FOLDER.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]
