"""A process that decodes image files of strangers, within limits on memory and time."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress

from PIL import Image

from ...data import decoding
from .signatures import FORMATS

_BYTES_PER_PIXEL = 24  # of memory: WebP's decoder takes the most
_BASE_BYTES = 256 << 20
# Without the current folder, whose files might shadow a module.
_PROGRAM = f"""
import runpy, sys
sys.path[:] = filter(None, sys.path)
runpy.run_path({decoding.__file__!r}, run_name="__main__")
"""


class TooMuchWorkError(Exception):
    """A file whose decoding is too much work for a lane."""


class TooSlowError(Exception):
    """A file that was not decoded in its time."""


class Decoder:
    """A process that decodes one file after another; it is replaced when it takes too long or dies.

    Args:
        most_pixels: the largest number of pixels of an image, which its memory follows.
    """

    def __init__(self, most_pixels: int) -> None:
        self.most_bytes = _BASE_BYTES + _BYTES_PER_PIXEL * most_pixels
        self._closed = False
        self._start()

    def _start(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, str(self.most_bytes)],
                stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def wait_until_ready(self, deadline: float) -> None:
        """Wait until the process answers, or a deadline passes; it decodes nothing meanwhile."""
        with suppress(ValueError, TooSlowError):  # that an empty file is no image; it was replaced
            self.decode(b"", "RGB", 1, 1, deadline)

    def close(self) -> None:
        """End the process for good."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._channel.close()
        self._process.wait()

    def decode(
        self,
        data: bytes,
        mode: str,
        most_pixels: int,
        most_work: int,
        deadline: float,
        resize: decoding.Resize | None = None,
    ) -> tuple[Image.Image, int]:
        """Decode a file.

        Args:
            data: the file.
            mode: Pillow's mode of the image.
            most_pixels: the largest number of pixels.
            most_work: the largest number of pixels times scans.
            deadline: the end of its time, by `time.monotonic`.
            resize: a step that is taken in the process if it makes the image smaller, so that less must be copied.

        Returns:
            The image, and the work of its decoding in pixels times scans.

        Raises:
            ValueError: if it is not a readable image within the bounds.
            TooMuchWorkError: if it is more work than `most_work`.
            TooSlowError: if the deadline passes.
        """
        request = {"mode": mode, "formats": FORMATS, "pixels": most_pixels, "work": most_work, "bytes": len(data)}
        request["resize"] = resize
        try:
            self._send(json.dumps(request).encode() + b"\n", deadline)
            self._send(data, deadline)
            (length,) = struct.unpack("<I", self._receive(4, deadline))
            answer = json.loads(self._receive(length, deadline))
            width, height = answer.get("size", (0, 0))
            if not 0 <= width * height <= most_pixels:
                raise ConnectionError("no answer of our program")
            pixels = self._receive(width * height * len(Image.new(mode, (1, 1)).getbands()), deadline)
        except TimeoutError:
            self._replace()
            raise TooSlowError from None
        except OSError:  # its memory ran out where Pillow does not look, or a fault of a decoder
            self._replace()
            raise ValueError("the image cannot be decoded within the memory of one image.") from None
        if "refused" in answer:
            raise ValueError(answer["refused"])
        if not width:
            raise TooMuchWorkError
        return Image.frombytes(mode, (width, height), pixels), answer["work"]

    def _replace(self) -> None:
        self._stop()
        if not self._closed:
            self._start()

    def _send(self, data: bytes, deadline: float) -> None:
        self._channel.settimeout(_left(deadline))
        self._channel.sendall(data)

    def _receive(self, count: int, deadline: float) -> bytearray:
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            self._channel.settimeout(_left(deadline))
            received = self._channel.recv_into(view[at:])
            if not received:
                raise ConnectionError("the process has ended")
            at += received
        return data


def _left(deadline: float) -> float:
    """Compute the seconds until a deadline.

    Raises:
        TimeoutError: if it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
