"""A cascade gives each image's logits from one of its two stitches, at the cost that it says."""

import pytest
import torch

import timm_stitch
from timm_stitch.plan.prefix_sharing import common_steps
from timm_stitch.plan.steps import Block


def test_each_image_has_the_logits_of_one_of_the_two(model, images):
    with torch.inference_mode():
        for cheap, dear in ((5, 9), (0, 2), (0, 5)):
            low, high = model(images, stitch_id=cheap), model(images, stitch_id=dear)
            sure = low.softmax(-1).amax(-1)
            threshold = float(sure.median()) + 1e-6
            out, went = timm_stitch.Cascade(model, cheap, dear, threshold).run(images)
            assert torch.equal(went, sure < threshold)
            assert 0 < went.sum() < len(images)
            torch.testing.assert_close(out, torch.where(went[:, None], high, low))
        assert torch.equal(timm_stitch.Cascade(model, 0, 2, 0.0)(images), model(images, stitch_id=0))


def test_the_dear_stitch_goes_on_from_what_both_share(model, images):
    pairs = [(a, b) for a in model.plan for b in model.plan if a.stitch_id < b.stitch_id and not a.is_anchor]
    cheap, dear = max(pairs, key=lambda pair: common_steps(*pair))
    shared = common_steps(cheap, dear)
    assert shared > 3
    calls = []
    for anchor in model.anchors:
        for block in anchor.blocks:
            block.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    timm_stitch.Cascade(model, cheap.stitch_id, dear.stitch_id, 2.0)(images)  # all images go on
    blocks = [
        sum(isinstance(step, Block) for step in steps) for steps in (cheap.steps, dear.steps, cheap.steps[:shared])
    ]
    assert len(calls) == blocks[0] + blocks[1] - blocks[2]


def test_the_best_cascade_is_found_as_by_hand(model):
    torch.manual_seed(1)
    x, labels = torch.randn(40, 3, 32, 32), torch.randint(0, 10, (40,))
    with torch.inference_mode():
        labels[::2] = model(x, stitch_id=2).argmax(-1)[::2]
    loader = [(x[:25], labels[:25]), (x[25:], labels[25:])]
    ids = [0, 5, 9, 2]
    budget = model.costs().cost(model.plan[5]).macs * 1.2
    found = timm_stitch.find_cascade(model, loader, budget, stitch_ids=ids)
    out, went = found.run(x)
    assert 100 * float((out.argmax(-1) == labels).float().mean()) == pytest.approx(found.top1)
    costs = model.costs()
    alone = {k: costs.cost(model.plan[k]).macs for k in ids}
    assert found.macs <= budget
    first, second = model.plan[found.cheap], model.plan[found.dear]
    left = sum(costs.step(step) for step in second.steps[common_steps(first, second) :])
    assert found.macs == pytest.approx(alone[found.cheap] + left * float(went.float().mean()))
    single = timm_stitch.evaluate(model, loader, ids)
    assert found.top1 >= max(row["top1"] for row in single if row["macs"] <= budget)
    with pytest.raises(ValueError, match=r"macs must be at least [\d,]+, the cheapest stitch's, got 10"):
        timm_stitch.find_cascade(model, loader, 10, stitch_ids=ids)
