"""What type checkers see of the package: a user's script is checked, and its mistakes are found."""

import pydoc
import re
import subprocess
import sys

import pytest

import timm_stitch

SCRIPT = """
import timm_stitch
from torch import nn

models: list[nn.Module] = []
network = timm_stitch.stitch(models, direction="two_way", rank=4)
reveal_type(network)
reveal_type(timm_stitch.from_hub("user/name"))
reveal_type(timm_stitch.select(network, macs=1e9))
reveal_type(network.plan[3].name)
reveal_type(network.extract(3))
timm_stitch.export(network, "folder", format="onnx", quantize="int8")
config = timm_stitch.TrainConfig(epochs=3, lr=1e-3, sampling="sandwich", output="run", resume="auto")
print(network.num_classes, network.pretrained_cfg, network.anchors, network.stitch_table(), network.training)

timm_stitch.stich(models)  # wrong
network.stich_ids  # wrong
timm_stitch.stitch(models, direction="sideways")  # wrong
timm_stitch.stitch(models, kernel="2")  # wrong
timm_stitch.from_hub("user/name", extract="three")  # wrong
timm_stitch.export(network, "folder", format="onyx")  # wrong
timm_stitch.least_squares_init(network, [], method="jointly")  # wrong
timm_stitch.profile(network, precision="int8")  # wrong
timm_stitch.TrainConfig(epoch=3)  # wrong
timm_stitch.TrainConfig(sampling="sandwhich")  # wrong
timm_stitch.TrainConfig(output="run", resume="yes")  # wrong
timm_stitch.create_snnet("snnet", False, 3)  # wrong
"""
WRONG = {number for number, line in enumerate(SCRIPT.splitlines(), 1) if line.endswith("# wrong")}


def check(checker, command, tmp_path):
    """The lines of the script that a type checker complains about, and its output."""
    pytest.importorskip(checker)
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, text=True)
    return {int(n) for n in re.findall(r"script\.py:(\d+):(?:\d+)?:? ?-? ?error", ended.stdout)}, ended.stdout


def test_mypy_finds_the_mistakes_of_a_script_and_no_others(tmp_path):
    cache = ["--cache-dir", str(tmp_path / "cache"), "--follow-imports", "silent", "--ignore-missing-imports"]
    wrong, output = check("mypy", ["mypy", *cache, "script.py"], tmp_path)
    assert wrong == WRONG, output
    kinds = re.findall(r'Revealed type is "([^"]*)"', output)
    assert [kind.rpartition(".")[2] for kind in kinds] == ["SNNet", "StitchableNetwork", "int", "str", "SNNet"]


def test_pyright_finds_the_same_mistakes(tmp_path):
    wrong, output = check("pyright", ["pyright", "--pythonpath", sys.executable, "script.py"], tmp_path)
    assert wrong == WRONG, output


def test_help_begins_with_an_overview():
    text = pydoc.plain(pydoc.render_doc(timm_stitch))
    overview = text[: text.index("PACKAGE CONTENTS")]
    for name in timm_stitch.__all__:
        assert f"`{name}`" in overview, name
