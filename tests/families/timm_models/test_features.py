"""Feature maps of stitched networks, by the arguments that timm's own models take."""

from __future__ import annotations

import pytest
import torch
from tiny import images, resnets, vits, vits_of_depths

import timm_stitch


@pytest.mark.parametrize("options", [{}, {"intermediates_only": True}, {"return_prefix_tokens": True}, {"norm": True}])
@torch.no_grad()
def test_intermediates_as_a_dict_are_those_of_timm(options: dict[str, bool]) -> None:
    anchors = vits()
    net, x = timm_stitch.stitch(anchors).eval(), images(2, 32)
    ours = net.forward_intermediates(x, stitch_id=net.plan.anchor_id(1), output_dict=True, **options)
    theirs = anchors[1].forward_intermediates(x, output_dict=True, **options)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        for a, b in zip(*((v if isinstance(v, list) else [v]) for v in (ours[name], value)), strict=True):
            assert torch.equal(a, b), name
    with pytest.raises(ValueError, match="attn_mask and is_causal are not supported through stitches"):
        net.forward_intermediates(x, is_causal=True)


@torch.no_grad()
def test_indices_that_a_stitch_lacks_are_refused_by_its_number_of_blocks() -> None:
    net, x = timm_stitch.stitch(vits_of_depths(4, 8)).eval(), images(1, 32)
    large = net.plan.anchor_id(1)
    assert len(net.backbone(large, (2, 5, 7))(x)) == 3
    assert len(net.backbone(0, (-4, 3))(x)) == len(net.backbone(0, 2)(x)) == 2
    for k, indices in ((0, (2, 5, 7)), (0, 5), (0, 0), (0, (-5,)), (large, (8,))):
        with pytest.raises(ValueError, match=rf"got .*: stitch {k} has {4 if k == 0 else 8} blocks.*stitches='all'"):
            net.backbone(k, indices)
        with pytest.raises(ValueError, match=r"indices must be from -\d to \d, or the number of the last, got "):
            net.forward_intermediates(x, indices=indices, stitch_id=k)
    with pytest.raises(ValueError, match="stitch 0 has 5 levels"):
        timm_stitch.stitch(resnets()).backbone(0, (5,))
