"""Folders of images as readers walk them: links that lead back, folders that are no class, files read twice."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def check_links(root: str | os.PathLike[str]) -> None:
    """Refuse a link to a folder that it lies in, which readers would follow until the system stops them.

    Raises:
        ValueError: naming the link.
    """
    top: tuple[str, ...] = (os.path.realpath(root),)
    folders = [(os.fspath(root), top)]  # each with its real path and those of the folders above
    while folders:
        folder, above = folders.pop()
        with suppress(OSError):  # one that cannot be listed has no images for readers either
            for entry in os.scandir(folder):
                if not entry.is_dir():
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real in above:
                    raise ValueError(
                        f"{entry.path!r} links to {real!r}, the folder that it lies in, so its images would be read "
                        "again and again: remove the link."
                    )
                folders.append((entry.path, (*above, real)))


def digest_files(files: Iterable[str]) -> str:
    """Compute a digest of which files these are, equal for links to the same folders."""
    real: dict[str, str] = {}
    digest = hashlib.blake2b(digest_size=8)
    for folder, name in sorted(_real_place(file, real) for file in files):
        digest.update(f"{folder}/{name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def find_folder_problems(root: Path, files: Iterable[str]) -> list[str]:
    """Describe the folders of a split that are not the classes that they look like, a sentence each.

    Args:
        root: the folder of class folders.
        files: the image files in it that its reader reads.
    """
    real: dict[str, str] = {}
    files = list(files)
    problems = []
    parts = [os.path.relpath(file, root).split(os.sep) for file in files]
    outside = sum(len(part) == 1 for part in parts)
    if outside:
        problems.append(f"{outside} images lie in no class folder: move them into one.")
    nested = Counter(os.path.join(*part[:-1]) for part in parts if len(part) > 2)
    if nested:
        folder = next(iter(nested))
        problems.append(
            f"{nested.total()} images lie in folders within class folders (e.g. {folder!r}), and their class is the "
            f"innermost, {os.path.basename(folder)!r}: move them up."
        )
    classes = {part[0] for part in parts if len(part) > 1}
    empty = sorted(e.name for e in os.scandir(root) if e.is_dir() and e.name not in classes and e.name[0] != ".")
    if empty:
        names = ", ".join(map(repr, empty[:6])) + (f" and {len(empty) - 6} more" if len(empty) > 6 else "")
        problems.append(f"no class, for want of images: {names}.")
    again = len(files) - len({_real_place(file, real) for file in files})
    if again:
        problems.append(f"{again} images are read more than once, through links between the folders.")
    return problems


def _real_place(file: str, real: dict[str, str]) -> tuple[str, str]:
    """Find the real folder of a file, by those that are known, and its name."""
    folder, name = os.path.split(file)
    if folder not in real:
        real[folder] = os.path.realpath(folder)
    return real[folder], name
