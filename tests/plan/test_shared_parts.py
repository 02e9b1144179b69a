"""Parts that stitches share: chains run the steps of their stitch, and no step stands in two parts."""

import pytest

from timm_stitch import Anchor, enumerate_stitches
from timm_stitch.plan.shared_parts import shared_parts
from timm_stitch.plan.steps import Head


def plan_of(count):
    return list(enumerate_stitches([Anchor(f"a{n}", (16 * (n + 1),) * 7, (16,) * 7) for n in range(count)]))


@pytest.mark.parametrize("ids", [[0], [0, 1], [0, 3, 4], None])
def test_chains_of_parts_are_the_steps_of_stitches_and_hold_each_step_once(ids):
    plan = plan_of(3)
    stitches = plan if ids is None else [plan[k] for k in ids]
    parts, chains = shared_parts(stitches)
    steps = [part.stitch.steps[part.start : part.stop] for part in parts]
    for stitch in stitches:
        assert tuple(step for number in chains[stitch.stitch_id] for step in steps[number]) == stitch.steps
    every = [step for part in steps for step in part]
    assert len(every) == len(set(every))
    assert set(every) == {step for stitch in stitches for step in stitch.steps}


def test_parts_are_as_long_as_can_be():
    plan = plan_of(2)
    assert shared_parts(plan[:2])[1] == {0: [0], 1: [1]}  # two anchors share nothing
    parts, chains = shared_parts(plan[:3])
    assert chains == {0: [0, 1], 1: [2, 3, 4], 2: [0, 5, 3, 6]}  # the heads differ: one is behind a stitching layer
    assert [part.stop - part.start for part in parts] == [2, 6, 1, 6, 1, 1, 1]


def test_the_head_of_an_anchor_is_a_part_once_if_stitches_end_as_the_anchor_does():
    plan = enumerate_stitches([Anchor("small", (8, 8, 8), (4, 4, 4)), Anchor("large", (16, 16, 16), (4, 4, 4))])
    heads = {
        norm: sum(isinstance(part.stitch.steps[part.stop - 1], Head) for part in shared_parts(plan, norm)[0])
        for norm in (False, True)
    }
    assert heads == {False: 3, True: 2}
