"""A user's mistake is one line and a non-zero status, with every verb; a mistake of ours shows its traceback."""

import shutil

import pytest
import timm
import torch
from PIL import Image
from tiny import deit_specs

import timm_stitch
from timm_stitch.cli.entry import main


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A saved network in `net`, the same without weights in `bare`, images in `images`, no images in `empty`."""
    root = tmp_path_factory.mktemp("mistakes")
    torch.manual_seed(0)
    timm_stitch.save_pretrained(timm.create_model("snnet", anchors=deit_specs(depth=2, num_classes=2)), root / "net")
    shutil.copytree(root / "net", root / "bare")
    (root / "bare" / "model.safetensors").unlink()
    for split in ("train", "validation"):
        for label in "ab":
            (root / "images" / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 40), (ord(label), 30, 0)).save(root / f"images/{split}/{label}/0.png")
    (root / "empty").mkdir()
    (root / "rows.jsonl").write_text("{\n")
    (root / "recipe.yaml").write_text(
        f"model: local-dir:{root / 'net'}\ndata_dir: {root / 'images'}\nworkers: 0\nbatch_size: 2\nwarmup_epochs: 0\n"
        f"max_steps: 1\nmixup: 0\ncutmix: 0\noutput: {root / 'out'}\n"
    )
    return root


MISTAKES = {
    "list --hub x --limit -1": "",
    "plan resnet18.none resnet34": "timm cannot make the anchor 'resnet18.none' (Invalid pretrained tag",
    "plan --meet resnet18 nothing": "timm cannot make 'resnet18' or 'nothing' (Unknown model (nothing)).",
    "plan --meet resnet18 nasnetalarge": "'nasnetalarge' cannot be an anchor",
    "plan net --kernel-size 1 --rank 4": "'net' is one network with its own plan: --kernel-size, --rank chooses that",
    "plan --meet test_vit test_vit2 --stride 1": "--meet prints where two models can meet under any plan",
    "init test_vit test_vit2 --output new": "no images are named: set data_dir",
    "init net --data-dir empty --output new": "cannot open the images 'empty' (split 'train'), RuntimeError Found 0",
    "init net --data-dir images --output new --device cuda:99": "--device cuda:99 cannot be used",
    "init net --data-dir images --output new --device abacus": "--device abacus cannot be used",
    "init net --data-dir images --dataset-args 3 --output new": "dataset_args must be of type dict[str",
    "init bare --data-dir images --output new": "there is no model.safetensors in 'bare'",
    "train recipe.yaml --epochs many": "epochs must be of type int, got 'many'.",
    "train recipe.yaml --model-args {nothing:\xa01}": "got an unexpected keyword argument 'nothing'",
    "train recipe.yaml --auto-augment rand-m9-x5": "timm has no policy auto_augment='rand-m9-x5' (Unknown",
    "train recipe.yaml --auto-augment nothing": "timm has no policy auto_augment='nothing' (Unknown AA policy",
    "train recipe.yaml --train-interpolation nothing": "train_interpolation must be one of bilinear, bicubic, random",
    "train recipe.yaml --teacher nothing --distillation hard": "timm cannot make teacher='nothing' (Unknown model",
    "train recipe.yaml --device cuda:99": "--device cuda:99 cannot be used",
    "eval net --data-dir nowhere": "there is no folder 'nowhere'",
    "recalibrate net --data-dir images --stitch-id 99 --output new": "stitch_id=99 is not in this plan",
    "plot rows.jsonl": "'rows.jsonl', line 1, is not JSON",
    "select net --macs nan": "",
    "profile net --threads 0": "--threads must be 1 or more, got 0.",
    "frontier nowhere.jsonl": "nowhere.jsonl",
    "extract net --stitch-id 99 --output new": "stitch_id=99 is not in this plan",
    "export net --output net": "net' is not empty",
    "convert rows.jsonl snnet_deit_tsb --output new": "'rows.jsonl' is not a readable weights file",
    "push net --repo a+b": "'a+b' is neither a folder nor a repository",
    "pull a+b --output new": "'a+b' is neither a folder nor a repository",
    "demo net --push user/space": "is a folder, and a Space loads from the Hub",
    "check empty": "cannot open the images 'empty' (split 'train'), RuntimeError Found 0",
    "serve net --latency-ms 0": "latency_ms",
    "serve net --latency-ms 5 --threads -1": "--threads must be 1 or more, got -1.",
    "serve net --latency-ms 5 --port 99999": "cannot listen at 127.0.0.1:99999",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_users_mistake_is_one_line(root, line, monkeypatch, capsys):
    monkeypatch.chdir(root)
    assert main([word.replace("\xa0", " ") for word in line.split(" ")]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert MISTAKES[line] in error


def test_every_verb_has_a_mistake_here():
    from timm_stitch.cli.entry import make_parser

    actions = make_parser()._subparsers._group_actions  # the verbs
    assert {line.split()[0] for line in MISTAKES} == set(actions[0].choices) - {"info", "predict"}


@pytest.mark.parametrize(
    "bug", [KeyError("architecture"), TypeError("no len()"), RuntimeError("shapes"), AssertionError()]
)
@pytest.mark.parametrize("verb", ["list", "plan net", "train recipe.yaml"])
def test_a_mistake_of_ours_shows_its_traceback(root, monkeypatch, verb, bug):
    def fail(*args, **kwargs):
        raise bug

    monkeypatch.chdir(root)
    monkeypatch.setattr("timm_stitch.cli.plans.print_rows", fail)
    monkeypatch.setattr("timm_stitch.training.recipe.train_recipe", fail)
    with pytest.raises(type(bug)):
        main(verb.split())
