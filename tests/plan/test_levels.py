"""Levels: which places of a stitch they are."""

import pytest

import timm_stitch
from timm_stitch import Anchor, Segment, Stitch
from timm_stitch.plan.levels import EARLY, make_ends, tap_places
from timm_stitch.plan.steps import Block


def anchors(*depths):
    return [Anchor(f"a{n}", (8 * (n + 1),) * (depth + 1), (16,) * (depth + 1)) for n, depth in enumerate(depths)]


def test_every_stitch_has_each_level_once_behind_a_block_of_its_path_that_is_not_behind_the_level():
    plan = timm_stitch.enumerate_stitches(anchors(12, 24), direction="two_way")
    ends = make_ends(plan.anchors, (9, 14, 19, 23))
    assert ends == ((5, 8, 10, 12), (10, 15, 20, 24))  # those of SN-Netv2: blocks 4, 7, 9, 11 and 9, 14, 19, 23
    for stitch in plan:
        taps = tap_places(stitch, ends)
        assert list(taps) == sorted(taps)
        for level, place in enumerate(taps):
            steps = [*zip(stitch.steps, stitch.places, strict=False)]
            step, (anchor, boundary) = steps[place - 1]
            assert isinstance(step, Block)
            assert boundary <= ends[anchor][level], (stitch.name, level)
            for step, (anchor, boundary) in steps[place:]:
                assert not isinstance(step, Block) or boundary > ends[anchor][level], (stitch.name, level)


def test_levels_of_the_first_steps_of_a_path_are_those_of_every_stitch_that_begins_so():
    plan = timm_stitch.enumerate_stitches(anchors(6, 6))
    ends = make_ends(plan.anchors, 3)
    for stitch in plan:
        for steps in range(1, len(stitch.places) + 1):
            expected = tap_places(stitch, ends, steps)
            assert max(expected) <= steps
            if steps == len(stitch.places):
                assert expected == tap_places(stitch, ends)


def test_levels_in_and_behind_the_stem_are_the_front_anchors():
    stitch = Stitch(3, (Segment(0, 0, 2), Segment(1, 1, 4)), (0,))
    assert tap_places(stitch, ((EARLY, 0, 2), (EARLY, 0, 4))) == (0, 1, 7)


@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_last_level_is_behind_the_last_block_of_every_anchor(levels):
    for depths in ((4, 6), (6, 4), (3, 12), (12, 12)):
        assert [own[-1] for own in make_ends(anchors(*depths), levels)] == list(depths)


def test_levels_of_networks_with_stages_are_their_last_stages():
    staged = [
        Anchor("s", (8, 8, 16, 32, 64), (4, 4, 8, 16, 32)),
        Anchor("l", (8, 8, 8, 16, 32, 64), (4, 4, 4, 8, 16, 32)),
    ]
    assert make_ends(staged, 4) == ((1, 2, 3, 4), (2, 3, 4, 5))
    assert make_ends(staged, 2) == ((3, 4), (4, 5))
    assert make_ends(staged, (1, 3)) == ((2, 4), (3, 5))


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        (0, "levels must be from 1 to 6, got 0"),
        (7, "levels must be from 1 to 6, got 7"),
        ((3, 1), "levels must ascend"),
        ((1, 6), "from 0 to 5"),
        ((), "levels must be"),
        ("four", "levels must be"),
        (((1, 3), (1,)), "as many for each anchor"),
        (((1, 3),), "those of each of the 2 anchors"),
        (((1, 4), (1, 3)), "ascend within blocks 0 to 3"),
    ],
)  # fmt: skip
def test_levels_that_do_not_exist_are_refused_in_one_line(levels, words):
    with pytest.raises(ValueError, match=words) as caught:
        make_ends(anchors(4, 6), levels)
    assert "\n" not in str(caught.value)
