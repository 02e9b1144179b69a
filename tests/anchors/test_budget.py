"""Limits on what is built: time and memory of Python code that counts no modules."""

import threading

import pytest
from torch import nn

from timm_stitch.anchors.budget import bounded, time_limit


def test_a_loop_without_end_is_interrupted():
    def loop():
        while True:
            try:
                for _ in range(10**6):
                    pass
            except Exception:  # a library that goes on whatever happens
                continue

    with pytest.raises(ValueError, match=r"takes more than 0 s or 1,024 MB to lay out"), time_limit(0.2):
        loop()
    assert sum(range(10**5)) == 4999950000  # nothing arrives later


def test_memory_is_limited():
    def grow():
        kept = []
        while True:
            kept.append(bytes(1000))

    with pytest.raises(ValueError, match=r"or 64 MB to lay out"), time_limit(60, memory=64 << 20):
        grow()


def test_what_is_within_its_limits_goes_on():
    with time_limit(60), time_limit(60):
        assert sum(range(10**5)) == 4999950000
    with pytest.raises(KeyError), time_limit(60):
        raise KeyError("x")
    assert not [thread for thread in threading.enumerate() if thread.name == "time limit"]


def test_numbers_are_counted_against_their_own_limit():
    with (
        pytest.raises(ValueError, match="1,000 weights, more than the file could fill"),
        bounded(1000, "the file could fill"),
    ):
        nn.Linear(100, 100)
    with bounded(1000), pytest.raises(ValueError, match="1,000 weights"), bounded():
        nn.Linear(100, 100)
    nn.Linear(100, 100)
