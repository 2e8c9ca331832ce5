"""Bringing the chunks of an index up to date: what changed is found by size and time, then by content.

Nothing here needs an encoder: words can be searched at once, vectors follow (``embedding.py``).
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mc_core.pool import map_items
from mc_text_code.codesearch.chunking import ChunkedFile, chunk_file
from mc_text_code.codesearch.ranking import PROSE
from mc_text_code.codesearch.store import Known, Store
from mc_text_code.source.files import SourceFile, SourceListing
from mc_text_code.source.languages import LANGUAGES

LOCK_SECONDS = 10.0
"""How long a process waits for another one that refreshes the same index."""

_BATCH_FILES, _BATCH_SECONDS = 256, 2.0
_RACY_NS = 2_000_000_000  # the coarsest clock of a file system in use
_UNSURE = -1

Progress = Callable[[int, int], None]
"""Takes how many are done, and of how many."""


@dataclass(frozen=True)
class Refresh:
    """What a refresh found and did.

    Attributes:
        files: searched now.
        added: files that are new.
        changed: files with another content.
        removed: files that are gone.
        skipped: reason → files left out.
        examples: reason → one of them.
        windows: programming language without a grammar → its files, which are cut into windows of lines.
        notes: what a user should know, a line each.
        busy: another process writes the index; what it has so far is searched.
        rebuilt: why the index was emptied before; else empty.
        seconds: it took.
    """

    files: int
    added: int = 0
    changed: int = 0
    removed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    windows: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    busy: bool = False
    rebuilt: str = ""
    seconds: float = 0.0


@dataclass
class _Plan:
    """What differs from the index."""

    changed: list[tuple[SourceFile, bytes]]
    removed: list[int]
    known: dict[str, Known]


def refresh(
    store: Store,
    listing: SourceListing,
    *,
    processes: int = 1,
    wait: float = LOCK_SECONDS,
    progress: Progress | None = None,
) -> Refresh:
    """Bring the index up to date with the files there are.

    Interrupted in any way, it goes on where it stopped the next time.

    Args:
        store: the index.
        listing: the files.
        processes: to read and parse with; 0: as many as there are processors, where there are many files.
        wait: seconds to wait for another process that writes.
        progress: is told how many files are read.
    """
    start = time.perf_counter()
    plan = _plan(store, listing)
    added = changed = 0
    busy = False
    if plan.changed or plan.removed:
        if store.writing.acquire(wait):
            try:
                plan = _plan(store, listing)  # another process may have done it meanwhile
                added, changed = _write(store, plan, processes, progress)
                with store.transaction():
                    store.set_meta(_summary(listing, complete=True))
            finally:
                store.writing.release()
        else:
            busy = True
    elif store.meta().get("complete") != "1":
        with store.transaction():
            store.set_meta(_summary(listing, complete=True))
    return _report(store, listing, plan, added, changed, busy=busy, seconds=time.perf_counter() - start)


def _plan(store: Store, listing: SourceListing) -> _Plan:
    known = store.known()
    changed = []
    for file in listing.files:
        one = known.get(file.path)
        if one is None or one.size != file.size or one.mtime_ns != file.mtime_ns:
            changed.append((file, b"" if one is None else one.digest))
    paths = {file.path for file in listing.files}
    removed = [one.id for path, one in known.items() if path not in paths]
    # newest first: what somebody works on is found first, and embedded first
    changed.sort(key=lambda item: (-item[0].mtime_ns, item[0].path))
    return _Plan(changed, removed, known)


def _write(store: Store, plan: _Plan, processes: int, progress: Progress | None) -> tuple[int, int]:
    if plan.removed:
        with store.transaction():
            store.remove(plan.removed)
    if len(plan.changed) > _BATCH_FILES:
        with store.transaction():
            store.set_meta({"complete": "0"})
    added = changed = done = 0
    numbers = _Numbers(store, fresh=not plan.known)
    read = map_items(partial(chunk_file, config=store.config), plan.changed, processes=processes)
    for batch in _batches(read):
        now = time.time_ns()
        with store.transaction():
            for file in batch:
                mtime_ns = _UNSURE if 0 <= now - file.mtime_ns < _RACY_NS else file.mtime_ns
                old = plan.known.get(file.path)
                if file.unchanged and old is not None:
                    store.touch(old.id, file.size, mtime_ns)
                    continue
                store.put(file, numbers.of(file), mtime_ns)
                added += old is None
                changed += old is not None and old.digest != file.digest
        done += len(batch)
        if progress is not None:
            progress(done, len(plan.changed))
    return added, changed


def _batches(files: Iterator[ChunkedFile]) -> Iterator[list[ChunkedFile]]:
    batch: list[ChunkedFile] = []
    start = time.monotonic()
    for file in files:
        batch.append(file)
        if len(batch) >= _BATCH_FILES or time.monotonic() - start > _BATCH_SECONDS:
            yield batch
            batch, start = [], time.monotonic()
    if batch:
        yield batch


class _Numbers:
    """Words → their numbers in the index; new ones are numbered."""

    def __init__(self, store: Store, *, fresh: bool) -> None:
        self._store = store
        self._known: dict[str, int] = {}
        self._complete = fresh and not store.rows_of("SELECT 1 FROM terms LIMIT 1")

    def of(self, file: ChunkedFile) -> np.ndarray:
        """(E,) numbers of a file's words; inside a transaction."""
        known = self._known
        missing = [word for word in file.words if word not in known]
        if missing and not self._complete:
            known.update(self._store.term_numbers(missing))
            missing = [word for word in missing if word not in known]
        if missing:
            first = int(self._store.rows_of("SELECT coalesce(max(id), 0) FROM terms")[0][0]) + 1
            new = list(enumerate(missing, start=first))
            self._store.connection.executemany("INSERT INTO terms VALUES (?, ?)", new)
            known.update((word, number) for number, word in new)
        numbers = np.fromiter((known[word] for word in file.words), dtype=np.uint32, count=len(file.words))
        return numbers[file.terms] if len(numbers) else file.terms


