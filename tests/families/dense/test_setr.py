"""SETR-naive: what it computes, which levels it reads, and its auxiliary heads."""

import pytest
import torch
from tiny import vits
from torch.nn import functional as F

import timm_stitch
from timm_stitch.families.dense.heads.setr import SetrHead


def head(norm, **more):
    torch.manual_seed(0)
    return SetrHead([24, 32, 32], [16, 16, 16], 5, width=8, norm=norm, **more).eval()


@torch.no_grad()
def by_hand(part, h):
    h = F.layer_norm(h.permute(0, 2, 3, 1), h.shape[1:2], part.norm.weight, part.norm.bias, 1e-6).permute(0, 3, 1, 2)
    for step in part.steps:
        h = F.conv2d(h, step.conv.weight)
        norm = step.norm
        if isinstance(norm, torch.nn.BatchNorm2d):
            h = F.batch_norm(h, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5)
        else:
            h = F.group_norm(h, norm.num_groups, norm.weight, norm.bias)
        h = F.interpolate(F.relu(h), scale_factor=4, mode="bilinear", align_corners=False)
    return F.conv2d(h, part.classifier.weight, part.classifier.bias)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_each_step_is_a_convolution_a_norm_relu_and_four_times_the_size(norm):
    setr = head(norm)
    maps = [torch.randn(2, width, 3, 4) for width in (24, 32, 32)]
    with torch.no_grad():
        out, extra = setr(maps), setr.auxiliary(maps)
        assert torch.allclose(out, by_hand(setr.decode, maps[-1]), atol=1e-6)
        assert tuple(out.shape) == (2, 5, 12, 16)
        assert [tuple(one.shape) for one in extra] == [(2, 5, 48, 64)] * 2
        for n, one in enumerate(extra):
            assert torch.allclose(one, by_hand(setr.auxiliary_heads[n], maps[n]), atol=1e-6)
        assert torch.equal(setr(maps[-1:]), out)  # the last level alone


def test_other_levels_are_read_only_for_auxiliary_heads_in_training():
    assert list(head("group").levels_used(True)) == [0, 1, 2]
    assert list(head("group").levels_used(False)) == [2]
    assert list(head("group", auxiliary=False).levels_used(True)) == [2]


def test_other_values_are_refused():
    with pytest.raises(ValueError, match="norm must be 'group' or 'batch', got 'layer'"):
        head("layer")
    with pytest.raises(ValueError, match="width must be 1 or more channels, got 0"):
        SetrHead([8], [16], 5, width=0)


def test_auxiliary_outputs_come_in_training_and_train_what_they_read():
    torch.manual_seed(0)
    net = timm_stitch.dense(timm_stitch.stitch(vits()), "setr", 5, head_options={"width": 8}).train()
    out = net(net.example(2), stitch_id=0)
    assert [tuple(one.shape) for one in out.auxiliary] == [(2, 5, *net.image_size)] * 3
    (out.sum() + sum(one.sum() for one in out.auxiliary)).backward()
    used = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {name.split(".")[0] for name in used} == {"network", "projections", "head"}
    assert {f"projections.0.{level}.weight" for level in range(4)} <= used
    assert not hasattr(net.eval()(net.example(1)), "auxiliary")


def test_costs_are_those_of_inference_in_training_too():
    net = timm_stitch.dense(timm_stitch.stitch(vits()), "setr", 5, head_options={"width": 8})
    in_training = net.train().stitch_table()
    assert in_training == net.eval().stitch_table()
