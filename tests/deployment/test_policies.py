"""What answers next, and what would come of it: policies and the simulation of many requests."""

import random
from itertools import pairwise

import pytest

from timm_stitch.deployment.policies import DrainPolicy, FixedPolicy, LatencyTable, SlackFitPolicy, Slowdown
from timm_stitch.deployment.simulation import (
    Replica,
    accelerating,
    burst,
    diurnal,
    gamma_arrivals,
    recorded_arrivals,
    simulate,
    varying_arrivals,
)
from timm_stitch.models.published import published_table

BATCHES = (1, 2, 4, 8, 16, 32)


def ladder(name="snnet_deit_tsb", only=None):
    """The authors' stitches with their accuracies, on a machine whose latency grows with multiply-adds and images."""
    return [
        {"stitch_id": row["stitch_id"], "top1": row["top1"], "batch_size": b,
         "latency_ms": 2e-9 * row["published_macs"] * (0.35 + 0.65 * b)}
        for row in published_table(name)["stitches"]
        if row.get("top1") and (only is None or row["stitch_id"] in only)
        for b in BATCHES
    ]  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return LatencyTable(ladder())


def test_a_table_keeps_what_is_worth_running():
    rows = [(0, 70.0, 1, 10.0), (0, 70.0, 4, 20.0), (1, 69.0, 1, 12.0), (2, 80.0, 1, 30.0), (2, 80.0, 4, 60.0)]
    names = ("stitch_id", "top1", "batch_size", "latency_ms")
    table = LatencyTable([dict(zip(names, row, strict=True)) for row in rows])
    assert table.stitch_ids == [0, 2]
    assert table.each == [0.005, 0.015]
    assert table.best_batch == [4, 4]
    assert table.seconds(0, 1) == 0.010
    assert table.seconds(0, 3) == pytest.approx(0.010 + 0.010 * 2 / 3)
    assert table.seconds(1, 8) == pytest.approx(0.120)
    assert [table.largest_within(0, seconds, 4) for seconds in (0.005, 0.010, 0.0134, 1.0)] == [0, 1, 2, 4]
    assert [table.slowest_within(seconds) for seconds in (0.005, 0.010, 0.030)] == [0, 0, 1]
    assert table.slowest_within(0.030, count=4) == 0
    assert table.slowest_within(1.0, up_to=0) == 0
    disturbed = [{"stitch_id": 0, "top1": 70.0, "latency_ms_batch_1": 9.0, "latency_ms_batch_4": 6.0}]
    assert LatencyTable(disturbed).seconds(0, 1) == 0.006  # a call of fewer images takes no longer
    with pytest.raises(ValueError, match="no row has both top1 and latency_ms: evaluate and profile"):
        LatencyTable([{"stitch_id": 0, "top1": 70.0}])
    with pytest.raises(ValueError, match=r"must be positive, got 0.0 ms for 1 images of stitch 0"):
        LatencyTable([{"stitch_id": 0, "top1": 70.0, "latency_ms": 0}])


def test_a_table_of_one_row_a_stitch_and_of_published_accuracies():
    apart = ladder()
    joined: dict[int, dict] = {}
    for row in apart:
        whole = joined.setdefault(row["stitch_id"], {"stitch_id": row["stitch_id"], "published_top1": row["top1"]})
        whole[f"latency_ms_batch_{row['batch_size']}"] = row["latency_ms"]
        if row["batch_size"] == 1:
            whole["latency_ms"], whole["batch_size"] = row["latency_ms"], 1
    one, other = LatencyTable(apart), LatencyTable(joined.values())
    assert vars(one) == vars(other)
    assert one.batch_sizes == list(BATCHES)
    few = [{"stitch_id": 0, "top1": 60.0, "latency_ms": 1.0}, *joined.values()]
    assert LatencyTable(few).stitch_ids == [0]  # published figures stand in only where none is known


def test_drain_takes_the_dearest_that_answers_all_in_time(table):
    policy, steady = DrainPolicy(table), Slowdown()
    last = len(table) - 1
    assert policy.choose(0.0, [10.0], steady) == (last, 1, 0)
    for waiting in (2, 20, 100, 300):
        deadlines = [1.0] * waiting
        index, take, passed = policy.choose(0.0, deadlines, steady)
        assert passed == 0
        drained, spent = 0, 0.0
        while drained < waiting:  # that stitch does answer all in time, and the next dearer one does not
            now = min(take, waiting - drained)
            spent, drained = spent + table.seconds(index, now), drained + now
        assert spent <= 1.0
        assert index == last or table.each[index + 1] * waiting > 0.7
    assert policy.choose(0.0, [10.0] * 50, steady).table_index > policy.choose(0.0, [1.0] * 50, steady).table_index


