"""Decoded images: the whole cohort once, as squares of uint8, in memory or in a mapped file.

Legend: N images, M rows of the array, S side of a square, B of a batch, G readable images.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import BadSampleError, DataError
from mc_core.files import JsonlWriter, atomic_path, explain_write_error, read_json, read_jsonl, write_json
from mc_core.locks import locked
from mc_core.pool import available_processes, map_items
from mc_medical.data.cohort import Studies
from mc_medical.data.image_config import ImageOptions
from mc_medical.data.image_ref import ImageRef
from mc_medical.data.radiograph import looks_inverted, read_radiograph, square

_FORMAT = 1
_TRIED = 16  # images decoded here before processes are started
_WORTH = 8.0  # seconds of work left for which processes are started: each imports its libraries first
_OURS = ("pixels", "state", "doubts")
_FLUSH = 512  # images after which a mapped file is written out

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PixelStore:
    """Squares of the images of a cohort, row for row; those that could not be read are black.

    Attributes:
        array: (M, S, S) uint8, in memory or mapped.
        index: (N,) int64, the row of ``array`` for each image.
        readable: (N,) bool.
        dropped: reasons, and how many images could not be used for each.
        examples: one line for the first of each reason.
        notes: doubts about images that were read all the same, and how many.
    """

    array: np.ndarray
    index: np.ndarray
    readable: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, str] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def build(
        cls,
        studies: Studies,
        *,
        cache: str | os.PathLike[str] | None = None,
        processes: int = 1,
        progress: Progress | None = None,
    ) -> PixelStore:
        """Decode all images of a cohort, as its ``options`` say.

        Args:
            studies: N of them.
            cache: folder for a mapped file, which a later call for the same images and options takes up, also one that was
                interrupted; default: in memory. It holds the images of patients: keep it as safe as these.
            processes: to decode with; 0: as many as there are processors where it pays. They import the main module anew: a
                script that asks for others than 1 must guard its main part by ``if __name__ == "__main__":``.
            progress: called with (done, N).

        Raises:
            DataError: none could be read, or the folder holds something else.
        """
        if not len(studies):
            raise DataError("no images to decode")
        jobs = [
            (ref, f"{studies.unit} {number}") for ref, number in zip(studies.images, studies.rows.tolist(), strict=True)
        ]
        if cache is None:
            shape = (len(jobs), studies.options.size, studies.options.size)
            found = _Memory(np.zeros(shape, dtype=np.uint8))
            found.fill(jobs, studies.options, processes, progress)
        else:
            found = _filled(Path(cache), jobs, studies.options, processes, progress)
        store = cls(found.array, np.arange(len(jobs)), found.readable, *found.counts())
        if not store.readable.any():
            raise DataError(f"none of {len(jobs)} images can be used: {'; '.join(list(store.examples.values())[:3])}")
        return store

    def __len__(self) -> int:
        return len(self.index)

    @property
    def good(self) -> np.ndarray:
        """(G,) int64: the images that could be read."""
        return np.flatnonzero(self.readable)

    @property
    def size(self) -> int:
        """S."""
        return self.array.shape[-1]

    @property
    def pixels(self) -> np.ndarray:
        """(N, S, S) uint8, all of them; a copy in memory where this is a part of the cohort."""
        if len(self.index) == len(self.array) and (self.index == np.arange(len(self.array))).all():
            return self.array
        return self.array[self.index]

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """(B, S, S) uint8 of these images."""
        return self.array[self.index[indices]]

    def take(self, rows: np.ndarray | Sequence[int]) -> PixelStore:
        """Those at these positions, without copying pixels; counts stay those of the whole."""
        rows = np.asarray(rows, dtype=np.int64)
        return replace(self, index=self.index[rows], readable=self.readable[rows])

    def describe(self) -> dict[str, Any]:
        """Counts, and nothing that names anybody."""
        return {
            "images": len(self),
            "readable": int(self.readable.sum()),
            "size": self.size,
            "dropped": dict(self.dropped),
            "examples": dict(self.examples),
            "notes": dict(self.notes),
        }


@dataclass(frozen=True)
class Decoded:
    """What a process hands back: (S, S) uint8, or why there is none."""

    pixels: np.ndarray | None
    reason: str = ""
    notes: tuple[str, ...] = ()


def decode(job: tuple[ImageRef, str], options: ImageOptions) -> Decoded:
    """One image as a square."""
    ref, name = job
    try:
        radiograph = read_radiograph(ref.read(name), options, name=name)
        if options.views == "frontal" and radiograph.frontal is False:
            raise BadSampleError(name, f"view {radiograph.view}, as its header says")
        squared = square(radiograph.pixels, options.size)
        doubt = ("looks inverted: the middle is darker than the lungs",) if looks_inverted(squared) else ()
        return Decoded(squared, notes=(*radiograph.notes, *(doubt if radiograph.frontal is not False else ())))
    except BadSampleError as error:
        return Decoded(None, error.reason)


class _Memory:
    """An array in memory, with what became of each image."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.readable = np.zeros(len(array), dtype=bool)
        self.records: dict[int, dict[str, Any]] = {}

    def fill(
        self, jobs: Sequence[tuple[ImageRef, str]], options: ImageOptions, processes: int, progress: Progress | None
    ) -> None:
        """Decode what is still to do."""
        self._take(range(len(jobs)), jobs, options, processes, progress)

    def counts(self) -> tuple[Counter[str], dict[str, str], Counter[str]]:
        """Reasons, examples and notes, in the order of rows."""
        dropped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        notes: Counter[str] = Counter()
        for _, record in sorted(self.records.items()):
            if record["reason"]:
                kind = _kind(record["reason"])
                dropped[kind] += 1
                examples.setdefault(kind, f"{record['name']}: {record['reason']}")
            notes.update(_kind(note) for note in record["notes"])
        return dropped, examples, notes

    def _take(
        self,
        rows: Sequence[int],
        jobs: Sequence[tuple[ImageRef, str]],
        options: ImageOptions,
        processes: int,
        progress: Progress | None,
    ) -> None:
        done = len(jobs) - len(rows)
        for row, one in zip(rows, _decoded([jobs[i] for i in rows], options, processes), strict=True):
            if one.pixels is not None:
                self.array[row] = one.pixels
                self.readable[row] = True
            if one.reason or one.notes:
                self.records[row] = {"name": jobs[row][1], "reason": one.reason, "notes": list(one.notes)}
            done += 1
            self._after(row, done)
            if progress is not None:
                progress(done, len(jobs))

    def _after(self, row: int, done: int) -> None:
        """Nothing is kept beyond this process."""


