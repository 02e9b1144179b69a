"""The plan: closed-form counts, published order, JSON, and what is refused where it is made."""

import json

import pytest

from timm_stitch import Anchor, Segment, Stitch, StitchPlan
from timm_stitch.plan.enumeration import enumerate_stitches


def vit(name="vit", width=192, depth=12, reduction=16):
    return Anchor(name, (width,) * (depth + 1), (reduction,) * (depth + 1))


def pyramid(name, widths, depths):
    w, r = [widths[0]], [4]
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        w += [width] * depth
        r += [4 * 2**level] * depth
    return Anchor(name, tuple(w), tuple(r))


DEIT = [vit("ti", 192), vit("s", 384), vit("b", 768)]


# SN-Net, DeiT-Ti/S/B: 3 anchors and what each window adds for two neighbours.
@pytest.mark.parametrize(
    ("kernel_size", "stride", "count"),
    [
        (2, 1, 71),
        (1, 1, 27),
        (2, 2, 51),
        (3, 1, 111),
        (3, 2, 91),
        (3, 3, 75),
        (4, 1, 147),
        (4, 2, 131),
        (4, 3, 111),
        (4, 4, 99),
    ],
)
def test_windows_have_the_published_counts(kernel_size, stride, count):
    assert len(enumerate_stitches(DEIT, kernel_size=kernel_size, stride=stride)) == count


def test_stitching_any_block_to_any_gives_732_stitches():
    assert len(enumerate_stitches(DEIT, nearest=False)) == 732


def test_eleven_layers_for_each_pair_shared_within_windows():
    plan = enumerate_stitches(DEIT)
    assert [(spec.front, spec.back) for spec in plan.layers] == [(0, 1)] * 11 + [(1, 2)] * 11
    assert plan.pairs(0) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert plan.pairs(1) == [(2, 2), (3, 1), (3, 2)]


def test_ids_are_in_the_published_order():
    plan = enumerate_stitches(DEIT)
    assert plan[24].segments == (Segment(0, 0, 8), Segment(1, 7, 12))
    assert plan[24].layers == (6,)
    assert plan[24].name == "ti[0:8] + s[7:12]"
    assert plan[70].segments == (Segment(1, 0, 12), Segment(2, 11, 12))
    assert [plan[i].name for i in range(3)] == ["ti", "s", "b"]


def test_slow_to_fast_puts_the_slower_anchor_in_front():
    plan = enumerate_stitches(DEIT, "slow_to_fast")
    assert len(plan) == 71
    assert {(s.front, s.back) for s in plan if not s.is_anchor} == {(1, 0), (2, 1)}