def test_drain_passes_over_what_cannot_be_met_and_always_runs_something(table):
    policy, slow = DrainPolicy(table), Slowdown()
    shortest = table.seconds(0, 1)
    index, take, passed = policy.choose(0.0, [-1.0, shortest / 2, 2 * shortest, 3 * shortest], slow)
    assert (index, passed) == (0, 2)
    assert take >= 1
    assert policy.choose(0.0, [-1.0], slow) == (0, 1, 0)
    assert policy.choose(0.0, [-2.0, -1.0], slow) == (0, 1, 1)
    for _ in range(50):
        slow.note(100.0, 1.0)  # the machine hangs …
    assert policy.choose(0.0, [10 * shortest] * 5, slow).batch >= 1
    for _ in range(50):
        slow.note(1.0, 1.0)  # … and comes back
    assert policy.choose(0.0, [10.0], slow).table_index == len(table) - 1


def test_reserved_time_is_taken_from_every_deadline(table):
    tight = table.seconds(len(table) - 1, 1) * 1.01
    assert DrainPolicy(table, share=1.0).choose(0.0, [tight], Slowdown()).table_index == len(table) - 1
    assert DrainPolicy(table).choose(0.0, [tight], Slowdown()).table_index < len(table) - 1
    assert (
        DrainPolicy(table, reserve_ms=1e3 * tight / 2, share=1.0).choose(0.0, [tight], Slowdown()).table_index
        < len(table) - 1
    )


def test_slowdown_is_careful_but_forgets_outliers():
    slowdown = Slowdown()
    for spent in (1.0, 1.1, 57.0, *[1.0] * 17):
        slowdown.note(spent, 1.0)
    assert slowdown.median == 1.0
    assert slowdown.capped_quantile == 4.0  # bounded, whatever the outlier
    for _ in range(40):
        slowdown.note(2.0, 1.0)
    assert slowdown.median == slowdown.capped_quantile == 2.0


@pytest.mark.parametrize("make", [DrainPolicy, SlackFitPolicy, lambda table: FixedPolicy(table, 5)])
def test_decisions_fit_the_queue(table, make):
    policy, draw = make(table), random.Random(0)
    for _ in range(300):
        deadlines = sorted(draw.uniform(-0.1, 0.4) for _ in range(draw.randint(1, 60)))
        index, take, passed = policy.choose(0.0, deadlines, Slowdown())
        assert 0 <= index < len(table)
        assert take >= 1
        assert passed >= 0
        assert passed + take <= len(deadlines)


@pytest.mark.parametrize(
    ("name", "load", "above"),  # a Swin-Ti is only 3.4 times as fast as a Swin-B: twice the load is what it can bear
    [
        ("snnet_deit_tsb", 1.0, 0.5), ("snnet_deit_tsb", 1.5, 0.5), ("snnet_deit_tsb", 3.0, 0.1),
        ("snnet_swin_tsb", 1.0, 0.5), ("snnet_swin_tsb", 1.5, 0.4),
    ],
)  # fmt: skip
def test_on_an_ideal_machine_drain_keeps_its_promise_and_scores_best(name, load, above):
    table = LatencyTable(ladder(name))
    largest = len(table) - 1
    promise = 4e3 * table.seconds(largest, 1)
    arrivals = gamma_arrivals(load / table.each[largest], 20.0, cv2=2.0, seed=1)

    def play(policy):
        outcome = simulate(arrivals, [Replica(table, policy)], promise)
        assert outcome.met + outcome.late + outcome.dropped == outcome.requests == len(arrivals)
        assert outcome.stitches.total() == outcome.met
        return outcome

    ours, slack_fit = play(DrainPolicy(table)), play(SlackFitPolicy(table))
    fixed = max(play(FixedPolicy(table, index)).score for index in range(len(table)))
    assert ours.attainment >= 99.9
    assert ours.score > slack_fit.score
    assert ours.score > fixed + above
    assert ours.attainment > 1.05 * play(FixedPolicy(table, largest)).attainment


