"""An index kept up to date in the background, for those who serve it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from mc_core.errors import McError
from mc_text_code.codesearch.embedding import CodeEncoder
from mc_text_code.codesearch.query import CodeIndex

_log = logging.getLogger("mc_core")
_SHARE = 20  # of the time between two looks, at most one in so many goes into looking
_BATCH = 32
_EMBED_SECONDS = 10.0


class Keeper(threading.Thread):
    """Looks for changes every so often and embeds what is new, until it is stopped.

    Args:
        index: its own, not the one that answers queries: embedding holds it for long.
        interval: seconds between two looks; more where a look takes long.
    """

    def __init__(self, index: CodeIndex, interval: float) -> None:
        super().__init__(name="code-index-keeper", daemon=True)
        self.index = index
        self.interval = interval
        self.looked = threading.Event()
        self._ending = threading.Event()
        self._said = ""

    def run(self) -> None:
        """Look and embed in turn."""
        while not self._ending.is_set():
            start = time.perf_counter()
            waiting = self._once()
            self.looked.set()
            pause = 0.0 if waiting else max(self.interval, _SHARE * (time.perf_counter() - start))
            self._ending.wait(pause)
        self.index.close()

    def _once(self) -> bool:
        """Whether there is more to embed."""
        try:
            self.index.refresh()
            if self.index.encoder is None:
                return False
            done = self.index.embed(batch_size=_BATCH, seconds=_EMBED_SECONDS, stop=self._ending.is_set)
        except (McError, OSError) as error:
            if str(error) != self._said:
                _log.warning("%s", error)
            self._said = str(error)
            return False
        self._said = ""
        return done.coverage < 1 and not done.busy and done.encoded > 0

    def stop(self) -> None:
        """End it, after the batch it is at."""
        self._ending.set()
        self.join(timeout=60)


class OneAtATime:
    """An encoder that two threads use: few tokenizers bear being asked by both at once.

    Args:
        encoder: the encoder.
    """

    def __init__(self, encoder: CodeEncoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()

    @property
    def identity(self) -> str:
        """That of the encoder."""
        return self._encoder.identity

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        with self._lock:
            return self._encoder.encode_queries(texts)

    def encode_code(self, texts: Sequence[str]) -> np.ndarray:
        """As the encoder does."""
        with self._lock:
            return self._encoder.encode_code(texts)


def open_kept(open_index: Callable[[], CodeIndex], interval: float) -> tuple[CodeIndex, Keeper]:
    """An index that answers, and the thread, not started yet, that keeps it up to date through another one.

    Args:
        open_index: opens it, with its encoder; called twice. The encoder of the first is used by both.
        interval: seconds between two looks.
    """
    index, kept = open_index(), open_index()
    if index.encoder is not None:
        index.encoder = kept.encoder = OneAtATime(index.encoder)
    return index, Keeper(kept, interval)
