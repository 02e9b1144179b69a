"""Importing the package imports nothing heavy, and still registers the models; its names come at their first use."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import timm_stitch

HEAVY = ("torch", "timm", "numpy", "transformers", "accelerate", "huggingface_hub", "PIL")


def run(code):
    """The output of Python code in a process of its own."""
    ended = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import timm_stitch",
        "from timm_stitch import StitchPlan, TrainConfig, pareto_frontier, read_rows",
        *(
            f"from timm_stitch.cli import main\ntry: main('{words}'.split())\nexcept SystemExit: pass"
            for words in ("list", "--help", "--version", "nonsense", "train --help", "export --help", "eval --nonsense")
        ),
    ],
)
def test_nothing_heavy_is_imported(code):
    shown = f"import sys; print('heavy:', *(name for name in {HEAVY} if name in sys.modules))"
    words = run(code + "\n" + shown)
    assert words[words.index("heavy:") + 1 :] == []


@pytest.mark.parametrize(
    "first",
    [
        "timm_stitch, timm",
        "timm, timm_stitch",
        "timm_stitch, timm.models",
        "timm_stitch.text, timm",
        "timm_stitch.models.snnet, timm",
        "timm_stitch.families.timm_models.pretrained_cfg, timm",
    ],
)
def test_timm_knows_the_models_after_the_import_whichever_is_first(first):
    code = "timm.create_model('snnet_levit_192_256', device='meta').num_stitches, timm.__spec__.loader.name"
    assert run(f"import {first}; print({code})") == ["8", "timm"]


def test_looking_for_timm_does_not_import_it():
    code = "import sys, timm_stitch, importlib.util as u; print(u.find_spec('timm').name, 'timm' in sys.modules)"
    assert run(code) == ["timm", "False"]


def test_saved_rows_come_with_the_auto_classes():
    assert run("import sys, timm_stitch.text; print('timm_stitch.hub.loading' in sys.modules)") == ["True"]


def test_every_module_is_an_attribute_of_its_folder():
    code = "print(timm_stitch.plan.enumeration.__name__, timm_stitch.deployment.serving.config.__name__)"
    names = ["timm_stitch.plan.enumeration", "timm_stitch.deployment.serving.config"]
    assert run(f"import timm_stitch; {code}") == names
    with pytest.raises(AttributeError, match=r"module 'timm_stitch\.plan' has no attribute 'nonsense'"):
        _ = timm_stitch.plan.nonsense


def test_type_checkers_see_what_is_imported_at_first_use():
    tree = ast.parse(Path(timm_stitch.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    seen = {name.name: node.module for node in block.body for name in node.names}
    assert seen == timm_stitch._PLACES
    assert sorted(seen) == sorted(timm_stitch.__all__) == dir(timm_stitch)
    for name in timm_stitch.__all__:
        assert getattr(timm_stitch, name).__name__ == name
    with pytest.raises(AttributeError, match="module 'timm_stitch' has no attribute 'nonsense'"):
        _ = timm_stitch.nonsense