def test_unequal_depths_join_nearest_blocks():
    plan = enumerate_stitches([vit("a", 8, 6), vit("b", 16, 18)])
    assert len(plan) == 2 + 17
    assert [(s.segments[0].stop - 1, s.segments[1].start) for s in plan if not s.is_anchor] == [
        (k // 3, k) for k in range(1, 18)
    ]
    assert len(plan.layers) == 6


def test_pyramids_join_within_levels_only():
    plan = enumerate_stitches([pyramid("a", (8, 16), (2, 2)), pyramid("b", (12, 24), (2, 2))])
    for stitch in plan:
        for layer, before, after in stitch.joints:
            assert plan.anchors[0].reductions[before.stop] == plan.anchors[1].reductions[after.start]
            assert plan.layers[layer].in_width == plan.anchors[0].widths[before.stop]
    assert len(plan) == 2 + 4 + 2


def dilated(anchor, output_stride):
    """The anchor as timm's `output_stride` makes it, told where its stages begin."""
    reductions = tuple(min(r, output_stride) for r in anchor.reductions)
    return Anchor(anchor.name, anchor.widths, reductions, [stage.start for stage in anchor.stages])


def test_stages_begin_where_the_reduction_changes_or_as_told():
    plain = pyramid("a", (8, 16, 24), (2, 3, 1))
    assert plain.stages == (range(2), range(2, 5), range(5, 6))
    assert plain.stage_starts == dilated(plain, 16).stage_starts == ()  # the default, however it is given
    assert dilated(plain, 16) == plain
    assert dilated(plain, 8).stages == dilated(plain, 4).stages == plain.stages
    assert dilated(plain, 4).stage_starts == (2, 5)
    assert dilated(plain, 4).levels == ((4, 0), (4, 0), (4, 1), (4, 1), (4, 1), (4, 2))
    assert dilated(plain, 4).truncate(5).stages == plain.stages[:2]
    assert vit().stages == (range(12),)


@pytest.mark.parametrize("options", [{}, {"kernel_size": 1}, {"direction": "two_way"}, {"direction": "slow_to_fast"}])
@pytest.mark.parametrize("depths", [(2, 3, 2), (2, 2, 1)])
def test_dilated_anchors_have_the_plan_of_plain_ones(options, depths):
    anchors = [pyramid("a", (8, 16, 24), (2, 2, 2)), pyramid("b", (12, 24, 32), depths)]
    plan = enumerate_stitches(anchors, **options)
    for output_stride in (8, 4):
        other = enumerate_stitches([dilated(anchor, output_stride) for anchor in anchors], **options)
        assert (other.layers, other.stitches) == (plan.layers, plan.stitches)
        assert StitchPlan.from_dict(json.loads(json.dumps(other.to_dict()))) == other
    assert all(anchor.keys() == {"name", "widths", "reductions"} for anchor in plan.to_dict()["anchors"])


@pytest.mark.parametrize("starts", [(0, 9), (4, 2), (2, 2), (-1,)])
def test_stages_that_cannot_be_are_refused(starts):
    with pytest.raises(ValueError, match=r"'vit' has stage_starts=.*: expected blocks from 0 to 3, ascending"):
        Anchor("vit", (8,) * 5, (16,) * 5, starts)


@pytest.mark.parametrize("starts", ["ab", 3, [1.5], [True], list(range(1000))])
def test_saved_stages_that_are_no_blocks_are_refused(starts):
    data = enumerate_stitches(DEIT).to_dict()
    data["anchors"][0]["stage_starts"] = starts
    with pytest.raises(ValueError, match="stitch plan"):
        StitchPlan.from_dict(data)


def test_routes_run_every_anchor():
    plan = enumerate_stitches(DEIT, nearest=False)
    three = [stitch for stitch in plan if len(stitch.segments) == 3]
    assert len(three) == 627
    assert all(segment.start < segment.stop for stitch in three for segment in stitch.segments)


@pytest.mark.parametrize("arguments", [{}, {"nearest": False}, {"direction": "slow_to_fast", "kernel_size": 3}])
def test_a_plan_read_from_its_json_is_equal(arguments):
    plan = enumerate_stitches(DEIT, **arguments)
    again = StitchPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan
    assert [s.name for s in again] == [s.name for s in plan]
    assert plan != enumerate_stitches(DEIT, kernel_size=1)


def test_a_plan_of_ones_own_has_names_and_is_read_back_as_it_was():
    whole = enumerate_stitches(DEIT)
    own = StitchPlan(whole.anchors, whole.layers, [Stitch(s.stitch_id, s.segments, s.layers) for s in whole])
    assert own == whole
    assert own[24].name == whole[24].name != ""
    assert StitchPlan.from_dict(own.to_dict()) == own


def test_ids_are_ids_not_positions():
    plan = enumerate_stitches(DEIT)
    part = StitchPlan(plan.anchors, plan.layers, (plan[5], plan[24]))
    assert part[24] is plan[24]
    assert part.stitch_ids == (5, 24)
    with pytest.raises(ValueError, match=r"stitch_id=6 is not in this plan: expected an int from 5 to 24"):
        part[6]


def test_layers_above_three_and_kernel_sizes_are_refused():
    with pytest.raises(ValueError, match="kernel_size must be from 1 to the anchors' depth 12, got 13"):
        enumerate_stitches(DEIT, kernel_size=13)
    with pytest.raises(ValueError, match=r"stride must be from 1 to kernel_size=2, .* got 3"):
        enumerate_stitches(DEIT, stride=3)
    with pytest.raises(ValueError, match=r"direction must be one of 'fast_to_slow', .* got 'upwards'"):
        enumerate_stitches(DEIT, "upwards")
    with pytest.raises(ValueError, match="two or more anchors, got 1"):
        enumerate_stitches(DEIT[:1])
    with pytest.raises(ValueError, match="'a' and 'b' meet nowhere"):
        enumerate_stitches([vit("a"), vit("b", reduction=32)])


@pytest.mark.parametrize(
    ("stitch", "message"),
    [
        (Stitch(0, (Segment(0, 0, 13),)), "runs blocks 0:13 of 'ti': expected 0 <= start < stop <= 12"),
        (Stitch(0, (Segment(7, 0, 12),)), "uses anchor 7: the plan has anchors 0 to 2"),
        (Stitch(0, (Segment(0, 1, 12),)), "must begin at a front's first block"),
        (Stitch(0, (Segment(0, 0, 4), Segment(1, 4, 12))), "2 segments and 0 stitching layers"),
        (
            Stitch(0, (Segment(0, 0, 4), Segment(1, 4, 12)), (11,)),
            "joins anchors 0 and 1 with layer 11, which joins 1 and 2",
        ),
        (Stitch(0, (Segment(0, 0, 4), Segment(1, 4, 12)), (99,)), "uses stitching layer 99: the plan has 22"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(stitch, message):
    plan = enumerate_stitches(DEIT)
    with pytest.raises(ValueError, match=message):
        StitchPlan(plan.anchors, plan.layers, (stitch,))


@pytest.mark.parametrize("data", [{}, [], {"version": 2}, {"version": 1}, {"version": 1, "anchors": 3}])
def test_json_that_is_no_plan_is_refused(data):
    with pytest.raises(ValueError, match="stitch plan"):
        StitchPlan.from_dict(data)


def test_repeated_ids_are_refused():
    plan = enumerate_stitches(DEIT)
    with pytest.raises(ValueError, match="stitch ids must ascend without repetition"):
        StitchPlan(plan.anchors, plan.layers, (plan[3], plan[3]))
