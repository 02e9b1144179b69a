"""The network obeys the plan: identities that every user relies on."""

import pytest
import timm
import torch
from tiny import bert, deits

import timm_stitch
from timm_stitch.plan.steps import Block


def test_a_stitch_is_the_front_the_layer_and_the_back(model, anchors, images):
    stitch = model.plan[11]
    front, back = anchors[stitch.front], anchors[stitch.back]
    h = front.norm_pre(front.patch_drop(front._pos_embed(front.patch_embed(images))))
    for block in front.blocks[: stitch.segments[0].stop]:
        h = block(h)
    h = model.stitching_layers[stitch.layers[0]](h)
    for block in back.blocks[stitch.segments[1].start :]:
        h = block(h)
    assert torch.equal(model(images, stitch_id=11), back.forward_head(back.norm(h)))


def test_stitched_norm_can_be_left_out_as_the_authors_do(anchors, images):
    with_norm = timm_stitch.stitch(anchors).eval()
    without = timm_stitch.stitch(anchors, stitched_norm=False).eval()
    without.stitching_layers.load_state_dict(with_norm.stitching_layers.state_dict())
    assert torch.equal(with_norm(images, stitch_id=1), without(images, stitch_id=1))
    assert not torch.allclose(with_norm(images, stitch_id=9), without(images, stitch_id=9))


def test_whether_the_norm_runs_travels_with_a_checkpoint_and_is_no_buffer(anchors, images):
    without = timm_stitch.stitch(anchors, stitched_norm=False).eval()
    other = timm_stitch.stitch(deits()).eval()
    assert all(tensor.is_floating_point() for tensor in other.state_dict().values())
    assert [name for name, _ in without.named_buffers()] == [name for name, _ in other.named_buffers()]
    other.load_state_dict(without.state_dict())
    assert not other.stitched_norm
    assert torch.equal(other(images, stitch_id=9), without(images, stitch_id=9))
    weights = {name: tensor for name, tensor in other.state_dict().items() if name != "_extra_state"}
    other.load_state_dict({**weights, "stitched_norm": torch.tensor(True)})  # as version 0.1 has it
    assert other.stitched_norm
    assert not torch.equal(other(images, stitch_id=9), without(images, stitch_id=9))


def test_results_are_believed_only_of_the_weights_they_belong_to(model, images):
    model.results.add([{"stitch_id": 2, "top1": 60.0}])
    assert model.stitch_table()[2]["top1"] == 60
    assert model.extract(2).stitch_table()[0]["top1"] == 60
    with torch.no_grad():
        model.stitching_layers[0].weight.add_(1)
    assert "top1" not in model.stitch_table()[2]
    with pytest.raises(ValueError, match=r"the results of this network belong to other weights .* evaluate it again"):
        model.set_budget(macs=1e12)
    with pytest.raises(ValueError, match="the rows hold stitches that the plan does not have: \\[99\\]"):
        model.results.add([{"stitch_id": 99, "top1": 60.0}])
    model.results.clear()
    model.results.add([{"stitch_id": 3, "top1": 50.0, "weights": "0123456789abcdef"}])
    assert "top1" not in model.stitch_table()[3]
    with pytest.raises(ValueError, match="must belong to one network, got those of 2 different weights"):
        model.results.add(
            [{"stitch_id": 3, "top1": 1.0, "weights": "a"}, {"stitch_id": 4, "top1": 1.0, "weights": "b"}]
        )


def test_a_mixed_batch_runs_what_its_stitches_share_once(model):
    ids = [k for k in (0, 5, 9, 14, 24, 30) for _ in range(2)]
    calls = []
    for a, anchor in enumerate(model.anchors):
        for b, block in enumerate(anchor.blocks):
            block.register_forward_pre_hook(lambda module, args, at=(a, b): calls.append((at, len(args[0]))))
    x = torch.randn(len(ids), 3, 32, 32)
    out = model(x, stitch_id=ids)
    steps = {
        s.steps[: n + 1]
        for k in ids
        for s in [model.plan[k]]
        for n, step in enumerate(s.steps)
        if isinstance(step, Block)
    }
    assert len(calls) == len(steps) < sum(len(model.plan[k].steps) - 2 for k in set(ids))
    assert max(images for _, images in calls) == sum(model.plan[k].front == 0 for k in ids)
    assert torch.equal(
        torch.cat([model(x[i : i + 1], stitch_id=k) for i, k in enumerate(ids)]).argmax(1), out.argmax(1)
    )


def test_a_hook_tells_which_stitches_ran(model, images):
    ran = []
    handle = model.register_stitch_hook(lambda network, stitch_id, count: ran.append((stitch_id, count)))
    model.set_stitch(9)(images)
    model(images, stitch_id=4)
    model(images, stitch_id=[4, 4, 9, 4, 2, 9])
    assert ran[:2] == [(9, 6), (4, 6)]
    assert sorted(ran[2:]) == [(2, 1), (4, 3), (9, 2)]
    del ran[:]
    dict(model.forward_each(images, [1, 2]))
    model.extract(3)(images)  # a network of its own
    assert sorted(ran) == [(1, 6), (2, 6)]
    handle.remove()
    model(images)
    assert len(ran) == 2


def test_a_mixed_batch_carries_gradients(model, images):
    model(images, stitch_id=[24, 5, 5, 2, 24, 0]).sum().backward()
    assert model.stitching_layers[model.plan[24].layers[0]].weight.grad is not None


def test_the_largest_anchor_is_the_stitch_of_a_new_network(model, images):
    assert model.stitch_id == 2
    assert torch.equal(model(images), model(images, stitch_id=2))
    assert model.stitch_ids == tuple(range(model.num_stitches)) == tuple(range(35))


