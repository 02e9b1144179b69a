"""Each bound on the JSON files of a stranger's network refuses what lies beyond it, and nothing before."""

import json
import os

import pytest

from timm_stitch.families import saved_files
from timm_stitch.families.saved_files import read_json


def nested(levels):
    return json.dumps({"a": json.loads("[" * (levels - 1) + "]" * (levels - 1))})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": NaN}', r"config.json is not readable JSON \(NaN is not a number\): fetch or save"),
        ('{"a": -Infinity}', r"-Infinity is not a number"),
        (nested(101), "its values lie more than 100 levels deep"),
        ("[" * 100_000, "is not readable JSON"),
        ('{"a": ', "is not readable JSON"),
        ("[1]", "config.json holds a list, expected an object"),
    ],
)
def test_what_is_no_plain_object_is_refused(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_json(tmp_path / "config.json")


def test_what_is_as_large_and_deep_as_allowed_is_read(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    path.write_text(nested(100))
    assert read_json(path)["a"]
    monkeypatch.setattr(saved_files, "_MOST_BYTES", path.stat().st_size)
    read_json(path)
    monkeypatch.setattr(saved_files, "_MOST_BYTES", path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"config.json has \d+ bytes, more than any network needs"):
        read_json(path)


def test_only_ordinary_files_of_the_folder_are_read(tmp_path):
    folder, outside = tmp_path / "network", tmp_path / "outside.json"
    folder.mkdir()
    outside.write_text("{}")
    (folder / "own.json").write_text('{"a": 1}')
    (folder / "link.json").symlink_to(folder / "own.json")
    assert read_json(folder / "link.json") == {"a": 1}
    (folder / "leaving.json").symlink_to(outside)
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    for name, message in (
        ("leaving.json", "is a link to a file outside of the folder, so it was not read"),
        ("folder.json", "is no ordinary file, so it was not read"),
        ("pipe.json", "is no ordinary file, so it was not read"),
    ):
        with pytest.raises(OSError, match=message):
            read_json(folder / name)
    with pytest.raises(FileNotFoundError, match=r"there is no missing.json in .*: expected what timm_stitch"):
        read_json(folder / "missing.json")


def test_a_link_into_the_blobs_of_a_snapshot_is_read_and_no_other(tmp_path):
    snapshot, blobs = tmp_path / "models--a" / "snapshots" / "main", tmp_path / "models--a" / "blobs"
    other = tmp_path / "models--b" / "blobs"
    for folder in (snapshot, blobs, other):
        folder.mkdir(parents=True)
    for name, folder in (("own.json", blobs), ("other.json", other)):
        (folder / "content").write_text("{}")
        (snapshot / name).symlink_to(folder / "content")
    assert read_json(snapshot / "own.json") == {}
    with pytest.raises(OSError, match="is a link to a file outside of the folder"):
        read_json(snapshot / "other.json")
