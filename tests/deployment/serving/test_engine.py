"""Requests in the order of their deadlines: batches, options, what is given up, faults and ends."""

import threading
import time

import pytest
import torch

from timm_stitch.deployment.policies import Decision, DrainPolicy, FixedPolicy, LatencyTable
from timm_stitch.deployment.serving.deployments import Deployment
from timm_stitch.deployment.serving.engine import Call, Engine, OverloadError, Request

ROWS = [
    {"stitch_id": stitch_id, "top1": top1, "batch_size": batch, "latency_ms": ms * (0.5 + 0.5 * batch)}
    for stitch_id, top1, ms in [(3, 70.0, 2.0), (5, 75.0, 4.0), (9, 80.0, 8.0)]
    for batch in (1, 2, 4, 8)
]
TABLE = LatencyTable(ROWS)
LONG = 30.0  # seconds, more than any test takes


class Network:
    """Stands for a network: the logits of an image are its mean and the stitch."""

    def __init__(self, held=False):
        self.calls, self.may_run, self.running = [], threading.Event(), threading.Event()
        if not held:
            self.may_run.set()

    def __call__(self, images, stitch_id):
        self.running.set()
        assert self.may_run.wait(LONG)
        self.calls.append((stitch_id, [int(image.mean()) for image in images]))
        return torch.stack([images.flatten(1).mean(1), torch.full((len(images),), float(stitch_id))], 1)


class Timed(Network):
    """Takes as long as the table says."""

    def __call__(self, images, stitch_id):
        time.sleep(TABLE.seconds(TABLE.stitch_ids.index(stitch_id), len(images)))
        return super().__call__(images, stitch_id)


def image(value, count=1):
    return torch.full((count, 1, 2, 2), float(value))


def request(value, due=LONG, count=1, allowed=None):
    return Request(image(value, count), time.monotonic() + due, None if allowed is None else frozenset(allowed))


@pytest.fixture
def engine(request):
    made = []

    def make(network, policy=None, **values):
        made.append(Engine(Deployment(network, policy or DrainPolicy(TABLE), TABLE), **values))
        return made[-1]

    yield make
    for one in made:
        one.close(0.0)


def held(engine, network, *requests):
    """Let requests come while a first one runs; returns their answers, the network's first call left out."""
    first = engine.submit(request(99))
    assert network.running.wait(LONG)
    waiting = [engine.submit(one) for one in requests]
    network.may_run.set()
    first.result(LONG)
    return waiting


def test_the_most_urgent_first_and_together(engine):
    network = Network(held=True)
    answers = held(engine(network), network, request(2, due=20), request(1, due=10), request(3, due=25))
    found = [answer.result(LONG) for answer in answers]
    assert network.calls == [(9, [99]), (9, [1, 2, 3])]
    assert [int(answer.logits[0, 0]) for answer in found] == [2, 1, 3]
    assert {(answer.stitch_id, answer.batch, answer.late) for answer in found} == {(9, 3, False)}
    assert all(answer.waited_s >= 0 and answer.duration_s >= 0 for answer in found)


def test_a_cheaper_stitch_where_more_waits_than_the_dear_one_can_answer(engine):
    network, calls = Timed(held=True), []
    running = engine(network, watch=calls.append)
    for answer in held(running, network, *[request(n, due=0.45) for n in range(100)]):
        answer.result(LONG)
    assert network.calls[1][0] in (3, 5)  # 100 images take 9 about 450 ms
    assert sum(call.met + call.late for call in calls) == 101
    assert isinstance(calls[0], Call)


def test_images_of_one_request_are_answered_by_one_stitch(engine):
    network = Network(held=True)
    answers = held(
        engine(network), network, request(1, 10, 5), request(2, 11, 6), request(3, 12, 20), request(4, 13, 2)
    )
    found = [answer.result(LONG) for answer in answers]
    assert [len(answer.logits) for answer in found] == [5, 6, 20, 2]
    # at most eight run together, but a request is never cut
    assert [values for _, values in network.calls[1:]] == [[1] * 5, [2] * 6, [3] * 20, [4] * 2]


def test_requests_run_by_a_stitch_they_allow(engine):
    network = Network(held=True)
    wanted = [request(1, 10, allowed=[3]), request(2, 11), request(3, 12, allowed=[3, 5]), request(4, 13, allowed=[7])]
    found = [answer.result(LONG) for answer in held(engine(network), network, *wanted)]
    assert [answer.stitch_id for answer in found] == [3, 9, 5, 7]  # 7 is none that the table has
    assert [answer.batch for answer in found] == [1, 1, 1, 1]


def test_who_gets_the_same_stitch_runs_together(engine):
    network = Network(held=True)
    wanted = [request(1, 10, allowed=[5]), request(2, 11), request(3, 12, allowed=[3, 5]), request(4, 13, allowed=[9])]
    found = [answer.result(LONG) for answer in held(engine(network), network, *wanted)]
    assert [answer.stitch_id for answer in found] == [5, 9, 5, 9]  # nobody gets a cheaper one for another's wish
    assert network.calls[1:] == [(5, [1, 3]), (9, [2, 4])]


