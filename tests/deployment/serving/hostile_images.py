"""Small files that are much work: scans of a progressive JPEG, and 16-bit pixels that compress well."""

import struct
import zlib


def progressive_jpeg(scans, side=7000):
    """Write a grey JPEG whose every scan visits each of its blocks, in 45 bytes."""
    blocks = (-(-side // 8)) ** 2

    def segment(marker, data):
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    file = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64)
    file += segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    file += segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0") + segment(
        0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"
    )
    bits, left = "", blocks
    while left > 0:  # runs of empty blocks
        run = min(left, 32767) if left >= 16384 else 32767
        bits += "0" + format(run - 16384, "014b")
        left -= run
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    first = segment(0xDA, b"\1\1\0\0\0\0") + b"\0" * (-(-blocks // 8))
    return file + first + (segment(0xDA, b"\1\1\0\1\x3f\0") + data) * scans + b"\xff\xd9"


def deep_png(width=7000, height=7000):
    """Write a black grey PNG of 16 bits."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes((2 * width + 1) * height), 1)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
