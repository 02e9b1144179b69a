"""Counting multiply-adds: what came before with the same shapes is answered from memory, and nothing else is."""

import pytest
import timm
import torch
from torch.nn import functional as F

from timm_stitch.anchors import macs
from timm_stitch.anchors.macs import Macs
from timm_stitch.anchors.meta_device import meta_copy


def counted(model, x):
    with torch.no_grad(), Macs() as counter:
        out = model(x)
    return counter.total, out.shape, out.stride(), out.dtype


def test_the_second_count_equals_the_first_and_that_of_real_tensors():
    model = timm.create_model("test_resnet").eval()
    twin, x = meta_copy(model), torch.randn(2, 3, 64, 64)
    macs._CACHE.clear()
    first = counted(twin, x.to("meta"))
    known = len(macs._CACHE)
    assert counted(twin, x.to("meta")) == first == counted(model, x)
    assert known == len(macs._CACHE) > 0
    assert counted(twin.train(), x.to("meta")) == first  # other results of batch norms
    assert counted(twin, x[:1].to("meta"))[0] * 2 == first[0]


def test_numbers_of_other_kinds_are_other_arguments():
    x = torch.ones(3, dtype=torch.int64, device="meta")
    with Macs():
        assert [(x * by).dtype for by in (1, 1.0, True, 1)] == [torch.int64, torch.float32, torch.int64, torch.int64]


@pytest.mark.skipif(torch.__version__ < "2.9", reason="an older torch's dropout copies when it is taken apart")
def test_values_that_pass_through_stay_themselves():
    x = torch.zeros(2, 3, device="meta")
    with torch.inference_mode(), Macs():
        for _ in range(2):
            assert F.dropout(x, 0.5, training=False).untyped_storage()._cdata == x.untyped_storage()._cdata


def test_real_tensors_are_computed_after_meta_tensors_of_their_shape():
    with Macs():
        F.gelu(torch.ones(4, device="meta"))
        torch.testing.assert_close(F.gelu(torch.ones(4)), torch.full((4,), 0.8413447))


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(macs, "_MOST_CACHED", 5)
    with Macs():
        for size in range(1, 20):
            F.gelu(torch.ones(size, device="meta"))
            assert len(macs._CACHE) <= 5


def test_a_model_is_copied_after_a_call_that_cached_tensors_with_gradients():
    model = timm.create_model("levit_128s").eval()
    model(torch.randn(1, 3, 224, 224))  # each attention caches its biases
    copy = meta_copy(model)
    assert all(parameter.is_meta for parameter in copy.parameters())
    assert copy(torch.randn(1, 3, 224, 224, device="meta")).shape == (1, 1000)
