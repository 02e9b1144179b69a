"""Files and folders that appear whole or not at all: written beside their place, then renamed.

Imports the standard library only.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PathLike = str | os.PathLike[str]


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

    Other files there are left alone; a folder that had to be made is removed again if nothing came of it.

    Args:
        folder: where the files are to be; made if it is not there.
    """
    folder = Path(folder)
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".writing-{_mark()}"
    beside.mkdir()
    try:
        yield beside
        for file in sorted(beside.iterdir()):
            file.replace(folder / file.name)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
        raise
    beside.rmdir()


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
