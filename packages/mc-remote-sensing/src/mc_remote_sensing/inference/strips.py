"""The inner loop of a map: read ahead, compute, sum what overlaps, hand finished rows to the writer.

Legend: h, w of a tile; H, W rows and columns of the scene.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mc_remote_sensing.inference.running import ElevationReader, ImageReader, Inputs, Runner, read_inputs
from mc_remote_sensing.inference.tiling import Span, Tile, Tiling
from mc_remote_sensing.inference.work import WorkRows

Progress = Callable[[int, int], None]
"""Called with the number of tiles done and of all tiles."""

_AHEAD = 3  # batches read before they are needed
_BEHIND = 2  # strips that may wait to be written


class Loop:
    """Reads ahead, computes, sums, hands finished rows to the writer."""

    def __init__(
        self,
        runner: Runner,
        image: ImageReader | None,
        elevation: ElevationReader | None,
        tiling: Tiling,
        rows: WorkRows,
        min_valid: float,
        batch_size: int,
    ) -> None:
        self.runner, self.image, self.elevation = runner, image, elevation
        self.tiling, self.rows, self.min_valid, self.batch_size = tiling, rows, min_valid, batch_size
        self.tiles = self.skipped = 0
        self._resumed = rows.finished
        self._waited = self.seconds = 0.0

    @property
    def compute_share(self) -> float:
        return 1.0 - self._waited / self.seconds if self.seconds else 1.0

    def run(self, progress: Progress | None) -> None:
        started = time.perf_counter()
        spans = self.tiling.rows
        finished = self._resumed
        # Rows above were summed from tiles that have no say in what is still missing.
        spans = [span for span in spans if span.last >= finished] if finished < self.tiling.height else []
        before = len(self.tiling) - len(spans) * len(self.tiling.columns)
        with ThreadPoolExecutor(1, "mc-read") as reader, ThreadPoolExecutor(1, "mc-write") as writer:
            reads = self._read_ahead(reader, spans)
            writes: deque[Future[None]] = deque()
            try:
                strip = Strip(self.tiling, spans[0].first) if spans else None
                for k, span in enumerate(spans):
                    assert strip is not None
                    for batch, inputs in self._batches(reads, span):
                        self._add(strip, batch, inputs)
                        if progress is not None:
                            progress(before + self.tiles, len(self.tiling))
                    end = spans[k + 1].first if k + 1 < len(spans) else self.tiling.height
                    self._write(writer, writes, strip, end)
                while writes:
                    self._wait(writes.popleft())
            finally:
                reader.shutdown(wait=True, cancel_futures=True)
                writer.shutdown(wait=True, cancel_futures=True)
        self.seconds = time.perf_counter() - started

    def _read_ahead(self, reader: ThreadPoolExecutor, spans: list[Span]) -> Iterator[tuple[list[Tile], list[Inputs]]]:
        pending: deque[tuple[list[Tile], Future[list[Inputs]]]] = deque()
        for span in spans:
            tiles = self.tiling.tiles_of(span)
            for start in range(0, len(tiles), self.batch_size):
                batch = tiles[start : start + self.batch_size]
                pending.append((batch, reader.submit(self._read, batch)))
                if len(pending) > _AHEAD:
                    batch, future = pending.popleft()
                    yield batch, self._wait(future)
        while pending:
            batch, future = pending.popleft()
            yield batch, self._wait(future)

    def _read(self, batch: list[Tile]) -> list[Inputs]:
        return [read_inputs(self.image, self.elevation, *tile[:4]) for tile in batch]

    def _batches(
        self, reads: Iterator[tuple[list[Tile], list[Inputs]]], span: Span
    ) -> Iterator[tuple[list[Tile], list[Inputs]]]:
        left = len(self.tiling.columns)
        while left:
            batch, inputs = next(reads)
            assert batch[0].row == span.start
            left -= len(batch)
            yield batch, inputs

    def _add(self, strip: Strip, batch: list[Tile], inputs: list[Inputs]) -> None:
        for tile, one in zip(batch, inputs, strict=True):
            strip.see(tile, one.valid)
        run = [i for i, one in enumerate(inputs) if one.valid.any() and one.valid.mean() >= self.min_valid]
        self.tiles += len(batch)
        self.skipped += len(batch) - len(run)
        if run:
            for i, probability in zip(run, self.runner([inputs[i] for i in run]), strict=True):
                strip.add(batch[i], probability)

    def _write(self, writer: ThreadPoolExecutor, writes: deque[Future[None]], strip: Strip, end: int) -> None:
        row, probability, valid = strip.take(end)
        skip = max(0, self._resumed - row)
        while len(writes) >= _BEHIND:
            self._wait(writes.popleft())
        if skip < len(valid):
            writes.append(writer.submit(self.rows.append, row + skip, probability[skip:], valid[skip:]))

    def _wait(self, future: Future[Any]) -> Any:
        started = time.perf_counter()
        try:
            return future.result()
        finally:
            self._waited += time.perf_counter() - started


class Strip:
    """Weighted sums of the rows that tiles still add to."""

    def __init__(self, tiling: Tiling, top: int) -> None:
        height, width = tiling.rows[0].size, tiling.columns[-1].start + tiling.columns[-1].size
        self.top, self.shape = top, (tiling.height, tiling.width)
        self.columns = {span.start: span for span in tiling.columns}
        self.rows = {span.start: span for span in tiling.rows}
        self.sums = np.zeros((height, width), dtype=np.float32)
        self.weights = np.zeros((height, width), dtype=np.float32)
        self.valid = np.zeros((height, width), dtype=bool)

    def see(self, tile: Tile, valid: np.ndarray) -> None:
        top = max(self.top, tile.row)
        self.valid[top - self.top : tile.row + tile.height - self.top, tile.col : tile.col + tile.width] = valid[
            top - tile.row :
        ]

    def add(self, tile: Tile, probability: np.ndarray) -> None:
        row, column = self.rows[tile.row], self.columns[tile.col]
        top, bottom, left, right = max(row.first, self.top), row.last + 1, column.first, column.last + 1
        here = np.s_[top - self.top : bottom - self.top, left:right]
        there = np.s_[top - tile.row : bottom - tile.row, left - tile.col : right - tile.col]
        weights = tile.weights[there]
        self.sums[here] += weights * probability[there]
        self.weights[here] += weights

    def take(self, end: int) -> tuple[int, np.ndarray, np.ndarray]:
        """First row, probabilities and validity of the rows before ``end``, which nothing will be added to."""
        row, count = self.top, end - self.top
        width = self.shape[1]
        sums, weights = self.sums[:count, :width], self.weights[:count, :width]
        valid = self.valid[:count, :width] & (weights > 1e-6)
        probability = np.divide(sums, weights, out=np.zeros_like(sums), where=valid)
        for kept in (self.sums, self.weights, self.valid):
            kept[: len(kept) - count] = kept[count:].copy()
            kept[len(kept) - count :] = 0
        self.top = end
        return row, probability, valid
