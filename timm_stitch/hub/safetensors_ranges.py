"""Read some tensors of a safetensors file without the rest of it: by HTTP ranges, or from a local file.

The file holds eight bytes with the length of a JSON header, the header (dtype, shape and offsets of each tensor), and
the tensors' bytes.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from huggingface_hub.utils import get_session, hf_raise_for_status
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..files import PathLike
from .errors import unreadable

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
OVERHEAD = 0.045  # bytes that may be read in addition, header included, to save requests; a share of those needed
ATTEMPTS, WAIT = 4, 1.0  # attempts per range; seconds before the second attempt, doubled after each
_MOST_HEADER = 8 << 20


class NoRangesError(Exception):
    """The server sends only whole files."""


class ChangedError(OSError):
    """The file was replaced while it was read."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} was replaced while it was read, so nothing of it was kept: load it again.")


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its dtype, shape, and bytes `start:stop` counted from the file's beginning."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_header(raw: bytes, begin: int, size: int | None) -> dict[str, Entry]:
    """Read the header of a safetensors file, whose tensors must fill the file, each byte once.

    Args:
        raw: the JSON.
        begin: the position in the file of the tensors' first byte.
        size: the length of the file, if known.

    Raises:
        ValueError: if it is not a header, or tensors overlap, leave gaps, or lie outside the file.
    """
    try:
        data = json.loads(raw.decode())
        data.pop("__metadata__", None)
        entries = {}
        for name, entry in data.items():
            dtype, shape, (start, stop) = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"]
            if any(type(number) is not int or number < 0 for number in (start, stop, *shape)):
                raise ValueError(f"tensor {name!r:.80} has offsets or a shape that are no numbers of bytes")
            if stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"tensor {name!r:.80} does not lie in the file as its shape says")
            entries[name] = Entry(dtype, shape, begin + start, begin + stop)
        end = begin
        for name, tensor in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
            if tensor.start != end:
                problem = "overlaps" if tensor.start < end else "leaves a gap after"
                raise ValueError(f"tensor {name!r:.80} {problem} another")
            end = tensor.stop
        if size is not None and end != size:
            raise ValueError(f"its tensors end at byte {end:,}, the file at {size:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"model.safetensors has no readable header ({error!s:.120}): it is truncated or not a safetensors file."
        ) from None
    return entries


def merge_ranges(entries: Mapping[str, Entry], spent: int = 0) -> list[tuple[int, int]]:
    """List byte ranges that cover tensors; join neighbours while the gaps, and `spent`, stay within the overhead."""
    spans = sorted((e.start, e.stop) for e in entries.values() if e.stop > e.start)
    spare = int(OVERHEAD * sum(stop - start for start, stop in spans)) - spent
    allowed = set()
    for gap, i in sorted((b[0] - a[1], i) for i, (a, b) in enumerate(pairwise(spans))):
        if gap == 0 or gap <= spare:
            spare -= gap
            allowed.add(i)
    ranges: list[tuple[int, int]] = []
    for i, (start, stop) in enumerate(spans):
        if i and i - 1 in allowed:
            ranges[-1] = ranges[-1][0], stop
        else:
            ranges.append((start, stop))
    return ranges


