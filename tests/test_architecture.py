"""Imports point down only, and what needs no tensor needs no torch."""

import ast
from pathlib import Path

import pytest

import timm_stitch

ROOT = Path(timm_stitch.__file__).parent
STANDARD_ONLY = {
    "plan",
    "enumeration",
    "costs",
    "prefixes",
    "sampling",
    "frontier",
    "controlling",
    "published",
    "card_template",
}
TRAINING = {
    "sharding",
    "config",
    "recipes",
    "distributed",
    "loading",
    "distillation",
    "optimization",
    "checkpointing",
    "progress",
}
LEVELS = [
    STANDARD_ONLY,
    {
        *("compat", "lean", "cuts", "cutting", "forms", "openings", "program", "tracing", "views"),
        *("layers", "counting", "network", "stitching", "stitched", "paths", "choosing", "fingerprints", "modes"),
    },
    {
        *(
            "least_squares",
            "data",
            "evaluation",
            "plotting",
            "training",
            "profiling",
            "cascading",
            "recalibration",
            *TRAINING,
        ),
        *("saved_files", "cards", "saving"),
    },
    {
        *("ranges", "hub_errors", "sharing", "trainer_callback", "authors", "checkpoints", "snnet"),
        *("web_page", "spaces", "exporting"),
        *("run", "verbs", "cli", "__main__", "__init__"),
    },
]


def imports(path):
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
        if isinstance(node, ast.Import):
            found.update(name.name.split(".")[0] for name in node.names)
        if isinstance(node, ast.ImportFrom):
            found.add("." + (node.module or "") if node.level else (node.module or "").split(".")[0])
    return found


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_imports_point_down(path):
    level = next((i for i, names in enumerate(LEVELS) if path.stem in names), 1 if "view" in path.stem else None)
    assert level is not None, f"{path.name} belongs to no layer: name it in this test"
    for name in imports(path):
        if name.startswith("."):
            inner = name[1:]
            below = next((i for i, names in enumerate(LEVELS) if inner in names), 1)
            assert below <= level, f"{path.name} (layer {level}) imports {inner} (layer {below})"
        elif level == 0:
            assert name not in {"torch", "timm", "numpy", "safetensors", "transformers", "accelerate"}, name


def test_no_submodule_has_the_name_of_a_public_function():
    for name in timm_stitch.__all__:
        assert not (ROOT / f"{name}.py").exists(), name
        assert not isinstance(getattr(timm_stitch, name), type(ast)), name
