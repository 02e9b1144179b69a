"""Files and folders that appear whole or not at all: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

PathLike = str | os.PathLike[str]
T = TypeVar("T")

_WRITING = ".writing-"
_DAY = 24 * 60 * 60  # seconds
_TRIES, _PATIENCE = 3, 60.0


@contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """A path to write to, which takes its place when all went well, and else leaves no trace.

    What was written is flushed to the disk before it is renamed. Any number of processes may do this at once; the
    last one wins.

    Args:
        path: where the file is to be; its folder is made if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{_mark()}{path.suffix}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def files_in(folder: PathLike) -> Iterator[Path]:
    """A folder to write files into, which are moved into `folder` one by one when all went well.

    Other files there are left alone; a folder that had to be made is removed again if nothing came of it. Any number
    of writers may do this at once: the files of one are moved together, and the last one wins.

    Args:
        folder: where the files are to be; made if it is not there.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    beside = folder / f"{_WRITING}{_mark()}"
    beside.mkdir()
    try:
        yield beside
        with alone_in(folder):
            for file in sorted(beside.iterdir()):
                file.replace(folder / file.name)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if made:
            with suppress(OSError):  # another's files are there
                folder.rmdir()
        raise
    beside.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other writers of this machine from moving files into a folder, where the system can; waits a minute."""
    until, lock = time.monotonic() + _PATIENCE, lock_folder(folder)
    while isinstance(lock, BlockingIOError) and time.monotonic() < until:
        time.sleep(0.01)
        lock = lock_folder(folder)
    try:
        yield
    finally:
        if isinstance(lock, int):
            os.close(lock)


def lock_folder(folder: Path) -> int | BlockingIOError | None:
    """Lock a folder, which changes nothing in it.

    Returns:
        A descriptor that holds the lock until `os.close`, or until the process dies; the error where another holds it;
        None where there is no such folder, or the system or the file system has no such locks.
    """
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except BlockingIOError as error:
        os.close(handle)
        return error
    except OSError:
        os.close(handle)
        return None


def steadily(files: Iterable[Path], read: Callable[[], T]) -> T:
    """Read several files that belong together, again if somebody wrote them meanwhile.

    Args:
        files: in one folder.
        read: reads them; called until they were the same before and after, and at last while no writer may write.
    """
    files = list(files)
    for _ in range(_TRIES):
        with alone_in(files[0].parent):  # no writer is half way
            before = _stamps(files)
        try:
            found = read()
        except Exception:
            if _stamps(files) == before:
                raise
            continue
        if _stamps(files) == before:
            return found
    with alone_in(files[0].parent):
        return read()


def _stamps(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    found: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
            found.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            found.append(None)
    return found


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed, a day after."""
    for stray in folder.glob(f"{_WRITING}*"):
        with suppress(OSError):
            if time.time() - stray.stat().st_mtime > _DAY:
                shutil.rmtree(stray, ignore_errors=True)


@contextmanager
def whole_folder(folder: PathLike) -> Iterator[Path]:
    """A folder to write into, which takes its place when all went well, and else leaves no trace.

    Raises:
        FileExistsError: if there is something at that place, other than an empty folder.
    """
    folder = Path(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{str(folder)!r} holds something: this needs a folder of its own, give a new one.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}.{_mark()}")
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            folder.rmdir()  # refuses, if something has come into it meanwhile
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _mark() -> str:
    """What no other writer has in its names."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"