class RemoteFile:
    """A file on a server that is read by ranges.

    Args:
        url: the address; it may be signed, and errors never show it.
        headers: the headers of every request.
        name: the name of the file for people.
        size: the length in bytes, if known.

    Attributes:
        read: the number of bytes received so far.
    """

    def __init__(self, url: str, headers: Mapping[str, str], name: str, size: int | None) -> None:
        self.url, self.headers, self.name, self.size = url, {**headers, "Accept-Encoding": "identity"}, name, size
        self.read = 0
        self.etag: str | None = None

    def header(self) -> dict[str, Entry]:
        """Read the header of the file.

        Raises:
            NoRangesError: if the server sends only whole files.
            ChangedError: if the file is replaced meanwhile.
            OSError: if it cannot be reached.
            ValueError: if the file is not a safetensors file.
        """
        length = int.from_bytes(self.fetch(0, 8), "little")
        if not 2 <= length <= min(_MOST_HEADER, (self.size or _MOST_HEADER + 8) - 8):
            raise ValueError(
                f"model.safetensors has no readable header (of {length} bytes): it is truncated or another file."
            )
        return parse_header(self.fetch(8, 8 + length), 8 + length, self.size)

    def tensors(self, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
        """Read tensors, each into memory of its own; other bytes in the ranges are dropped at once.

        Raises:
            ValueError: if two of them overlap, so that some bytes would be left as they lay in memory.
        """
        spans = sorted((e.start, e.stop, name) for name, e in entries.items() if e.stop > e.start)
        for (_, stop, name), (start, _, other) in pairwise(spans):
            if start < stop:
                raise ValueError(f"model.safetensors has tensors that overlap: {name!r:.80} and {other!r:.80}.")
        tensors = {name: torch.empty(e.shape, dtype=e.dtype) for name, e in entries.items()}
        views = [(start, stop, tensors[name].reshape(-1).view(torch.uint8).numpy().data) for start, stop, name in spans]
        for start, stop in merge_ranges(entries, self.read):
            inside = [view for view in views if start <= view[0] and view[1] <= stop]
            self._stream(start, stop, partial(_scatter, views=inside))
        return tensors

    def fetch(self, start: int, stop: int) -> bytes:
        """Read the bytes `start:stop`."""
        data = bytearray(stop - start)

        def put(at: int, chunk: bytes) -> None:
            data[at - start : at - start + len(chunk)] = chunk

        self._stream(start, stop, put)
        return bytes(data)

    def _stream(self, start: int, stop: int, put: Callable[[int, bytes], None]) -> None:
        """Read a range; resume after a broken connection, and give up after several attempts without any bytes."""
        at, wait, failed = start, WAIT, 0
        while at < stop:
            before = at
            try:
                for chunk in self._chunks(at, stop):
                    chunk = chunk[: stop - at]
                    put(at, chunk)
                    at += len(chunk)
                    self.read += len(chunk)
                    if at == stop:
                        return  # ignore whatever else the server would send
                if at == before:
                    raise ConnectionError(f"the connection ended after {at - start:,} of {stop - start:,} bytes")
                failed, wait = 0, WAIT  # some bytes came, though not all
            except (NoRangesError, ChangedError):
                raise
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                failed = 1 if at > before else failed + 1
                wait = WAIT if at > before else wait
                if failed == ATTEMPTS or (status is not None and status not in (408, 429, 500, 502, 503, 504)):
                    raise
                time.sleep(wait)
                wait *= 2

    def _chunks(self, start: int, stop: int) -> Iterator[bytes]:
        with _get(self.url, {**self.headers, "Range": f"bytes={start}-{stop - 1}"}) as response:
            if response.status_code == 416:
                raise ChangedError(self.name)
            if response.status_code in (200, 501):  # 501: "not implemented"
                raise NoRangesError
            if response.status_code >= 400:
                if hasattr(response, "read"):
                    response.read()
                hf_raise_for_status(response)
            sent = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", str(response.headers.get("Content-Range", "")).strip())
            if sent is None or int(sent[1]) != start:
                raise NoRangesError
            self._check_unchanged(None if sent[3] == "*" else int(sent[3]), response.headers.get("ETag"))
            yield from response.iter_bytes() if hasattr(response, "iter_bytes") else response.iter_content(1 << 20)

    def _check_unchanged(self, size: int | None, etag: str | None) -> None:
        """Refuse another version of the file, with another length or ETag."""
        if (size and self.size and size != self.size) or (etag and self.etag and etag != self.etag):
            raise ChangedError(self.name)
        self.size, self.etag = self.size or size, self.etag or etag


@contextmanager
def _get(url: str, headers: Mapping[str, str]) -> Iterator[Any]:
    """Open a streamed GET by huggingface_hub's own session: httpx since its release 1, requests before."""
    session: Any = get_session()
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as response:
            yield response
    else:
        with session.get(url, headers=headers, timeout=30, stream=True) as response:
            yield response


def _scatter(at: int, chunk: bytes, views: Iterable[tuple[int, int, memoryview]]) -> None:
    """Copy the bytes of a chunk that begins at `at` into the tensors they belong to."""
    end = at + len(chunk)
    for start, stop, memory in views:
        low, high = max(at, start), min(end, stop)
        if low < high:
            memory[low - start : high - start] = chunk[low - at : high - at]


def read_local(path: PathLike, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """Read tensors of a local safetensors file, by default all.

    Raises:
        ValueError: if it is not a safetensors file, is truncated, or lacks one of the tensors.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in (file.keys() if names is None else names)}
    except SafetensorError as error:
        raise unreadable(path, error) from error
