"""A short form of the fuzz of files: nothing is executed, fetched or opened elsewhere, and errors are one line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers", minversion="5.20")
FUZZ = Path(__file__).parents[2] / "benchmarks" / "robustness" / "fuzz.py"


def test_a_hundred_files_do_no_harm():
    done = subprocess.run([sys.executable, FUZZ, "--files", "100", "--seed", "7"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^100 files, 0 wrong, at most \d+ MB$", done.stdout, re.MULTILINE)
