"""Tokenizes the texts of requests in a bounded pool of threads, each text within bounds, and none after its deadline.

The tokenizers are compiled code that takes time in proportion to a text's characters, and lets other threads run. So a
bound on characters bounds the time, and no process of its own is needed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .engine import OverloadError
from .texts import ServedTexts, TextBatch

_LATE = "it could not be tokenized in time: try again later, or allow more time."


class TextReader:
    """Tokenizes texts.

    Args:
        most_characters: the most characters of a text.
        most_waiting: the largest number of texts that may wait to be tokenized.
        threads: the number of threads.
    """

    def __init__(self, most_characters: int, most_waiting: int, threads: int) -> None:
        self.most_characters, self.most_waiting = most_characters, most_waiting
        self._waiting = 0
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tokenizer")

    def read_soon(
        self, texts: Sequence[str], network: ServedTexts, truncate: bool, deadline: float
    ) -> Future[TextBatch]:
        """Tokenize texts.

        Args:
            texts: the texts.
            network: the network that takes them.
            truncate: whether to leave out what is beyond its most tokens.
            deadline: the time after which nobody needs them, by `time.monotonic`.

        Returns:
            A future of the batch. It raises `ValueError` for a text that the network does not take, and
            `OverloadError` if it is not ready by the deadline.

        Raises:
            ValueError: if a text is empty or too long, or is no text.
            OverloadError: if too many texts wait, or the reader is closed.
        """
        for text in texts:
            self._check(text)
        with self._lock:
            if self._waiting + len(texts) > self.most_waiting:
                raise OverloadError(f"{self._waiting} texts wait to be tokenized: try again later.")
            self._waiting += len(texts)

        def read() -> TextBatch:
            tokens = []
            for text in texts:
                if time.monotonic() > deadline:
                    raise OverloadError(_LATE)
                tokens.append(network.endpoint.tokenize(text, truncate))
            return network.make_batch(tokens)

        try:
            batch = self._threads.submit(read)
        except RuntimeError:  # closed
            self._release(len(texts))
            raise OverloadError("the server is shutting down: ask another one.") from None
        batch.add_done_callback(lambda _: self._release(len(texts)))
        return batch

    def _check(self, text: str) -> None:
        """Refuse a text before any work is done for it.

        Raises:
            ValueError: saying why.
        """
        if len(text) > self.most_characters:
            raise ValueError(f"a text has {len(text):,} characters: at most {self.most_characters:,} are accepted.")
        if not text.strip():
            raise ValueError("a text is empty: give one with words.")
        if "\0" in text:
            raise ValueError("a text has the character NUL: give text, not binary data.")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                "a text has half of a surrogate pair, which is no character: give valid Unicode."
            ) from None

    def _release(self, count: int) -> None:
        with self._lock:
            self._waiting -= count

    def close(self) -> None:
        """End the threads after what they read now; what waits is cancelled."""
        self._threads.shutdown(wait=False, cancel_futures=True)
