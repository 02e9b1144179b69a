"""Tells plain image files, whose decoding is little work, by their headers alone, before any of it begins.

A plain file is a JPEG or a PNG of one image whose segments and chunks are among the few that say how its pixels are
coded. What Pillow interprets at length (EXIF data, texts, profiles, animations) and what codes pixels in a rarer way is
not: such files are decoded in a process with limits.
"""

from __future__ import annotations

import struct

FORMATS = ("JPEG", "PNG")
_MOST_BYTES = 4 << 20  # of a file: a million pixels without compression
_MOST_PARTS = 1000  # segments or chunks, each of which takes Pillow some microseconds
_MOST_REST = 16 << 10  # bytes that are not pixels
_MOST_ELONGATED = 10  # longer side by shorter, since resizing makes the shorter one that of the network

_JPEG_SEGMENTS = {0xC4, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE}  # tables, the restart interval, JFIF, Adobe, a comment
_JPEG_FRAMES = {0xC0, 0xC1, 0xC2}  # Huffman codes, in one scan or several
_PNG_CHUNKS = {b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"sBIT", b"tIME"}


def plain_work(data: bytes) -> int | None:
    """Compute the work of decoding a plain file, None for any other.

    Args:
        data: the file.

    Returns:
        Its pixels times its scans.

    Examples:
        >>> plain_work(b"GIF89a") is None
        True
    """
    if len(data) > _MOST_BYTES:
        return None
    try:
        size = _jpeg_size(data) if data[:2] == b"\xff\xd8" else _png_size(data)
    except (struct.error, IndexError):  # it ends early
        return None
    if size is None or not 0 < max(size) <= _MOST_ELONGATED * min(size):
        return None
    return size[0] * size[1] * max(1, data.count(b"\xff\xda") if data[:2] == b"\xff\xd8" else 1)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a plain JPEG: its segments up to the first scan."""
    position, size = 2, None
    for _ in range(_MOST_PARTS):
        marker, kind, length = struct.unpack_from(">BBH", data, position)
        if marker != 0xFF or length < 2 or position > _MOST_REST:
            return None
        if kind == 0xDA:
            return size
        if kind in _JPEG_FRAMES:
            bits, height, width, components = struct.unpack_from(">BHHB", data, position + 4)
            if size is not None or bits != 8 or components not in (1, 3):
                return None
            size = width, height
        elif kind not in _JPEG_SEGMENTS:
            return None
        position += 2 + length
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Read the size of a plain PNG: all of its chunks."""
    if data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    position, rest = 33, 0
    for _ in range(_MOST_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return width, height
        if kind != b"IDAT":
            rest += length
            if kind not in _PNG_CHUNKS or rest > _MOST_REST:
                return None
        position += 12 + length
    return None
