"""The tree in CONTRIBUTING names every file of the package, and no other."""

import re
from pathlib import Path

import timm_stitch

PACKAGE = Path(timm_stitch.__file__).parent


def test_the_tree_names_every_file():
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = re.search(r"```\ntimm_stitch/\n(.*?)```", page, re.DOTALL)[1]
    files = {file.stem for file in PACKAGE.rglob("*.py") if file.parent.name != "tracing"}
    files -= {"__init__", "__main__", "run"}
    assert files - set(re.findall(r"\w+", tree)) == set()
