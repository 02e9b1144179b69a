"""Checkpoints of a training run: whole files or none, the last few and the best.

A checkpoint is one file, written under a temporary name, flushed to the disk and renamed; `run_state` has its content.
After what torch writes stands a line with the length and the sum of these bytes, which is compared before anything is
loaded. torch reads the file with that line too.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..files import PathLike, whole_file

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

FORMAT = 2
_CHUNK = 1 << 22
_ZIP_END = b"PK\x05\x06", 22  # the signature and the length of the last record of what torch writes

_logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints in one folder.

    Args:
        folder: the folder of the checkpoints; created if it does not exist.
        keep: the number of the latest checkpoints to keep.
    """

    def __init__(self, folder: PathLike, keep: int = 2) -> None:
        self.folder, self.keep = Path(folder), keep
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def all(self) -> list[Path]:
        """The files of all steps, earliest first."""
        return sorted(self.folder.glob("step-*.pt"))

    @property
    def last(self) -> Path | None:
        """The latest checkpoint, if there is one."""
        return next(reversed(self.all), None)

    def save(self, step: int, state: Mapping[str, object], best: bool = False) -> Path:
        """Write a checkpoint, then remove the oldest ones.

        Args:
            step: the number of finished steps.
            state: plain values and tensors.
            best: whether to keep it as `best.pt` too.

        Raises:
            OSError: if it cannot be written; the earlier ones are kept, and no part of it stays.
        """
        path = self.folder / f"step-{step:09d}.pt"
        if not self.folder.is_dir():
            raise OSError(f"the folder {str(self.folder)!r} has vanished: no checkpoint of step {step} was written.")
        try:
            with whole_file(path) as temporary, _SummedFile(temporary) as file:  # given a path, torch hides disk errors
                torch.save({"format": FORMAT, "step": step, **state}, file)
                file.write(_sum_line(file.size, file.crc))
            if best:
                with whole_file(self.folder / "best.pt") as temporary:
                    _link(path, temporary)
            _flush(self.folder)
        except (OSError, RuntimeError) as error:  # torch's writer turns disk errors into RuntimeErrors
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            kept = f"the last good checkpoint is {str(self.last)!r}" if self.last else "there is no earlier checkpoint"
            raise OSError(
                f"could not write the checkpoint of step {step} to {str(self.folder)!r} "
                f"({str(reason).splitlines()[0]:.160}): {kept}."
            ) from error
        for old in self.all[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load(self, path: PathLike | None = None) -> dict[str, Any] | None:
        """Read a checkpoint, by default the latest; None if there is none.

        A checkpoint of an earlier version, without a sum, is read with a warning.

        Raises:
            ValueError: if the file is damaged, or is not a checkpoint of this format.
        """
        file = Path(path) if path is not None else self.last
        if file is None:
            return None
        intact = _is_intact(file)
        if intact is False:
            raise self._damaged(file, "its bytes are not those that were written")
        if intact is None:
            _logger.warning("%r has no sum over its bytes, so damage in it would not be noticed.", str(file))
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # whatever stands in a file without a sum
            reason = " ".join(str(error).split()) or type(error).__name__
            raise self._damaged(file, f"{reason:.120}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise ValueError(f"{str(file)!r} is not a checkpoint of format {FORMAT}: train into another output.")
        return state

    def _damaged(self, file: Path, reason: str) -> ValueError:
        """Make the error of a damaged checkpoint, which names the one before it that can be used."""
        earlier = (path for path in reversed(self.all) if path < file and _is_intact(path) is not False)
        before = next(earlier, None)
        advice = f"continue from {str(before)!r}" if before else "begin the run again, since no earlier one is intact"
        return ValueError(f"the checkpoint {str(file)!r} cannot be read ({reason}): remove it to {advice}.")

    def clean(self) -> None:
        """Remove the temporary files of killed processes."""
        for pattern in (".step-*", ".best.*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)


def check_same(kept: Mapping[str, object], now: Mapping[str, object], folder: Path) -> None:
    """Refuse to continue a run with other values.

    Raises:
        ValueError: naming what differs.
    """
    names = [name for name in dict.fromkeys([*kept, *now]) if kept.get(name) != now.get(name)]
    if names:
        changes = ", ".join(f"{name}={now.get(name)!r} (was {kept.get(name)!r})" for name in names)
        more = ", or resume='extend' for more epochs" if names == ["epochs"] else ""
        raise ValueError(
            f"the run in {str(folder)!r} was started with other values: {changes}. Give those, or another output{more}."
        )


def check_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the name of the first tensor with a number that is not finite, if there is one."""
    return next((k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())), None)


class _SummedFile(io.BufferedWriter):
    """A file that sums up the bytes written to it.

    Args:
        path: the path of the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.size, self.crc = 0, 0

    def write(self, data: ReadableBuffer, /) -> int:
        self.crc = zlib.crc32(data, self.crc)
        self.size += memoryview(data).nbytes
        return super().write(data)


def _sum_line(size: int, crc: int) -> bytes:
    """Format the last line of a checkpoint."""
    return f"\ntimm-stitch size={size:016d} crc32={crc:08x}\n".encode()


def _is_intact(path: Path) -> bool | None:
    """Whether a checkpoint has the bytes that were written; None if it is whole but has no sum to compare with."""
    size, length = path.stat().st_size, len(_sum_line(0, 0))
    with path.open("rb") as file:
        signature, end = _ZIP_END
        file.seek(max(size - end, 0))
        if file.read(len(signature)) == signature:
            return None
        file.seek(0)
        left, crc = size - length, 0
        while left > 0 and (chunk := file.read(min(left, _CHUNK))):
            crc = zlib.crc32(chunk, crc)
            left -= len(chunk)
        return size > length and file.read() == _sum_line(size - length, crc)


def _link(path: Path, other: Path) -> None:
    """Give a file a second name, or copy it if the file system has no links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)


def _flush(folder: Path) -> None:
    """Flush the renaming itself, if the system can."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
