"""Networks come from the Hub whole, with their rows, and failures leave nothing half done."""

import logging
import os
import subprocess
import sys

import pytest
import timm
import torch
from huggingface_hub import HfApi
from loopback import SECRET
from PIL import Image

import timm_stitch

# huggingface_hub hands httpx its uploads in a way that warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def head(repo_id="acme/net"):
    """Return the newest commit."""
    return HfApi().model_info(repo_id).sha


def test_transformers_loads_a_network_by_its_id(model, repo, images):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(repo).eval()
    with torch.inference_mode():
        assert torch.equal(theirs(images, stitch_id=9).logits, model(images, stitch_id=9))
        pipe = transformers.pipeline("image-classification", model=repo, top_k=10)
        pipe.model.timm_model.set_stitch(20)
        picture = Image.new("RGB", (40, 40), (200, 30, 90))
        pixels = transformers.AutoImageProcessor.from_pretrained(repo)(picture, return_tensors="pt")["pixel_values"]
        expected = model(pixels, stitch_id=20).softmax(-1)[0]
    scores = {row["label"]: row["score"] for row in pipe(picture)}
    assert [scores[f"LABEL_{i}"] for i in range(10)] == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("storage", ["lfs", "regular"])
def test_a_pushed_network_loads_with_its_rows_and_settings(model, rows, repo, caplog, tmp_path, images, hub):
    names = {"README.md", "config.json", "curve.png", "model.safetensors", "stitches.json"}
    assert set(HfApi().list_repo_files(repo)) == names | {".gitattributes"}
    assert len(HfApi().list_repo_commits(repo)) == 2  # the first is the Hub's own
    again = timm.create_model(f"hf-hub:{repo}", pretrained=True, stitch_id=9).eval()
    assert again.stitch_id == 9
    assert torch.equal(again(images), model(images, stitch_id=9))
    assert timm_stitch.select(again, macs=rows[9]["macs"]) == timm_stitch.select(model, rows, macs=rows[9]["macs"])
    assert again.stitch_table()[9]["dataset"] == "acme/squares"
    other = timm.create_model(f"hf-hub:{repo}", pretrained=True, num_classes=4)
    assert other(images).shape == (8, 4)
    with pytest.raises(ValueError, match="no stitch of this network has a known top1"):
        timm_stitch.select(other, macs=1e9)
    whole = timm_stitch.from_hub(repo)
    assert torch.equal(whole(images, stitch_id=20), model(images, stitch_id=20))
    assert timm_stitch.from_hub(f"{repo}@{head()}", stitch_id=3).stitch_id == 3
    hub.reset()
    with caplog.at_level(logging.INFO, "timm_stitch"):
        timm_stitch.from_hub(repo, extract=9)
    assert hub.weights_bytes() == 0
    assert "the whole file is in the cache" in caplog.text


@pytest.mark.parametrize("extract", [None, 9])
@pytest.mark.parametrize(
    ("on", "do", "error", "message"),
    [
        ("model.safetensors", 401, PermissionError, "the Hub does not know the user"),
        ("model.safetensors", 403, PermissionError, "the token may not do that"),
        ("model.safetensors", 429, ConnectionError, "there were too many requests"),
        ("model.safetensors", 500, ConnectionError, "the Hub answered 500|could not be reached"),
        ("GET .*(safetensors|_lfs)", "drop", ConnectionError, "the connection failed"),
        ("GET .*(safetensors|_lfs)", 500, ConnectionError, "the Hub answered 500"),
    ],
)
def test_a_failed_pull_leaves_nothing_and_can_be_repeated(repo, tmp_path, on, do, error, message, extract, hub):
    hub.fault(on, do, after=1000 if extract is None else 0)  # of one stitch, anything that comes is progress
    with pytest.raises(error, match=f"cannot load acme/net: .*({message})") as caught:
        timm_stitch.from_hub(repo, token=SECRET, extract=extract)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    hub.reset()
    assert timm_stitch.from_hub(repo, extract=extract).num_classes == 10


def test_missing_repositories_revisions_and_files_are_named(repo):
    with pytest.raises(
        FileNotFoundError, match=r"cannot load acme/nothing: there is no such repository. Check the name"
    ):
        timm_stitch.from_hub("acme/nothing")
    with pytest.raises(FileNotFoundError, match="there is no such branch, tag or commit"):
        timm_stitch.from_hub(repo, revision="nowhere")
    HfApi(token=SECRET).create_repo("acme/empty", exist_ok=True)
    with pytest.raises(FileNotFoundError, match="it lacks a file that every network of timm_stitch has"):
        timm_stitch.from_hub("acme/empty")
    with pytest.raises(ValueError, match="is neither a folder nor a repository"):
        timm_stitch.from_hub("../etc/passwd")


def test_a_full_disk_leaves_no_weights_file(repo, tmp_path):
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(OSError, match="the disk is full"):
            timm_stitch.from_hub(repo)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    assert timm_stitch.from_hub(repo).num_stitches == 35


def test_a_cached_network_loads_while_the_hub_is_down(repo, monkeypatch, hub):
    timm_stitch.from_hub(repo)
    hub.fault("(api|resolve|_lfs)", 500)
    assert timm_stitch.from_hub(repo, extract=9).num_stitches == 1


@pytest.mark.parametrize("storage", ["xet"])
def test_where_xet_does_not_answer_the_error_says_how_to_avoid_it(model, repo, images):
    assert len(HfApi().model_info(repo).sha) == 64  # a push builds on such commits, too
    for load in (timm_stitch.from_hub, lambda name: timm.create_model(f"hf-hub:{name}", pretrained=True)):
        with pytest.raises(OSError, match="HF_HUB_DISABLE_XET=1") as caught:
            load(repo)
        assert "\n" not in str(caught.value)
    alone = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(alone(images), model(images, stitch_id=9))
    run = subprocess.run(
        [sys.executable, "-c", f"import timm_stitch; timm_stitch.from_hub({repo!r})"],
        env=os.environ | {"HF_HUB_DISABLE_XET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
