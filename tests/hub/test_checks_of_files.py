"""Each check of stitches.json and of the header of weights, which may be a stranger's, refuses by itself."""

import json

import pytest
import torch

from timm_stitch.hub import safetensors_ranges as ranges
from timm_stitch.hub.json_files import is_plain, parse_stitches, plain_training
from timm_stitch.plan.stitch_plan import Anchor, Segment, Stitch, StitchPlan

PLAN = StitchPlan(
    (Anchor("a", (8, 8, 8), (1, 1, 1)), Anchor("b", (8, 8, 8), (1, 1, 1))),
    (),
    (Stitch(0, (Segment(0, 0, 2),)), Stitch(1, (Segment(1, 0, 2),))),
)
SAVED = {"weights": "0" * 16, "plan": PLAN.to_dict(), "stitches": [{"stitch_id": 1, "top1": 50.0}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": 5}, "lacks its fingerprint or its rows"),
        ({"weights": "0" * 65}, "lacks its fingerprint or its rows"),
        ({"stitches": {}}, "lacks its fingerprint or its rows"),
        ({"plan": [1]}, ""),
        ({"stitches": [5]}, "has a garbled row"),
        ({"stitches": [{"top1": 1.0}]}, "has a garbled row"),
        ({"stitches": [{"stitch_id": "1"}]}, "has a garbled row"),
        ({"stitches": [{"stitch_id": 2}]}, "has a garbled row"),
        ({"stitches": [{"stitch_id": 1}, {"stitch_id": 1}]}, "has a garbled row"),
        ({"stitches": [{"stitch_id": 1, "top1": 101}]}, "has a garbled row"),
        ({"training": [1]}, "garbles how the network was trained"),
    ],
)
def test_what_save_pretrained_does_not_write_is_refused(change, message):
    assert parse_stitches(SAVED).rows == SAVED["stitches"]
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        parse_stitches(SAVED | change)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("latency_ms", [1, 0.5, None], [0, -1, 1e18, "1"]),
        ("batch_size", [8, None], [0, "8"]),
        ("top1", [0, 100.0, None], [-1, 100.5, [1]]),
        ("dataset", ["a" * 1024], ["a" * 1025]),
        ("loss", [1e17, -1, True, None], [1e18, [1], {"a": 1}]),
    ],
)
def test_rows_hold_plain_values(key, good, bad):
    assert [is_plain(key, value) for value in good] == [True] * len(good)
    assert [is_plain(key, value) for value in bad] == [False] * len(bad)


def test_of_the_history_of_weights_only_plain_values_and_repositories_are_kept():
    history = {
        "base_models": ["timm/deit", "../x", 5, *["a/b"] * 99],
        "runs": [{"epochs": 3, "data": [1], "x" * 65: 1}, 7, *[{"epochs": 1}] * 199],
        "pulled_from": "http://evil.example/x",
        "more": 1,
    }
    plain = plain_training(history)
    assert plain == {"base_models": ["timm/deit", *["a/b"] * 61], "runs": [{"epochs": 3}, *[{"epochs": 1}] * 98]}
    assert plain_training({"base_models": 5, "runs": 5, "pulled_from": "a/b"}) == {"pulled_from": "a/b"}
    assert plain_training([1]) == {}


def header(**entries):
    return json.dumps({n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in entries.items()}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff", "has no readable header"),
        (b"[1]", "has no readable header"),
        (b'{"a":' * 10_000, "has no readable header"),
        (b'{"a": 1}', "has no readable header"),
        (header(a=("F99", [10], [0, 40])), "has no readable header"),
        (header(a=("F32", 10, [0, 40])), "has no readable header"),
        (header(a=("F32", [10], [0])), "has no readable header"),
        (header(a=("F32", [10], [0, 36])), "as its shape says"),
        (header(a=("F32", [-1, -10], [0, 40])), "no numbers of bytes"),
        (header(a=("F32", [10], [-40, 0])), "no numbers of bytes"),
        (header(a=("F32", [10], [False, 40])), "no numbers of bytes"),
        (header(a=("F32", [10], [0, 40]), b=("F32", [10], [36, 76])), "'b' overlaps"),
        (header(a=("F32", [10], [0, 40]), b=("F32", [10], [44, 84])), "'b' leaves a gap"),
        (header(a=("F32", [9], [0, 36])), "its tensors end at byte"),
    ],
)
def test_headers_are_those_of_tensors_that_fill_the_file(raw, message):
    assert ranges.parse_header(header(a=("F32", [10], [0, 40]), b=("BOOL", [0], [40, 40])), 8, 48)["a"].stop == 48
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        ranges.parse_header(raw, 8, 48)


class Response:
    def __init__(self, content_range, status=206, etag='"1"', body=b"12345678"):
        self.status_code, self.body = status, body
        self.headers = {"Content-Range": content_range, "ETag": etag}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def iter_bytes(self):
        return iter([self.body])


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (Response("", 416), ranges.ChangedError),
        (Response("bytes 0-7/48", 200), ranges.NoRangesError),
        (Response("bytes 0-7/48", 501), ranges.NoRangesError),
        (Response("whole"), ranges.NoRangesError),
        (Response("bytes 4-11/48"), ranges.NoRangesError),
        (Response("bytes 0-7/49"), ranges.ChangedError),
        (Response("bytes 0-7/48", etag='"2"'), ranges.ChangedError),
    ],
    ids=["beyond", "whole", "not implemented", "no range", "another place", "another length", "another version"],
)
def test_answers_to_ranges_are_those_that_were_asked_for(monkeypatch, response, error):
    file = ranges.RemoteFile("http://x", {}, "x", 48)
    monkeypatch.setattr(ranges, "_get", lambda *_: Response("bytes 0-7/48"))
    assert file.fetch(0, 8) == b"12345678"
    monkeypatch.setattr(ranges, "_get", lambda *_: response)
    with pytest.raises(error):
        file.fetch(0, 8)


def test_a_connection_that_gives_nothing_and_an_error_of_the_server_are_errors(monkeypatch):
    monkeypatch.setattr(ranges, "WAIT", 0)
    monkeypatch.setattr(ranges, "_get", lambda *_: Response("bytes 0-7/48", body=b""))
    with pytest.raises(ConnectionError, match="the connection ended after 0 of 8 bytes"):
        ranges.RemoteFile("http://x", {}, "x", 48).fetch(0, 8)

    def refuse(_):
        raise PermissionError

    monkeypatch.setattr(ranges, "hf_raise_for_status", refuse)
    monkeypatch.setattr(ranges, "_get", lambda *_: Response("bytes 0-7/48", status=403))
    with pytest.raises(PermissionError):
        ranges.RemoteFile("http://x", {}, "x", 48).fetch(0, 8)


@pytest.mark.parametrize("length", [0, 1, 41, 9 << 20])
def test_the_length_of_a_header_fits_the_file(monkeypatch, length):
    file = ranges.RemoteFile("http://x", {}, "x", 48 if length < 48 else 1 << 30)
    body = length.to_bytes(8, "little")
    monkeypatch.setattr(ranges, "_get", lambda *_: Response("bytes 0-7/*", body=body))
    with pytest.raises(ValueError, match=rf"has no readable header \(of {length} bytes\)"):
        file.header()


def test_tensors_that_overlap_are_not_read():
    entries = {name: ranges.Entry(torch.float32, (10,), 8 + i, 48 + i) for i, name in enumerate("ab")}
    with pytest.raises(ValueError, match="has tensors that overlap: 'a' and 'b'"):
        ranges.RemoteFile("http://x", {}, "x", 100).tensors(entries)
