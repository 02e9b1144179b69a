"""What is printed, and where: pipes that close, JSON alone on stdout, the version."""

import json
import math
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch.cli import plans
from timm_stitch.cli.entry import main
from timm_stitch.cli.options import print_json

COMMAND = f"{sys.executable} -W ignore -m timm_stitch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("output")
    torch.manual_seed(0)
    timm_stitch.save_pretrained(
        timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=2)[:2]), root / "net"
    )
    for split in ("train", "validation"):
        for label in "ab":
            (root / "images" / split / label).mkdir(parents=True)
            for n in range(4):
                Image.new("RGB", (32, 32), (ord(label), 30 * n, 0)).save(root / f"images/{split}/{label}/{n}.png")
    return root


@pytest.mark.parametrize("words", ["plan snnet_deit_tsb", "plan snnet_deit_tsb --json", "plan nothing 2>&1"])
def test_a_closed_pipe_ends_a_verb_quietly(words):
    script = f"set -o pipefail; {COMMAND} {words} | true"
    ended = subprocess.run(script, shell=True, executable="/bin/bash", capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_connection_that_breaks_is_an_error(monkeypatch, capsys):
    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(plans, "load_model", broken)
    assert main(["plan", "snnet_deit_tsb"]) == 1
    assert "error: [Errno 32] Broken pipe" in capsys.readouterr().err


def test_json_stands_alone_on_stdout(folder, tmp_path, capsys, monkeypatch):
    train = ["train", "folder", "--model", folder / "net", "--data-dir", folder / "images", "--epochs", 2]
    train += ["--warmup-epochs", 0, "--batch-size", 8, "--workers", 0, "--output", tmp_path / "net", "--json"]
    assert main([str(word) for word in train]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["steps"] == 2  # one line
    assert "epoch 1: frontier area" in said.err
    assert main([str(word) for word in [*train, "--resume", "auto"]]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2

    def chatty(*_, **__):
        print("a library says something")
        return folder

    monkeypatch.setattr("timm_stitch.hub.saving.save_pretrained", chatty)
    monkeypatch.setattr("timm_stitch.hub.loading.from_hub", chatty)
    assert main(["pull", "user/net", "--output", str(tmp_path / "x"), "--json"]) == 0
    assert capsys.readouterr() == (f'{{"path": "{folder}"}}\n', 2 * "a library says something\n")
    assert main(["pull", "user/net", "--output", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(folder)


def test_numbers_that_json_lacks_are_null(capsys):
    print_json({"loss": math.nan, "of": [math.inf, 1.5]})
    assert capsys.readouterr().out == '{"loss": null, "of": [null, 1.5]}\n'


def test_the_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"timm-stitch {timm_stitch.__version__}\n"
