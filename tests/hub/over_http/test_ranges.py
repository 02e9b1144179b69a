"""One stitch comes from the Hub by ranges of the weights file."""

import logging
import os

import pytest
import torch
from huggingface_hub import hf_hub_download

import timm_stitch

# huggingface_hub hands httpx its uploads in a way that warns.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("storage", ["lfs", "regular"])
def test_one_stitch_fetches_little_more_than_its_own_tensors(model, repo, caplog, images, hub):
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    with open(hf_hub_download(repo, "model.safetensors", cache_dir=os.environ["HF_HOME"]), "rb") as file:
        header = 8 + int.from_bytes(file.read(8), "little")
    for stitch_id in (0, 9, 20):
        hub.reset()
        needed = sum(t.numel() * t.element_size() for t in model.extract(stitch_id).state_dict().values())
        with caplog.at_level(logging.INFO, "timm_stitch"):
            small = timm_stitch.from_hub(repo, extract=stitch_id)
        assert hub.weights_bytes() <= max(1.05 * needed, needed + header)
        assert torch.equal(small(images), model(images, stitch_id=stitch_id))
        assert set(small.state_dict()) == set(model.extract(stitch_id).state_dict())
        assert not any(p.is_meta for p in small.parameters())
        assert f"{hub.weights_bytes():,} of " in caplog.text
        assert hub.weights_bytes() < size
    assert timm_stitch.from_hub(repo, extract=9, num_classes=3)(images).shape == (8, 3)
    with pytest.raises(ValueError, match="stitch_id=35 is not in this plan"):
        timm_stitch.from_hub(repo, extract=35)
    with pytest.raises(ValueError, match="takes no img_size"):
        timm_stitch.from_hub(repo, extract=9, img_size=64)


def test_a_server_that_ignores_ranges_sends_the_whole_file(model, repo, caplog, images, hub):
    hub.fault("GET .*(safetensors|_lfs)", "whole")
    with caplog.at_level(logging.WARNING, "timm_stitch"):
        small = timm_stitch.from_hub(repo, extract=9)
    assert "does not send parts of files, so the whole file is fetched" in caplog.text
    assert torch.equal(small(images), model(images, stitch_id=9))


def test_a_server_that_refuses_ranges_sends_the_whole_file(model, repo, images, hub):
    hub.fault("GET .*(_lfs|safetensors)", 501, times=1)
    alone = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(alone(images), model(images, stitch_id=9))


def test_a_broken_connection_goes_on_where_it_stopped(model, repo, images, hub):
    hub.fault("GET .*(safetensors|_lfs)", "drop", times=3, after=30_000)
    small = timm_stitch.from_hub(repo, extract=9)
    assert torch.equal(small(images), model(images, stitch_id=9))
