"""What is written appears whole or not at all, whatever happens in the middle, and touches nothing else."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import pytest

from timm_stitch.files import atomic_files, lock_folder, read_consistently, whole_file, whole_folder


class CrashError(Exception):
    pass


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(writer, text="text", name="a", meanwhile=lambda: None):
    """Write to what a writer gives, a file or a folder, with something going on meanwhile."""
    with writer as beside:
        (beside / name if beside.is_dir() else beside).write_text(text)
        meanwhile()


def fail():
    raise CrashError


def crash(writer, name="a", meanwhile=fail):
    """Write some and then fail."""
    with pytest.raises(CrashError):
        write(writer, "half", name, meanwhile)


# ── one file ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_takes_its_place_when_all_is_written(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    with whole_file(path) as beside:
        assert beside.suffix == ".jsonl"  # by which writers choose a format
        beside.write_text("one")
        assert not path.exists()
    assert path.read_text() == "one"
    with whole_file(path) as beside:
        beside.write_text("two")
        assert path.read_text() == "one"
    assert path.read_text() == "two"
    assert names(path.parent) == ["rows.jsonl"]


def test_a_file_is_as_it_was_after_a_crash(tmp_path):
    path = tmp_path / "rows.jsonl"
    crash(whole_file(path))
    assert names(tmp_path) == []
    path.write_text("one")
    crash(whole_file(path))
    assert path.read_text() == "one"
    assert names(tmp_path) == ["rows.jsonl"]


def test_a_writer_that_writes_nothing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "rows.jsonl"):
        pass
    assert names(tmp_path) == []


def test_a_process_that_is_killed_leaves_no_half_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("one")
    code = (
        "import os, signal, sys; from timm_stitch.files import whole_file\n"
        "with whole_file(sys.argv[1]) as beside:\n"
        "    beside.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], env=os.environ)
    assert run.returncode == -signal.SIGKILL
    assert path.read_text() == "one"


def test_writers_at_once_do_not_meet(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write_one(n):
        write(whole_file(path), str(n) * 100_000)
        return path.read_text()

    with ThreadPool(8) as pool:
        for text in pool.map(write_one, range(10)):
            assert len(text) == 100_000
            assert len(set(text)) == 1
    assert names(tmp_path) == ["rows.jsonl"]


# ── files of a folder ─────────────────────────────────────────────────────────────────────────────────


def test_files_come_into_a_folder_and_leave_others_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    with atomic_files(tmp_path) as beside:
        for name in ("config.json", "weights"):
            (beside / name).write_text("new")
        assert (tmp_path / "config.json").read_text() == "old"
    assert names(tmp_path) == ["config.json", "notes.txt", "weights"]
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "config.json").read_text() == "new"


def test_a_folder_is_as_it_was_after_a_crash(tmp_path):
    crash(atomic_files(tmp_path / "new"), "config.json")
    assert names(tmp_path) == []
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").write_text("old")
    crash(atomic_files(tmp_path), "config.json")
    assert names(tmp_path) == ["config.json", "notes.txt"]
    assert (tmp_path / "config.json").read_text() == "old"


def test_a_folder_that_somebody_else_uses_meanwhile_stays(tmp_path):
    def meanwhile():
        (tmp_path / "new" / "theirs").write_text("theirs")
        fail()

    crash(atomic_files(tmp_path / "new"), meanwhile=meanwhile)
    assert names(tmp_path / "new") == ["theirs"]


def test_writers_of_one_folder_do_not_meet(tmp_path):
    def write_two(n):
        with atomic_files(tmp_path / "net") as beside:
            (beside / f"file-{n}").write_text("its own")
            (beside / "shared").write_text(str(n) * 10_000)

    with ThreadPool(8) as pool:
        pool.map(write_two, range(10))
    assert names(tmp_path / "net") == sorted([*(f"file-{n}" for n in range(10)), "shared"])
    assert len(set((tmp_path / "net" / "shared").read_text())) == 1


# ── a whole folder ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("empty", [False, True])
def test_a_folder_appears_when_all_is_written(tmp_path, empty):
    folder = tmp_path / "deep" / "deploy"
    if empty:
        folder.mkdir(parents=True)
    with whole_folder(folder) as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "a").write_text("a")
        assert not folder.exists() or not any(folder.iterdir())
    assert (folder / "inner" / "a").read_text() == "a"
    assert names(tmp_path / "deep") == ["deploy"]


def test_no_folder_appears_after_a_crash(tmp_path):
    crash(whole_folder(tmp_path / "deploy"), "a")
    assert names(tmp_path) == []
    (tmp_path / "deploy").mkdir()
    crash(whole_folder(tmp_path / "deploy"), "a")
    assert names(tmp_path) == ["deploy"]
    assert names(tmp_path / "deploy") == []


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_place_that_holds_something_is_refused_before_anything_is_written(tmp_path, kind):
    place = tmp_path / "deploy"
    if kind == "folder":
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    else:
        place.write_text("mine")
    with pytest.raises(FileExistsError, match="deploy' is not empty: give a new or empty folder"):
        write(whole_folder(place), meanwhile=lambda: pytest.fail("it was not refused before writing"))
    assert names(tmp_path) == ["deploy"]


def test_what_came_into_an_empty_folder_meanwhile_stays(tmp_path):
    place = tmp_path / "deploy"
    place.mkdir()
    with pytest.raises(OSError, match="not empty"):
        write(whole_folder(place), meanwhile=lambda: (place / "theirs").write_text("theirs"))
    assert names(tmp_path) == ["deploy"]
    assert names(place) == ["theirs"]


def test_of_two_writers_of_one_folder_the_first_wins(tmp_path):
    place = tmp_path / "deploy"
    with pytest.raises(OSError, match="not empty"):
        write(whole_folder(place), "late", meanwhile=lambda: write(whole_folder(place), "early"))
    assert (place / "a").read_text() == "early"
    assert names(tmp_path) == ["deploy"]


# ── several at a time ─────────────────────────────────────────────────────────────────────────────────


def test_files_that_belong_together_are_never_those_of_two_writers(tmp_path):
    folder, end, seen = tmp_path / "net", time.monotonic() + 3, []
    with atomic_files(folder) as beside:
        for name in "abc":
            (beside / name).write_text("0")

    def work(mark):
        while time.monotonic() < end:
            if mark:
                with atomic_files(folder) as beside:
                    for name in "abc":
                        (beside / name).write_text(str(mark))
            else:
                seen.append(read_consistently([folder / name for name in "abc"], lambda: read_slowly(folder)))

    def read_slowly(folder):
        found = []
        for name in "abc":
            found.append((folder / name).read_text())
            time.sleep(0.002)
        return tuple(found)

    with ThreadPool(5) as pool:
        pool.map(work, [1, 2, 3, 0, 0], chunksize=1)
    assert len(seen) > 10
    assert all(len(set(found)) == 1 for found in seen)
    assert names(folder) == ["a", "b", "c"]


def test_a_reader_waits_for_a_writer_that_is_half_way(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text("0")
    lock = lock_folder(tmp_path)
    (tmp_path / "a").write_text("1")
    with ThreadPool(1) as pool:
        files = [tmp_path / name for name in "abc"]
        found = pool.apply_async(read_consistently, [files, lambda: [file.read_text() for file in files]])
        time.sleep(0.1)
        (tmp_path / "b").write_text("1")
        (tmp_path / "c").write_text("1")
        os.close(lock)
        assert found.get(10) == ["1", "1", "1"]


def test_an_error_of_files_that_nobody_writes_is_raised_at_once(tmp_path):
    calls = []

    def read():
        calls.append(1)
        raise CrashError

    with pytest.raises(CrashError):
        read_consistently([tmp_path / "a"], read)
    assert len(calls) == 1


def test_what_a_killed_writer_left_is_removed_a_day_later(tmp_path):
    old, new = tmp_path / ".writing-1-a", tmp_path / ".writing-2-b"
    for stray in (old, new):
        stray.mkdir()
        (stray / "a").write_text("half")
    os.utime(old, (1, 1))
    write(atomic_files(tmp_path), name="b")
    assert names(tmp_path) == [".writing-2-b", "b"]


@pytest.mark.parametrize(("made", "left"), [(whole_folder, ".net.v1.12-0af3"), (whole_file, ".net.12-0af3.v1")])
def test_what_a_killed_writer_left_beside_is_removed_a_day_later(tmp_path, made, left):
    kept = [".net.v1.mine", ".net.v1.12-later", ".other.v1.12-0af3", "net.12-0af3.v1", f"{left}.bak"]
    for name in (left, *kept):
        (tmp_path / name).mkdir() if made is whole_folder else (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    young = left.replace("12-", "13-")
    (tmp_path / young).touch()
    with made(tmp_path / "net.v1") as temporary:
        temporary.touch() if made is whole_file else (temporary / "a").touch()
    assert names(tmp_path) == sorted({*kept, young, "net.v1"})
