"""Gradients leave while the backward pass still runs, in one order on every process, and come back as means."""

import pytest
import torch
from training_run import network

from timm_stitch.training import data_parallel
from timm_stitch.training.data_parallel import GradientAverage


class _Done:
    def wait(self):
        pass


@pytest.fixture
def sent(monkeypatch):
    """Two processes of which the other one has gradients of zero; what was sent, tensor by tensor."""
    found = []
    monkeypatch.setattr(data_parallel, "world_size", lambda: 2)
    monkeypatch.setattr(data_parallel, "BUCKET_BYTES", 20_000)
    monkeypatch.setattr(data_parallel.dist, "all_reduce", lambda flat, async_op: found.append(flat.clone()) or _Done())
    return found


def gradients(model, ids, average=None):
    model.zero_grad()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss = torch.stack([out.square().mean() for out in model.forward_several(images, ids).values()]).sum()
    if average is not None:
        average.begin(ids, loss)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("ids", [(4,), (2,), (4, 0)])
def test_buckets_leave_during_the_backward_pass_and_bring_means(ids, sent):
    model = network().train()
    plain = gradients(model, ids)
    average = GradientAverage(model)
    gradients(model, ids, average)
    assert len(sent) > 2
    early = sum(flat.numel() for flat in sent)
    assert early == sum(grad.numel() for grad in plain.values())  # all of them, before the pass was over
    assert average.finish() == 4 * early
    for name, p in model.named_parameters():
        assert (p.grad is None) == (name not in plain), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, plain[name] / 2)
    average.close()
    gradients(model, ids)
    assert sum(flat.numel() for flat in sent) == early  # nothing of it hangs on the parameters


def test_what_comes_unexpected_is_sent_at_the_end(sent):
    model = network().train()
    plain = gradients(model, (4,))
    average = GradientAverage(model)
    gradients(model, (4,))  # without a word before
    assert not sent
    average.finish()
    for name, grad in plain.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad / 2)


def test_a_bucket_whose_gradients_did_not_come_sends_nothing(sent):
    model = network().train()
    average = GradientAverage(model)
    gradients(model, (4,), average)
    sent.clear()
    average.finish()
    average.begin((4,), sum(p.sum() for p in model.parameters()))
    model.zero_grad()
    assert average.finish() == 0
    assert not sent