def test_forward_each_runs_each_shared_block_once(model, images):
    runs = []
    for block in (block for anchor in model.anchors for block in anchor.blocks):
        block.register_forward_hook(lambda *_: runs.append(1))
    assert len(dict(model.forward_each(images))) == model.num_stitches
    assert len(runs) < sum(s.stop - s.start for stitch in model.plan for s in stitch.segments)


def test_gradients_reach_only_what_a_stitch_uses(model, images):
    model.train()
    model(images, stitch_id=9).sum().backward()
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert used == {name for name, _ in model.extract(9).named_parameters()}
    model.zero_grad()
    model.touch_unused = True
    model(images, stitch_id=9).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compile_serves_all_stitches_with_few_graphs(model, images):
    from torch._dynamo.testing import CompileCounter

    expected = {k: model(images, stitch_id=k) for k in model.stitch_ids}
    counter = CompileCounter()
    torch._dynamo.reset()
    model.compile(backend=counter)
    with torch.no_grad():
        for _ in range(2):
            for k in model.stitch_ids:
                torch.testing.assert_close(model(images, stitch_id=k), expected[k], rtol=0, atol=1e-5)
    assert counter.frame_count <= 3
    torch._dynamo.reset()


@pytest.mark.parametrize(
    ("stitch_id", "message"),
    [
        (35, "stitch_id=35 is not in this plan: expected an int from 0 to 34"),
        (-1, "stitch_id=-1 is not in this plan"),
        ("9", "stitch_id='9' is not in this plan"),
        ([1, 2], "2 ids for a batch of 6 images"),
        ([0, 1, 2, 3, 4, 99], "stitch_id=99 is not in this plan"),
        (torch.zeros(6, 2, dtype=torch.long), "a list or 1-D tensor of 6 ints"),
    ],
)
def test_bad_ids_are_refused(model, images, stitch_id, message):
    with pytest.raises(ValueError, match=message):
        model(images, stitch_id=stitch_id)


def test_bad_ids_change_nothing(model):
    with pytest.raises(ValueError, match="stitch_id=99"):
        model.set_stitch(99)
    assert model.stitch_id == 2
    with pytest.raises(ValueError, match="stitch_id=99"):
        model.extract(99)


@pytest.mark.parametrize("shape", [(2, 3, 40, 40), (2, 1, 32, 32), (3, 32, 32)])
def test_images_that_do_not_fit_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 32\)"):
        model(torch.zeros(shape))


def test_anchors_that_cannot_meet_are_refused():
    a = timm.create_model("deit_tiny_patch16_224", device="meta")
    with pytest.raises(
        ValueError, match=r"cannot stitch 'deit_tiny_patch16_224' to 'vit_small_patch32_224': 197 tokens leave block"
    ):
        timm_stitch.stitch([a, timm.create_model("vit_small_patch32_224", device="meta")])
    with pytest.raises(ValueError, match="whose num_classes differ"):
        timm_stitch.stitch([a, timm.create_model("deit_small_patch16_224", num_classes=10, device="meta")])
    with pytest.raises(ValueError, match="same module was given as two anchors"):
        timm_stitch.stitch([a, a])
    with pytest.raises(
        TypeError,
        match=r"an anchor must be a timm model or .* got str 'deit_tiny_patch16_224'.*create_model.*AutoModel",
    ):
        timm_stitch.stitch(["deit_tiny_patch16_224", "deit_small_patch16_224"])


def test_anchors_of_other_preprocessing_are_warned_of():
    with pytest.warns(UserWarning, match="images normalised differently: .*'mean'.*'std'"):
        timm_stitch.stitch(
            [timm.create_model(n, device="meta") for n in ("deit_tiny_patch16_224", "vit_small_patch16_224")]
        )


def test_a_network_takes_a_custom_plan(anchors, images):
    from timm_stitch.plan.enumeration import enumerate_stitches

    whole = timm_stitch.stitch(anchors).plan
    plan = enumerate_stitches(whole.anchors, nearest=False)
    model = timm_stitch.stitch(anchors, plan=plan).eval()
    three = next(s for s in plan if len(s.segments) == 3)
    assert model(images, stitch_id=three.stitch_id).shape == (6, 10)
    with pytest.raises(ValueError, match="the plan has 3 anchors"):
        timm_stitch.stitch(anchors[:2], plan=plan)


def test_backbones_of_one_network_share_its_weights(model, images):
    small, large = model.backbone(9), model.backbone(2, out_indices=(1, 5))
    maps = large(images)
    assert [tuple(m.shape) for m in maps] == [(6, 96, 4, 4)] * 2
    assert large.feature_info.channels() == [96, 96]
    assert large.feature_info.reduction() == [8, 8]
    expected = model.forward_intermediates(images, [1, 5], intermediates_only=True, stitch_id=2)
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    own = {id(p) for p in model.parameters()}
    assert {id(p) for backbone in (small, large) for p in backbone.parameters()} <= own
    model.set_stitch(0)  # a backbone keeps its stitch
    assert torch.equal(large(images)[1], maps[1])


@pytest.mark.parametrize("make", [deits, lambda: [bert(32, 3), bert(48, 4, seed=1)]])
def test_slower_anchors_before_faster_ones_are_named(make):
    small, *larger = make()
    with pytest.warns(UserWarning, match=r"not ordered from the fastest to the slowest .*: list the fastest first"):
        network = timm_stitch.stitch([*larger, small])
    assert network.stitch_id == network.plan.anchor_id(len(larger))  # the order is kept
