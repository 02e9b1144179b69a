"""Every way to run a stitch equals the plain one, on networks of both families."""

import pytest
import torch
from tiny import deits

import timm_stitch
from timm_stitch.families.timm_models.features import STEM, run_to_points
from timm_stitch.network.executor import run_stitch
from timm_stitch.network.stitchable import logits_of
from timm_stitch.plan.prefix_sharing import schedule


def two_way_deits():
    return timm_stitch.stitch(deits(), direction="two_way").eval(), torch.randn(3, 3, 32, 32)


def berts():
    hf = pytest.importorskip("transformers", minversion="5.20")
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    anchors = [hf.BertForSequenceClassification(hf.BertConfig(hidden_size=width, **sizes)).eval() for width in (16, 32)]
    words = torch.randint(5, 99, (3, 7))
    return timm_stitch.stitch(anchors, direction="two_way").eval(), {"input_ids": words}


@pytest.fixture(params=[two_way_deits, berts])
def network_and_inputs(request):
    return request.param()


def reference(network, x, stitch_id):
    stitch = network.plan[stitch_id]
    inputs = network.prepare_inputs(x, [stitch])
    runs_norm = stitch.is_anchor or network.executor.stitched_norm
    return logits_of(run_stitch(network.views, network.stitching_layers, stitch, inputs, runs_norm))


def test_every_way_to_run_a_stitch_equals_the_reference(network_and_inputs):
    network, x = network_and_inputs
    for stitch_id, together in network.forward_each(x):
        expected = reference(network, x, stitch_id)
        assert torch.equal(logits_of(together), expected)
        assert torch.equal(logits_of(network.call(x, stitch_id)), expected)
        assert torch.equal(logits_of(network.extract(stitch_id).call(x)), expected)


def test_each_row_of_a_mixed_batch_equals_the_reference(network_and_inputs):
    network, x = network_and_inputs
    first, *_, middle, last = (run.stitch.stitch_id for run in schedule(network.plan))
    ids = [middle, last, first]  # to sort them and to sort them back are not the same
    out = logits_of(network.call(x, ids))
    for row, stitch_id in enumerate(ids):
        torch.testing.assert_close(out[row], reference(network, x, stitch_id)[row])


def test_a_stitch_run_in_parts_equals_the_reference(network_and_inputs):
    network, x = network_and_inputs
    for stitch in network.plan:
        inputs, h = network.prepare_inputs(x, [stitch]), None
        for n in range(len(stitch.steps)):
            h = network.executor.step(stitch, n, h, inputs)
        assert torch.equal(logits_of(h), reference(network, x, stitch.stitch_id))


def test_features_lead_to_the_reference():
    network, x = two_way_deits()
    for stitch in network.plan:
        inputs, end = network.prepare_inputs(x, [stitch]), len(stitch.places)
        h, kept = run_to_points(network.executor, stitch, inputs, [STEM, end], end)
        assert torch.equal(h, kept[end])
        assert torch.equal(kept[STEM], network.views[stitch.front].stem(x))
        logits = network.forward_head(network.executor.norm(h, stitch), stitch_id=stitch.stitch_id)
        assert torch.equal(logits, reference(network, x, stitch.stitch_id))


def test_the_order_of_stitches_is_made_once_and_follows_the_plan(network_and_inputs, monkeypatch):
    network, x = network_and_inputs
    made = []
    original = timm_stitch.network.stitchable.schedule
    monkeypatch.setattr(
        timm_stitch.network.stitchable, "schedule", lambda stitches: made.append(1) or original(stitches)
    )
    ids = network.stitch_ids[:2]
    first, again = (dict(network.forward_each(x, ids)) for _ in range(2))
    assert len(made) == 1
    assert list(first) == list(again)
    assert set(dict(network.forward_each(x))) == set(network.stitch_ids)
    assert list(dict(network.extract(ids[1]).forward_each(x))) == [ids[1]]
    network.merge_low_rank()
    assert list(dict(network.forward_each(x, ids))) == list(first)
