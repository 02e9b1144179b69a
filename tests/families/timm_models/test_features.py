"""Feature maps of stitched networks, by the arguments that timm's own models take."""

from __future__ import annotations

import pytest
import torch
from tiny import images, vits

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
