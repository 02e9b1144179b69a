"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import os
import re
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


def require_name(path: PathLike) -> Path:
    """Return a path, unless it is empty, which as a path would be the working folder.

    Raises:
        ValueError: if it is empty.
    """
    if not os.fspath(path):
        raise ValueError("a file or folder must have a name, got '': give '.' for the working folder.")
    return Path(path)


@contextmanager
def whole_file(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, which is renamed to `path` on success and removed on failure.

    The file is flushed to the disk before it is renamed. Any number of processes may write at once; the last one wins.

    Args:
        path: the final path; its folder is created if it does not exist.
    """
    path = require_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent, f".{path.stem}.", path.suffix)
    temporary = path.with_name(f".{path.stem}.{_unique_suffix()}{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: PathLike) -> Iterator[Path]:
    """Yield a temporary folder to write files into, which are moved into `folder` one by one on success.

    Other files there are left alone; a folder that was created here is removed again on failure. Any number of writers
    may write at once: the files of one are moved together, and the last one wins.

    Args:
        folder: the final folder; created if it does not exist.
    """
    folder = require_name(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder, _WRITING)
    temporary = folder / f"{_WRITING}{_unique_suffix()}"
    temporary.mkdir()
    try:
        yield temporary
        with exclusive_lock(folder):
            for file in sorted(temporary.iterdir()):
                file.replace(folder / file.name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # another writer's files are there
                folder.rmdir()
        raise
    temporary.rmdir()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keep other writers of this machine from moving files into a folder, if the system can; waits for a minute."""
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
    """Lock a folder, without any change in it.

    Returns:
        A descriptor that holds the lock until `os.close`, or until the process dies; the error if another process holds
        it; None if there is no such folder, or the system or the file system has no such locks.
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


def read_consistently(files: Iterable[Path], read: Callable[[], T]) -> T:
    """Read several files that belong together, again if another process wrote them meanwhile.

    Args:
        files: the files, in one folder.
        read: a function that reads them; called until they are the same before and after, and at last under a lock.
    """
    files = list(files)
    for _ in range(_TRIES):
        with exclusive_lock(files[0].parent):  # no writer is half way
            before = _stamps(files)
        try:
            content = read()
        except Exception:
            if _stamps(files) == before:
                raise
            continue
        if _stamps(files) == before:
            return content
    with exclusive_lock(files[0].parent):
        return read()


def _stamps(files: Iterable[Path]) -> list[tuple[int, int] | None]:
    stamps: list[tuple[int, int] | None] = []
    for file in files:
        try:
            status = file.stat()
            stamps.append((status.st_ino, status.st_mtime_ns))
        except OSError:
            stamps.append(None)
    return stamps


def _sweep(folder: Path, start: str, end: str = "") -> None:
    """Remove what killed writers left in a folder more than a day ago: `start`, a unique suffix, `end`."""
    pattern = re.compile(rf"{re.escape(start)}[0-9]+-[0-9a-f]+{re.escape(end)}")
    for stray in os.scandir(folder):
        with suppress(OSError):
            if pattern.fullmatch(stray.name) and time.time() - stray.stat().st_mtime > _DAY:
                shutil.rmtree(stray) if stray.is_dir(follow_symlinks=False) else os.unlink(stray)


@contextmanager
def whole_folder(folder: PathLike) -> Iterator[Path]:
    """Yield a temporary folder to write into, which is renamed to `folder` on success and removed on failure.

    Raises:
        FileExistsError: if `folder` exists and is not an empty folder.
    """
    folder = require_name(folder).resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{str(folder)!r} is not empty: give a new or empty folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder.parent, f".{folder.name}.")
    temporary = folder.with_name(f".{folder.name}.{_unique_suffix()}")
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()  # fails if a file has appeared in it meanwhile
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unique_suffix() -> str:
    """Make a suffix that no other writer uses."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"
