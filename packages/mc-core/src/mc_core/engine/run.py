"""The run folder: what stands in it, who may write to it, and what is shown of it while it grows."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from mc_core.errors import ConfigError, DataError
from mc_core.files import write_json

_log = logging.getLogger("mc_core")
_NAMED = 10
_HELD: set[Path] = set()  # run folders this process writes to; the lock itself only tells processes apart


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Let one process write to a run folder at a time. The lock dies with its process, also after ``kill -9``.

    Raises:
        ConfigError: the folder cannot be made or written, or another process holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"cannot write to the run folder {run_dir}: {error.strerror}; choose another place"
        ) from error
    try:
        try:
            import fcntl
        except ImportError:  # Windows has no such lock; runs there are not protected from each other
            yield
            return
        place = run_dir.resolve()
        try:
            if place in _HELD:
                raise BlockingIOError
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's, loader workers do not inherit this one
        except OSError as error:
            raise ConfigError(
                f"another process is writing to {run_dir}; wait for it or choose another run folder"
            ) from error
        _HELD.add(place)
        try:
            yield
        finally:
            _HELD.discard(place)
    finally:
        os.close(handle)


class StopRequest:
    """Turns SIGINT and SIGTERM into a wish to stop after the current step; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Listen while the block runs (in the main thread; elsewhere signals cannot be caught and this does nothing)."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        _log.warning("stopping after this step, to save; press Ctrl-C again to stop at once")


class BadSamples:
    """Unreadable samples met so far: each named once in the log, all of them in ``bad_samples.json``.

    Args:
        length: samples in the data.
        limit: share of the data beyond which :meth:`problem` gives an error.
    """

    def __init__(self, length: int, limit: float) -> None:
        self.length, self.limit = length, limit
        self.found: dict[int, tuple[str, str]] = {}

    def add(self, records: list[tuple[int, str, str]]) -> None:
        """Note (index, name, reason) records."""
        for index, name, reason in records:
            if index in self.found:
                continue
            self.found[index] = (name, reason)
            if len(self.found) <= _NAMED:
                _log.warning("skipped %s: %s", name, reason)
            if len(self.found) == _NAMED:
                _log.warning("further unreadable samples are only listed in bad_samples.json")

    def problem(self) -> DataError | None:
        """The error to raise when more than the allowed share of the data is unreadable, else None."""
        if len(self.found) <= self.limit * self.length:
            return None
        name, reason = next(iter(self.found.values()))
        return DataError(
            f"{len(self.found)} of {self.length} samples are unreadable ({len(self.found) / self.length:.1%}, allowed "
            f"{self.limit:.1%}), the first {name}: {reason}; mend or remove them, or allow more with fit.max_bad (--max-bad)"
        )

    def write(self, path: Path) -> None:
        """List them in a file, when there are any."""
        if self.found:
            write_json(path, dict(self.found.values()))


class Bar:
    """A progress bar on standard error; where that is no terminal, a line in the log every half minute."""

    def __init__(
        self, total: int, done: int, *, show: bool, every: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        console = Console(stderr=True)
        self._show = show and console.is_terminal
        self._tell = show and not self._show
        self._total, self._first, self._done = total, done, done
        self._every, self._clock = every, clock
        self._began = self._told = clock()
        self._note = ""
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._show,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task("training", total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One step done."""
        self._done += 1
        if self._show:
            self._progress.advance(self._task)
        elif self._tell and (now := self._clock()) - self._told >= self._every:
            self._told = now
            left = (now - self._began) / (self._done - self._first) * (self._total - self._done)
            note = f", {self._note}" if self._note else ""
            _log.info("training %d/%d%s, about %s left", self._done, self._total, note, _duration(left))

    def note(self, text: str) -> None:
        """Text beside the bar."""
        self._note = text
        if self._show:
            self._progress.update(self._task, note=text)


def _duration(seconds: float) -> str:
    """As 0:05, 12:00 or 3:07:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Throughput:
    """Samples per second since the last reading."""

    def __init__(self, batch_size: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._batch_size, self._clock = batch_size, clock
        self._steps, self._since = 0, clock()

    def step(self) -> None:
        """One optimizer step done."""
        self._steps += 1

    def read(self) -> float:
        """Samples per second since the last reading (or the start)."""
        now = self._clock()
        rate = self._steps * self._batch_size / max(now - self._since, 1e-9)
        self._steps, self._since = 0, now
        return rate


class TensorBoardLog:
    """Mirrors the metric lines to TensorBoard when it is installed; otherwise does nothing."""

    def __init__(self, folder: Path, *, wanted: bool, purge_step: int) -> None:
        self._writer: Any = None
        if wanted:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self._writer = SummaryWriter(str(folder), purge_step=purge_step or None)

    def write(self, step: int, line: Mapping[str, Any]) -> None:
        """Add the numbers of one line."""
        if self._writer is not None:
            for name, value in line.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
