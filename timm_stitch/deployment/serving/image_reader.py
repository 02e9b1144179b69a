"""Reads image files of strangers in processes of their own, which have limits on memory and are ended at a deadline.

Two lanes: what is quickly read is never behind what takes long. A file whose header promises much work, or that takes
longer than a second, moves to the second lane, which has few processes. Small plain files (`plain_images`), for
which a process would cost more than their decoding, are decoded here, by threads that read nothing else.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from ...data import decoding
from .decoder import Decoder, TooMuchWorkError, TooSlowError
from .engine import OverloadError
from .plain_images import FORMATS as PLAIN_FORMATS
from .plain_images import plain_work
from .signatures import check_signatures

_PLAIN_WORK = 1 << 20  # pixels, times the scans of a JPEG, of a request of plain files: some 20 ms
_QUICK_WORK = 4_000_000  # pixels, times the scans of a JPEG, of a request in the first lane
_QUICK_S, _SLOW_S = 1.0, 10.0  # seconds of a request in each lane
_START_S = 10.0  # seconds that the processes may take to start
_LATE = "it could not be read in time: try again later, or allow more time."


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