def test_what_cannot_be_met_is_given_up_at_once_and_something_runs(engine):
    network, calls = Network(held=True), []
    running = engine(network, watch=calls.append)
    answers = held(running, network, *[request(n, due=-1) for n in range(3)], request(7))
    for answer in answers[:2]:
        with pytest.raises(OverloadError, match=r"could not be answered in time: try again later"):
            answer.result(LONG)
    assert not answers[3].result(LONG).late
    assert sum(call.dropped for call in calls) == 3
    late = running.submit(request(8, due=-1))  # alone: it runs, so that a machine that is fast again is noticed
    assert late.result(LONG).late
    assert calls[-1].late == 1


def test_a_request_of_several_images_is_dropped_whole(engine):
    class PassesFive:
        def choose(self, now, deadlines, slowdown):
            return Decision(0, 1, 5 if len(deadlines) > 5 else 0)

    network = Network(held=True)
    answers = held(engine(network, PassesFive()), network, request(1, 10, 3), request(2, 11, 4))
    with pytest.raises(OverloadError):
        answers[0].result(LONG)
    assert len(answers[1].result(LONG).logits) == 4


def test_more_than_may_wait_is_refused(engine):
    network = Network(held=True)
    running = engine(network, most_waiting=4)
    first = running.submit(request(0))
    assert network.running.wait(LONG)
    kept = [running.submit(request(n)) for n in range(3)]
    with pytest.raises(OverloadError, match="3 images wait already"):
        running.submit(request(9, count=2))
    network.may_run.set()
    assert all(answer.result(LONG) for answer in [first, *kept])


def test_a_call_that_fails_is_its_own_requests_alone(engine, caplog):
    class Failing(Network):
        def __call__(self, images, stitch_id):
            if images.max() > 50:
                raise RuntimeError("out of memory")
            return super().__call__(images, stitch_id)

    calls = []
    running = engine(Failing(), watch=calls.append)
    with pytest.raises(RuntimeError, match="out of memory"):
        running.submit(request(51)).result(LONG)
    assert running.submit(request(1)).result(LONG).logits.shape == (1, 2)
    assert [call.failed for call in calls] == [1, 0]
    assert "failed on 1 images" in caplog.text


def test_an_engine_that_dies_says_so_and_keeps_nobody_waiting(engine, caplog):
    class Wrong:
        def choose(self, now, deadlines, slowdown):
            raise ZeroDivisionError

    running = engine(Network(), Wrong())
    with pytest.raises(OverloadError, match="shutting down"):
        running.submit(request(1)).result(LONG)
    assert running.died
    assert not running.alive
    with pytest.raises(OverloadError):
        running.submit(request(2))
    assert "the engine died" in caplog.text


def test_closing_answers_what_waits_and_takes_no_more(engine):
    network = Network(held=True)
    running = engine(network)
    first = running.submit(request(0))
    assert network.running.wait(LONG)
    waiting = running.submit(request(1))
    closing = threading.Thread(target=running.close, args=(LONG,))
    closing.start()
    while running.alive:
        time.sleep(0.001)
    with pytest.raises(OverloadError, match="shutting down"):
        running.submit(request(2))
    network.may_run.set()
    assert first.result(LONG).logits.shape == (1, 2)
    assert waiting.result(LONG).logits.shape == (1, 2)
    closing.join(LONG)
    assert not running.died


def test_closing_without_time_gives_up_what_waits(engine):
    network = Network(held=True)
    running = engine(network)
    running.submit(request(0))
    assert network.running.wait(LONG)
    waiting = running.submit(request(1))
    running.close(0.0)
    with pytest.raises(OverloadError, match="shutting down"):
        waiting.result(LONG)
    network.may_run.set()


def test_requests_are_answered_by_the_network_for_which_they_came(engine):
    old, new = Network(held=True), Network()
    running = engine(old)
    first = running.submit(request(1))
    assert old.running.wait(LONG)
    second = running.submit(request(2))
    running.replace(Deployment(new, FixedPolicy(TABLE, 0), TABLE))
    third = running.submit(request(3))
    old.may_run.set()
    assert first.result(LONG).stitch_id == 9
    assert second.result(LONG).stitch_id == 9
    assert third.result(LONG).stitch_id == 3
    assert (old.calls[1:], new.calls) == ([(9, [2])], [(3, [3])])


def test_a_cancelled_request_is_not_run(engine):
    network = Network(held=True)
    running = engine(network)
    first = running.submit(request(0))
    assert network.running.wait(LONG)
    gone, kept = running.submit(request(1)), running.submit(request(2))
    assert gone.cancel()
    network.may_run.set()
    assert first.result(LONG)
    assert kept.result(LONG).batch == 1
    assert network.calls[1:] == [(9, [2])]


def test_a_slow_machine_is_noticed(engine):
    class Slow(Network):
        def __call__(self, images, stitch_id):
            time.sleep(0.05)
            return super().__call__(images, stitch_id)

    running = engine(Slow())
    for _ in range(3):
        running.submit(request(1)).result(LONG)
    assert running.slowdown.capped_quantile > 3  # 50 ms where the table says 8
