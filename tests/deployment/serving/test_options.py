"""Options of requests: numbers are numbers, and what is not understood is refused."""

import pytest

from timm_stitch.deployment.serving.config import RequestOptions
from timm_stitch.deployment.serving.options import read_options, read_query


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ({}, RequestOptions()),
        ({"stitch_id": "7", "latency_ms": "1e3"}, RequestOptions(latency_ms=1000.0, stitch_id=7)),
        ({"stitch_id": 7.0, "latency_ms": 5}, RequestOptions(latency_ms=5.0, stitch_id=7)),
        ({"macs": ".5"}, RequestOptions(macs=0.5)),
    ],
)
def test_numbers_are_read(values, options):
    assert read_options(values) == options


@pytest.mark.parametrize(
    "value", [1.7, True, False, "1_0", "1.0", "\u0661", " 1", "", "1e2", "9" * 30, [1], float("nan")]
)
def test_a_stitch_is_named_by_a_whole_number(value):
    with pytest.raises(ValueError, match="stitch_id must be a whole number, got "):
        read_options({"stitch_id": value})


@pytest.mark.parametrize("value", [True, "1_0", "nan", "inf", "1e999", "\u0661", "", "0x1", 10**400, float("inf"), {}])
def test_other_numbers_are_finite(value):
    for name in ("latency_ms", "macs"):
        with pytest.raises(ValueError, match=f"{name} must be a number, got "):
            read_options({name: value})


def test_what_is_not_understood_is_refused():
    with pytest.raises(ValueError, match="there is no option 'stich_id': expected latency_ms, stitch_id, macs, top"):
        read_options({"stich_id": 3}, ["top"])
    with pytest.raises(ValueError, match="top is given twice"):
        read_query([("top", "1"), ("top", "2")])
