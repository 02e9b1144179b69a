"""Reads image files of strangers in processes of their own, which have limits on memory and are ended at a deadline.

Two lanes: what is quickly read is never behind what takes long. A file whose header promises much work, or that takes
longer than a second, moves to the second lane, which has few processes. Small plain files (`plain_images`), for
which a process would cost more than their decoding, are decoded here, by threads that read nothing else.
"""

from __future__ import annotations

import json
import queue
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from ...data import decoding
from .engine import OverloadError
from .plain_images import FORMATS as PLAIN_FORMATS
from .plain_images import plain_work
from .signatures import FORMATS, check_signatures

_PLAIN_WORK = 1 << 20  # pixels, times the scans of a JPEG, of a request of plain files: some 20 ms
_QUICK_WORK = 4_000_000  # pixels, times the scans of a JPEG, of a request in the first lane
_QUICK_S, _SLOW_S = 1.0, 10.0  # seconds of a request in each lane
_BYTES_PER_PIXEL = 24  # of memory: WebP's decoder takes the most
_BASE_BYTES = 256 << 20
_START_S = 10.0  # seconds that the processes may take to start
_LATE = "it could not be read in time: try again later, or allow more time."
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


class ImageReader:
    """Reads the images of requests, quick ones before slow ones.

    Args:
        most_pixels: the largest number of pixels of an image.
        most_waiting: the largest number of images that may wait to be read.
        processes: the number of processes of the first lane.
    """

    def __init__(self, most_pixels: int, most_waiting: int, processes: int) -> None:
        self.most_pixels, self.most_waiting = most_pixels, most_waiting
        self._waiting = threading.BoundedSemaphore(most_waiting)
        Image.preinit()  # not by several threads at once
        self._plain = _Threads("small images", processes)
        quick_pixels = min(most_pixels, _QUICK_WORK)
        self._quick = _Lane("images", processes, quick_pixels, quick_pixels, _QUICK_S)
        self._slow = _Lane(
            "large images", max(1, processes // 4), most_pixels, most_pixels * decoding.MOST_SCANS, _SLOW_S
        )

    def wait_until_ready(self) -> None:
        """Wait until each process has started, so that the first image is not late."""
        deadline = time.monotonic() + _START_S
        for decoder in (*self._quick.decoders, *self._slow.decoders):
            decoder.wait_until_ready(deadline)

    def close(self) -> None:
        """End the processes; what waits to be read is cancelled."""
        self._plain.close()
        self._quick.close()
        self._slow.close()

    def read_soon(
        self,
        files: Sequence[bytes],
        mode: str,
        transform: Callable[[Image.Image], Tensor],
        deadline: float,
        resize: decoding.Resize | None = None,
    ) -> Future[Tensor]:
        """Read image files.

        Args:
            files: the bytes of the files.
            mode: Pillow's mode of the images.
            transform: the preparation of one image for the network, shape (C, H, W).
            deadline: the time after which nobody needs them, by `time.monotonic`.
            resize: the first step of the preparation, for `Decoder.decode`.

        Returns:
            A future of the network's input, shape (N, C, H, W). It raises `ValueError` for an unreadable image, and
            `OverloadError` if they are not read by their deadline.

        Raises:
            ValueError: if a file does not begin as an image.
            OverloadError: if too many images wait to be read.
        """
        check_signatures(files)
        acquired = [self._waiting.acquire(blocking=False) for _ in files].count(True)
        if acquired < len(files):
            self._release(acquired)
            raise OverloadError(f"{self.most_waiting} images wait to be read: try again later.")
        images: Future[Tensor] = Future()
        images.add_done_callback(lambda _: self._release(acquired))
        prepared: list[Tensor] = []

        def read_plain() -> None:
            if images.cancelled():  # its client has gone
                return
            try:
                if self._are_plain(files):
                    for data in files:
                        if time.monotonic() > deadline:
                            raise OverloadError(_LATE)
                        prepared.append(transform(decoding.open_image(BytesIO(data), mode, "sent", PLAIN_FORMATS)))
                    images.set_result(torch.stack(prepared))
                    return
            except BaseException as error:
                images.set_exception(error)
                return
            self._quick.submit(partial(read, self._quick), images)

        def read(lane: _Lane) -> None:
            if images.cancelled():  # its client has gone
                return
            try:
                with lane.decoder() as decoder:
                    ends, work = min(deadline, time.monotonic() + lane.seconds), lane.most_work
                    for data in files[len(prepared) :]:
                        if time.monotonic() > deadline:
                            raise TooSlowError
                        image, used = decoder.decode(data, mode, self.most_pixels, work, ends, resize)
                        prepared.append(transform(image))
                        work -= used if lane is self._quick else 0
                images.set_result(torch.stack(prepared))
            except (TooMuchWorkError, TooSlowError):
                if lane is self._quick and time.monotonic() < deadline:
                    self._slow.submit(partial(read, self._slow), images)
                else:
                    images.set_exception(OverloadError(_LATE))
            except BaseException as error:
                images.set_exception(error)

        self._plain.submit(read_plain, images)
        return images

    def _are_plain(self, files: Sequence[bytes]) -> bool:
        """Whether files are so little work, known from their headers, that they need no limits."""
        left = min(_PLAIN_WORK, self.most_pixels)
        for data in files:
            work = plain_work(data)
            if work is None or work > left:
                return False
            left -= work
        return True

    def _release(self, count: int) -> None:
        for _ in range(count):
            self._waiting.release()


class _Threads:
    """Threads that read images."""

    def __init__(self, name: str, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)

    def submit(self, read: Callable[[], None], images: Future[Tensor]) -> None:
        """Read in one of the threads; if the server ends before that, the images are cancelled."""
        try:
            job = self._threads.submit(read)
        except RuntimeError:  # closed
            images.set_exception(OverloadError("the server is shutting down: ask another one."))
            return
        job.add_done_callback(lambda job: job.cancelled() and images.cancel())

    def close(self) -> None:
        """End them after what they read now."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Lane(_Threads):
    """Processes that decode, each used by one thread at a time."""

    def __init__(self, name: str, processes: int, most_pixels: int, most_work: int, seconds: float) -> None:
        super().__init__(name, processes)
        self.most_work, self.seconds = most_work, seconds
        self._free: queue.Queue[Decoder] = queue.Queue()  # one that was replaced rests longest, while it starts
        self.decoders = [Decoder(most_pixels) for _ in range(processes)]
        for decoder in self.decoders:
            self._free.put(decoder)

    @contextmanager
    def decoder(self) -> Iterator[Decoder]:
        """Borrow a process."""
        decoder = self._free.get()
        try:
            yield decoder
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes."""
        super().close()
        for decoder in self.decoders:
            decoder.close()


def _left(deadline: float) -> float:
    """Compute the seconds until a deadline.

    Raises:
        TimeoutError: if it has passed.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
