"""Plain values of a saved configuration stay within bounds, at any depth."""

import math

import pytest

from timm_stitch.plan.bounds import ValueLimits, count_values


def refuse_files(where, values):
    if "file" in values:
        raise ValueError(f"{where} names a file.")


LIMITS = ValueLimits(lambda name: 512 if name == "depths" else 65_536, refuse_files, depth=2)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (513, "x is 513: expected at most 512"),
        ([2, [600]], "x is 600: expected at most 512"),
        ({"0": 600}, "x.0 is 600: expected at most 512"),
        ({"width": 70_000}, "x.width is 70000: expected at most 65,536"),
        (-(10**400), "x is -1000.*: expected at most 512"),
        (math.nan, "x is nan"),
        (math.inf, "x is inf"),
        ("a" * 257, "x is a text of 257 letters: expected at most 256"),
        ([[[[1]]]], "x is a list too deep or strange"),
        (b"", "x is a bytes too deep or strange"),
        ([{"file": 1}], "x names a file"),
    ],
)
def test_values_out_of_bounds_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        LIMITS.check("x", "depths", value)


def test_values_within_bounds_pass():
    LIMITS.check("x", "depths", [512, True, None, "a" * 256, {"width": 65_536}, [[]]])
    ValueLimits(lambda name: 1, refuse_files, depth=0, infinite=True).check("x", "x", -math.inf)


def test_count_values():
    assert count_values([1, {"a": [2, 3], "plan": [4] * 10}], without="plan") == 3
    assert count_values({"plan": [4] * 10}) == 10
