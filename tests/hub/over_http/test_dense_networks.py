"""A dense network on the Hub: pushed, found by its task, loaded whole, and one stitch by the bytes that it needs."""

import pytest
import tiny
import torch
from loopback import SECRET

import timm_stitch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def dense():
    torch.manual_seed(0)
    return timm_stitch.dense(tiny.vits(), head="linear", num_classes=5).eval()


@torch.no_grad()
def test_one_stitch_of_a_dense_network_fetches_its_own_tensors_alone(dense, images, hub):
    rows = [{"stitch_id": k, "miou": 10.0 + k} for k in dense.stitch_ids]
    timm_stitch.push_to_hub(dense, "acme/dense", results=rows, dataset="acme/scenes", token=SECRET)
    whole = timm_stitch.from_hub("acme/dense").eval()
    assert torch.equal(whole(images, stitch_id=3), dense(images, stitch_id=3))
    assert whole.results.rows[3]["miou"] == 13.0
    size = sum(t.nbytes for t in dense.state_dict().values())
    header = 200 * len(dense.state_dict())  # of the file: at most so many bytes for each tensor
    for stitch_id in (0, 3):
        hub.reset()
        needed = sum(t.nbytes for t in dense.extract(stitch_id).state_dict().values())
        small = timm_stitch.from_hub("acme/dense", extract=stitch_id).eval()
        assert hub.weights_bytes() <= needed + header
        assert hub.weights_bytes() < size or stitch_id != 0
        assert torch.equal(small(images), dense(images, stitch_id=stitch_id))
