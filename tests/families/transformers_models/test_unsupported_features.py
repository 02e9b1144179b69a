"""Every function and verb works on a network of transformers' models, or says in one sentence what to do instead."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", minversion="5.20")

from tiny import bert, images, texts

import timm_stitch
from timm_stitch.cli.entry import main
from timm_stitch.families.transformers_models.task_names import UNSUPPORTED

LABELLED = texts(labels=True)
LABELLED_IMAGES = [(images(4), torch.arange(4) % 3)]
NOT_TEXTS = "networks of transformers' models take mappings of tensors, got Tensor: give batches as a tokenizer"


def named_data(network, **more):
    return timm_stitch.train(network, timm_stitch.TrainConfig(data_dir="images", **more))


REFUSED = {
    "export": (lambda n: timm_stitch.export(n, "exported", 0), UNSUPPORTED["export"]),
    "make_page": (timm_stitch.make_page, UNSUPPORTED["demo"]),
    "linear_probe": (lambda n: timm_stitch.linear_probe(n, [LABELLED]), UNSUPPORTED["linear_probe"]),
    "backbone": (lambda n: n.backbone(stitch_id=0), UNSUPPORTED["backbone"]),
    "quick profile": (lambda n: timm_stitch.profile(n, quick=True), UNSUPPORTED["quick_profile"]),
    "train on named images": (named_data, UNSUPPORTED["named_data"]),
    "evaluate on images": (lambda n: timm_stitch.evaluate(n, LABELLED_IMAGES), NOT_TEXTS),
    "least_squares_init on images": (lambda n: timm_stitch.least_squares_init(n, images(4)), NOT_TEXTS),
    "find_cascade on images": (lambda n: timm_stitch.find_cascade(n, LABELLED_IMAGES, macs=1e12), NOT_TEXTS),
    "forward_each on images": (lambda n: list(n.forward_each(images(4))), NOT_TEXTS),
}
WORKING = {
    "evaluate": lambda n: timm_stitch.evaluate(n, [LABELLED]),
    "least_squares_init": lambda n: timm_stitch.least_squares_init(n, [texts(64)]),
    "find_cascade": lambda n: timm_stitch.find_cascade(n, [LABELLED], macs=1e12)(texts()),
    "profile": lambda n: timm_stitch.profile(n, repeats=1, stitch_ids=[0]),
    "extract": lambda n: n.extract(1)(**texts()).logits,
}
VERBS = {
    "plan FOLDER": "",
    "plan FOLDER --json": "",
    "select FOLDER --macs 1e12": "",
    "frontier FOLDER": "",
    "plot FOLDER --output curve.png": "",
    "extract FOLDER --stitch-id 0 --output alone.safetensors": "",
    "profile FOLDER --repeats 1 --stitch-ids 0": "",
    "profile FOLDER --quick": UNSUPPORTED["quick_profile"],
    "init FOLDER --data-dir images --output new": UNSUPPORTED["named_data"],
    "train RECIPE --output new": UNSUPPORTED["named_data"],
    "train deit_tsb --model FOLDER --data-dir images --output new": "leave out drop_path_rate: ",
    "eval FOLDER --data-dir images": UNSUPPORTED["named_data"],
    "recalibrate FOLDER --data-dir images --output new": UNSUPPORTED["recalibrate"],
    "export FOLDER --stitch-ids 0 --output exported": UNSUPPORTED["export"],
    "demo FOLDER": UNSUPPORTED["demo"],
    "serve FOLDER --latency-ms 50 --port 0": "this network has no tokenizer",
}


@pytest.fixture(scope="module")
def network():
    return timm_stitch.stitch([bert(32, 2), bert(48, 3, seed=1)])


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    rows = [{"stitch_id": k, "top1": 50.0 + k} for k in network.stitch_ids]
    return timm_stitch.save_pretrained(network, tmp_path_factory.mktemp("saved") / "net", results=rows)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_says_what_to_do_instead(network, name):
    call, sentence = REFUSED[name]
    with pytest.raises((ValueError, TypeError)) as error:
        call(network)
    assert str(error.value).startswith(sentence)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WORKING)
def test_what_is_supported_works(network, name):
    assert len(WORKING[name](network)) > 0


def test_recalibrating_a_network_without_batch_norm_changes_nothing(network):
    assert timm_stitch.recalibrate(network, [texts()]) == {}


@pytest.mark.parametrize("command", VERBS)
def test_every_verb_works_or_says_what_to_do_instead(folder, tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("recipe.yaml").write_text(f"model: local-dir:{folder}\ndata_dir: images\n")
    places = {"FOLDER": str(folder), "RECIPE": "recipe.yaml"}
    status = main([places.get(word, word) for word in command.split()])
    out, err = capsys.readouterr()
    if VERBS[command]:
        assert status == 1
        assert err.startswith("error: ")
        assert VERBS[command] in err
    else:
        assert status == 0, err
        assert out