def _summary(listing: SourceListing, *, complete: bool) -> dict[str, str]:
    return {
        "complete": "1" if complete else "0",
        "refreshed": str(int(time.time())),
        "skipped": json.dumps(
            {reason: [count, listing.examples.get(reason, "")] for reason, count in listing.skipped.items()}
        ),
    }


def _report(
    store: Store, listing: SourceListing, plan: _Plan, added: int, changed: int, *, busy: bool, seconds: float
) -> Refresh:
    skipped, examples = Counter(listing.skipped), dict(listing.examples)
    for reason, count, example in store.rows_of(
        "SELECT reason, count(*), min(path) FROM files WHERE reason != '' GROUP BY reason"
    ):
        skipped[reason] += count
        examples.setdefault(reason, example)
    languages = dict(store.rows_of("SELECT language, count(*) FROM files WHERE reason = '' GROUP BY language"))
    windows = {name: count for name, count in sorted(languages.items()) if name not in LANGUAGES and name not in PROSE}
    rebuilt = store.rebuilt
    store.rebuilt = ""
    return Refresh(
        files=sum(languages.values()),
        added=added,
        changed=changed,
        removed=0 if busy else len(plan.removed),
        skipped=skipped,
        examples=examples,
        windows=windows,
        notes=tuple(_notes(store, listing, windows, rebuilt, busy=busy)),
        busy=busy,
        rebuilt=rebuilt,
        seconds=seconds,
    )


def _notes(store: Store, listing: SourceListing, windows: dict[str, int], rebuilt: str, *, busy: bool) -> Iterator[str]:
    if listing.note:
        yield listing.note
    if rebuilt:
        yield f"the index was built anew: {rebuilt}"
    if busy:
        yield "another process is writing the index; the answer is of what it holds so far"
    if windows:
        shown = ", ".join(f"{name} {count:,}" for name, count in windows.items())
        yield f"files without a grammar are searched in windows of {store.config.window_lines} lines: {shown}"
    for note, count, example in store.rows_of(
        "SELECT note, count(*), min(path) FROM files WHERE note != '' GROUP BY note ORDER BY note"
    ):
        yield f"{count:,} {'file' if count == 1 else 'files'} ({example}{' …' if count > 1 else ''}): {note}"
