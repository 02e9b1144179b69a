"""Which stitches a step trains: pure functions of seed and step."""

import pytest
import timm

from timm_stitch.data.seeding import derive
from timm_stitch.training.sampling import groups_by_macs, importance_weighted, make_rule, resource_constrained

MACS = {0: 100, 1: 150, 2: 190, 3: 310, 4: 900, 5: 1000}
ANCHORS = {"anchors": (5, 2, 0)}


def share(draw, steps=6000):
    drawn = [draw(step) for step in range(steps)]
    return {i: drawn.count(i) / steps for i in sorted(set(drawn))}


def test_one_group_of_all_stitches_is_reported(caplog):
    make_rule("resource", {0: 10, 1: 30, 2: 20}, seed=0, anchors=[1, 0])
    assert "all 3 stitches fall into one group: resource draws as uniform. Set groups." in caplog.text
    caplog.clear()
    make_rule("resource", {0: 10, 1: 30, 2: 20}, seed=0, anchors=[1, 0], groups=2)
    assert caplog.text == ""


def test_groups_hold_stitches_of_similar_macs():
    # up to 100, from 150 to 250, from 310 to 410, from 900 to 1000
    assert groups_by_macs(MACS, width=100) == ((0,), (1, 2), (3,), (4, 5))
    assert groups_by_macs(MACS, width=1e9) == ((0, 1, 2, 3, 4, 5),)
    assert groups_by_macs(MACS, count=3) == ((0, 1, 2, 3), (4, 5))
    assert groups_by_macs({3: 7}, count=4) == ((3,),)
    for wrong in ({}, {"width": 3, "count": 3}, {"count": -1}):
        with pytest.raises(ValueError, match="cannot group 6 stitches"):
            groups_by_macs(MACS, **wrong)


@pytest.mark.parametrize("name", ["sb", "sl", "bl"])
@pytest.mark.parametrize("count", ["macs", "published_macs"])
def test_the_groups_of_snnetv2_are_its_authors(name, count):
    """Each anchor alone, and eleven groups of twelve: what their code makes of their counts."""
    rows = timm.create_model(f"snnetv2_deit3_{name}", device="meta").stitch_table()
    groups = groups_by_macs({row["stitch_id"]: row[count] for row in rows}, width=1e9)
    assert [len(group) for group in groups] == [1, *[12] * 11, 1]
    assert (groups[0], groups[-1]) == ((0,), (1,))


def test_groups_are_equally_likely_whatever_their_size():
    groups = groups_by_macs(MACS, width=100)
    found = share(lambda step: resource_constrained(groups, 1, step))
    for stitch_id, chance in {0: 1 / 4, 1: 1 / 8, 2: 1 / 8, 3: 1 / 4, 4: 1 / 8, 5: 1 / 8}.items():
        assert found[stitch_id] == pytest.approx(chance, abs=0.02)
    found = share(lambda step: resource_constrained(groups, 1, step, bias=1.0))
    assert 0 not in found  # the cheapest group has chances of 1 - bias
    assert found[5] == pytest.approx(1 / 4, abs=0.02)
    assert found[3] == pytest.approx(1 / 3, abs=0.02)


def test_importance_draws_in_proportion():
    found = share(lambda step: importance_weighted({7: 1.0, 8: 3.0, 9: 0.0}, 0, step))
    assert found == {7: pytest.approx(0.25, abs=0.02), 8: pytest.approx(0.75, abs=0.02)}


@pytest.mark.parametrize(("name", "always"), [("sandwich", (5, 0)), ("anchors", (5, 2, 0))])
def test_anchors_come_with_every_step_and_the_largest_first(name, always):
    rule = make_rule(name, MACS, 0, **ANCHORS, stitches=2)
    for step in range(50):
        ids = rule(step)
        assert ids[: len(always)] == always
        assert len(set(ids)) == len(ids) == len(always) + 2
        assert set(ids) <= set(MACS)
    everything = make_rule(name, MACS, 0, **ANCHORS, stitches=99)
    assert sorted(everything(0)) == sorted(MACS)
    assert make_rule(name, {7: 1}, 0, anchors=(7,), stitches=1)(0) == (7,)  # of an extracted stitch


@pytest.mark.parametrize(
    "values",
    [
        {"name": "uniform"},
        {"name": "resource", "groups": 3},
        {"name": "sandwich"},
        {"name": "anchors"},
        {"name": "importance", "scores": dict.fromkeys(MACS, 1.0)},
    ],
    ids=lambda values: values["name"],
)
def test_rules_are_functions_of_seed_and_step(values):
    rule, again = (make_rule(macs=MACS, seed=3, stitches=2, **ANCHORS, **values) for _ in range(2))
    drawn = [rule(step) for step in range(60)]
    assert drawn == [again(step) for step in reversed(range(60))][::-1]
    assert drawn != [make_rule(macs=MACS, seed=4, stitches=2, **ANCHORS, **values)(step) for step in range(60)]
    count = 2 + {"sandwich": 2, "anchors": 3}.get(values["name"], 0)
    assert all(len(ids) == len(set(ids)) == count for ids in drawn)
    assert {i for ids in drawn for i in ids} == set(MACS)


def test_bad_rules_are_refused():
    with pytest.raises(ValueError, match=r"sampling must be one of 'uniform', 'resource'.*, got 'fair'"):
        make_rule("fair", MACS, 0, **ANCHORS)
    with pytest.raises(
        ValueError, match=r"a score of 0 or more for every stitch: stitches \[1, 2, 3, 4, 5\] have none"
    ):
        make_rule("importance", MACS, 0, **ANCHORS, scores={0: 1.0})
    with pytest.raises(ValueError, match=r"those of \[2\] are negative or not finite"):
        make_rule("importance", MACS, 0, **ANCHORS, scores=dict.fromkeys(MACS, 1.0) | {2: -1.0})
    with pytest.raises(ValueError, match="all are 0"):
        make_rule("importance", MACS, 0, **ANCHORS, scores=dict.fromkeys(MACS, 0.0))


def test_derived_seeds_differ_by_purpose_and_fit_numpy():
    found = {derive(0, what, number) for what in ("image", "order") for number in range(1000)}
    assert len(found) > 1990
    assert max(found) < 2**32