class _Folder(_Memory):
    """A mapped ``pixels.npy`` with ``state.npy`` (how many rows are done) and ``doubts.jsonl``, taken up where it was left."""

    def __init__(self, folder: Path, jobs: Sequence[tuple[ImageRef, str]], options: ImageOptions) -> None:
        self.folder = folder
        key = {"format": _FORMAT, "images": len(jobs), "crc32": _fingerprint(jobs), "options": options.model_dump()}
        key = {**key, "options": {**key["options"], "modalities": list(options.modalities)}}  # type: ignore[dict-item]
        shape = (len(jobs), options.size, options.size)
        manifest = folder / "pixels.json"
        if manifest.exists():
            if read_json(manifest) != key:
                raise DataError(
                    f"{folder} holds the pixels of other images or options: name another folder, or remove it"
                )
        elif folder.is_dir() and any(
            path.name.removeprefix(".").split(".")[0] not in _OURS for path in folder.iterdir()
        ):
            raise DataError(f"{folder} holds something else: name an empty folder for decoded images")
        else:
            with atomic_path(folder / "pixels.npy") as draft:
                np.lib.format.open_memmap(draft, "w+", np.uint8, shape).flush()
            np.save(folder / "state.npy", np.zeros(len(jobs), dtype=np.uint8))
            write_json(manifest, key)  # last: without it the folder is not taken up
        super().__init__(np.load(folder / "pixels.npy", mmap_mode="r+"))
        self.state = np.load(folder / "state.npy", mmap_mode="r+")
        self.readable = np.asarray(self.state) == 1

    def fill(
        self, jobs: Sequence[tuple[ImageRef, str]], options: ImageOptions, processes: int, progress: Progress | None
    ) -> None:
        path = self.folder / "doubts.jsonl"
        to_do = np.flatnonzero(np.asarray(self.state) == 0).tolist()
        with JsonlWriter(path) as self.log:
            before = read_jsonl(path) if path.stat().st_size else []
            self.records = {record.pop("row"): record for record in before if self.state[record["row"]]}
            self.logged = set(self.records)
            if to_do:
                self._take(to_do, jobs, options, processes, progress)
                self._flush()
        self.array = np.load(self.folder / "pixels.npy", mmap_mode="r")

    def _after(self, row: int, done: int) -> None:
        if done % _FLUSH == 0:
            self._flush()

    def _flush(self) -> None:
        """Pixels and doubts first: a row that is marked as done is whole."""
        self.array.flush()  # type: ignore[attr-defined]
        for row, record in self.records.items():
            if row not in self.logged:
                self.log.append({"row": row, **record})
                self.logged.add(row)
        state = self.readable.astype(np.uint8)
        state[[row for row, record in self.records.items() if record["reason"]]] = 2
        self.state[state > 0] = state[state > 0]
        self.state.flush()  # type: ignore[attr-defined]


def _filled(
    folder: Path,
    jobs: Sequence[tuple[ImageRef, str]],
    options: ImageOptions,
    processes: int,
    progress: Progress | None,
) -> _Folder:
    """Of several processes that ask for the same folder, one decodes and the others wait."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "pixels"):
            found = _Folder(folder, jobs, options)
            found.fill(jobs, options, processes, progress)
            return found
    except OSError as error:
        raise explain_write_error(error, folder) from error


def _fingerprint(jobs: Iterable[tuple[ImageRef, str]]) -> int:
    """Of paths, places, sizes and times: another file under the same name is decoded anew."""
    crc = 0
    seen: dict[str, tuple[int, int]] = {}
    for ref, _ in jobs:
        if ref.path not in seen:
            try:
                stat = os.stat(ref.path)
                seen[ref.path] = stat.st_size, stat.st_mtime_ns
            except OSError:
                seen[ref.path] = -1, -1
        crc = zlib.crc32(f"{ref.path}\0{ref.offset}\0{ref.size}\0{seen[ref.path]}".encode("utf-8", "replace"), crc)
    return crc


def _kind(reason: str) -> str:
    """A reason without its figures, so that the same trouble is counted together."""
    kind = reason.split(" (")[0]
    return "".join("#" if c.isdigit() else c for c in kind).replace("##", "#").replace("##", "#")


def _decoded(jobs: Sequence[tuple[ImageRef, str]], options: ImageOptions, processes: int) -> Iterator[Decoded]:
    """In order. Without a wish, the first few tell whether processes pay."""
    work = partial(decode, options=options)
    if processes == 0:
        first, jobs = jobs[:_TRIED], jobs[_TRIED:]
        took = []
        for job in first:
            start = time.perf_counter()
            one = work(job)
            took.append(time.perf_counter() - start)
            yield one
        left = float(np.median(took)) * len(jobs) if took else 0.0  # the first imports its libraries
        processes = available_processes() if left > _WORTH else 1
    yield from map_items(work, jobs, processes=processes, chunk=8)