@pytest.mark.parametrize("load", [1.0, 1.5, 3.0])
def test_small_calls_count_as_long_as_they_are(load):
    """A machine on which each call takes 7 ms, and each image little more."""
    table = LatencyTable(
        {"stitch_id": k, "top1": top1, "batch_size": b, "latency_ms": 7.0 + each * b}
        for k, (top1, each) in enumerate([(78.0, 0.2), (79.8, 0.27), (83.0, 0.5), (83.8, 0.9), (84.1, 1.6)])
        for b in BATCHES
    )
    largest = len(table) - 1
    arrivals = gamma_arrivals(load / table.each[largest], 10.0, cv2=2.0, seed=1)

    def play(policy):
        return simulate(arrivals, [Replica(table, policy)], 50.0)

    ours = play(DrainPolicy(table))
    assert ours.attainment >= 99.9
    assert ours.score > max(play(FixedPolicy(table, index)).score for index in range(len(table)))
    assert ours.score > play(SlackFitPolicy(table)).score


def test_a_burst_is_bent_to_and_replayed_slowdowns_are_lived_through(table):
    largest = len(table) - 1
    rate = 0.8 / table.each[largest]
    arrivals = varying_arrivals(burst(rate, 5.0, 5.0, 10.0), 15.0, seed=2)
    assert len(arrivals) == pytest.approx(rate * (10 + 5 * 5), rel=0.1)
    promise = 8e3 * table.seconds(largest, 1)

    def play(policy):
        draw = random.Random(3)
        slowdowns = iter(lambda: draw.choice([1.0, 1.1, 1.0, 1.3, 2.4]), None)
        return simulate(arrivals, [Replica(table, policy, slowdowns)], promise)

    ours, fixed = play(DrainPolicy(table)), play(FixedPolicy(table, largest))
    assert ours.attainment > 97
    assert fixed.attainment < ours.attainment / 1.25
    assert len(ours.stitches) > 3


def test_an_overloaded_stitch_keeps_its_calls_large():
    """It passes over enough for the next call to hold many requests: else each would be one of the last moment."""
    rows = [{"stitch_id": 0, "top1": 80.0, "batch_size": b, "latency_ms": 7.0 + 0.5 * b} for b in BATCHES]
    table = LatencyTable(rows)
    arrivals = gamma_arrivals(1.2 / table.each[0], 10.0, seed=1)
    assert simulate(arrivals, [Replica(table, FixedPolicy(table, 0))], 50.0).attainment > 75  # of 83 at best
    assert simulate(arrivals, [Replica(table, DrainPolicy(table))], 50.0).attainment > 75


def test_many_replicas_share_the_requests(table):
    largest = len(table) - 1
    arrivals = gamma_arrivals(30 / table.each[largest], 3.0, seed=4)
    promise = 4e3 * table.seconds(largest, 1)

    def play(choices):
        replicas = [Replica(table, FixedPolicy(table, largest)) for _ in range(40)]
        return simulate(arrivals, replicas, promise, choices=choices)

    assert play(2).attainment > play(1).attainment + 0.5
    assert play(2).attainment > 96


def test_arrivals_have_the_rate_and_burstiness_they_were_drawn_for(tmp_path):
    even, bursty = gamma_arrivals(100, 50, cv2=0.01), gamma_arrivals(100, 50, cv2=8.0)
    assert len(even) == pytest.approx(5000, rel=0.02)
    assert len(bursty) == pytest.approx(5000, rel=0.2)
    assert max(b - a for a, b in pairwise(even)) < 0.02
    assert max(b - a for a, b in pairwise(bursty)) > 0.1
    assert gamma_arrivals(100, 50, seed=1) == gamma_arrivals(100, 50, seed=1)
    growing = varying_arrivals(accelerating(100, 4, 50), 50)
    assert sum(at > 25 for at in growing) > 1.5 * sum(at <= 25 for at in growing)
    day = varying_arrivals(diurnal(100, 5, 50), 50, cv2=0.01)
    assert sum(20 <= at < 30 for at in day) > 3.5 * sum(at < 5 or at >= 45 for at in day)
    file = tmp_path / "trace.csv"
    file.write_text("time,size\n10.5,3\n10.0,2\n12.0,1\n")
    assert recorded_arrivals(file) == [0.0, 0.5, 2.0]
    file.write_text("1.0\nnoon\n")
    with pytest.raises(ValueError, match=r"line 2 of .*trace.csv' does not begin with a time in seconds"):
        recorded_arrivals(file)
    file.write_text("")
    with pytest.raises(ValueError, match="has no arrival times"):
        recorded_arrivals(file)
