"""From what a reader found to :class:`Pairs`: captions cleaned, what is missing counted, equal pictures found, parts named.

Legend: N pictures, M captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from mc_core.errors import BadSampleError, DataError
from mc_core.listing import count_text
from mc_vision_language.data.captions import clean_caption, text_key
from mc_vision_language.data.columns import split_name
from mc_vision_language.data.images import StoredImages
from mc_vision_language.data.options import CaptionOptions, ReadOptions, SplitOptions
from mc_vision_language.data.pairs import Pairs, divide

DIVIDED = "divided by a hash of the picture"
_SHOWN = 20  # examples kept of each reason
_NAMED = 5  # of them in an error
_HEAD = 4096  # bytes of a picture that tell most apart
_SAME = {"content": "equal files are the same picture", "name": "each file is a picture of its own"}


@dataclass
class Found:
    """What a reader found.

    Attributes:
        images: N pictures, some perhaps missing.
        captions: M texts as written, some perhaps empty.
        image_of: (M,) the picture of each.
        place: where a caption stood, for messages.
        location: of the whole.
        columns: what was taken for what.
        ids: N texts that say which pictures are the same, where the data say it.
        splits: N names of parts, empty where the data do not say it.
        bad: lines about what could not be read at all.
    """

    images: StoredImages
    captions: Sequence[str]
    image_of: Sequence[int] | np.ndarray
    place: Callable[[int], str]
    location: str
    columns: dict[str, str] = field(default_factory=dict)
    ids: Sequence[str] | None = None
    splits: Sequence[str] | None = None
    bad: list[str] = field(default_factory=list)


class _Drops:
    """Counts what is left out, and keeps the first of each reason to show.

    Args:
        location: of the data.
        allowed: share that may be missing, empty or unreadable.
    """

    def __init__(self, location: str, allowed: float) -> None:
        self.location, self.allowed = location, allowed
        self.counts: Counter[str] = Counter()
        self.shown: list[str] = []

    def add(self, reason: str, rows: Sequence[int] | np.ndarray, name: Callable[[int], str]) -> list[str]:
        """Count these rows; returns the names of the first."""
        names = [name(int(row)) for row in rows[:_SHOWN]]
        if names:
            self.counts[reason] += len(rows)
            self.shown += [f"{reason}: {one}" for one in names]
        return names

    def refuse(
        self, reason: str, rows: Sequence[int] | np.ndarray, name: Callable[[int], str], total: int, what: str
    ) -> None:
        """Count these rows, or raise DataError if they are more than what is allowed of ``total``."""
        names = self.add(reason, rows, name)
        if len(rows) > self.allowed * total:
            more = f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
            raise DataError(
                f"{self.location}: {len(rows):,} of {count_text(total, what.partition(' ')[0])} "
                f"{'is' if len(rows) == 1 else 'are'} {what.partition(' ')[2]} ({len(rows) / total:.1%}, allowed "
                f"{self.allowed:.1%}): {', '.join(names[:_NAMED])}{more}; mend them, or allow more with --max-bad"
            )


def assemble(found: Found, captions: CaptionOptions, read: ReadOptions, split: SplitOptions) -> Pairs:
    """Pairs of what a reader found.

    Raises:
        DataError: more missing pictures, empty captions or unreadable rows than ``read.max_bad`` allows, or nothing is left.
    """
    drops = _Drops(found.location, read.max_bad)
    image_of = np.asarray(found.image_of, dtype=np.int64)
    unreadable, everything = len(found.bad), len(found.bad) + len(found.captions)
    drops.refuse("unreadable row", range(unreadable), lambda i: found.bad[i], everything, "row unreadable")

    cleaned = {text: clean_caption(text, captions) for text in set(found.captions)}
    texts = [cleaned[text] for text in found.captions]
    worded_M = np.array([bool(text) for text in texts], dtype=bool)
    drops.refuse("empty caption", np.flatnonzero(~worded_M), found.place, len(texts), "caption empty")

    sizes_N = found.images.sizes()
    there_N = sizes_N > 0
    drops.refuse(
        "missing picture", np.flatnonzero(~there_N), found.images.name, len(there_N), "picture missing or empty"
    )

    kept_M = there_N[image_of] & worded_M
    captioned_N = np.zeros(len(there_N), dtype=bool)
    captioned_N[image_of[kept_M]] = True
    drops.add("picture without a caption", np.flatnonzero(there_N & ~captioned_N), found.images.name)

    splits, note = _splits(found, captioned_N, drops) if split.own else (None, "the data's own are not wanted")
    rows = np.flatnonzero(captioned_N if splits is None else captioned_N & (splits != ""))
    if not len(rows):
        shown = f", the first: {drops.shown[0]}" if drops.shown else ""
        total = count_text(len(there_N), "picture")
        raise DataError(f"{found.location}: no picture with a caption is left of {total}{shown}")

    position = np.full(len(there_N), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    kept = np.flatnonzero(kept_M & (position[image_of] >= 0))
    kept = kept[np.argsort(position[image_of[kept]], kind="stable")]
    images = found.images.take(rows)
    ids = _ids(images, None if found.ids is None else [found.ids[row] for row in rows.tolist()], sizes_N[rows], read)
    columns = {**found.columns, "image_id": found.columns.get("image_id", _SAME[read.duplicates])}
    if splits is None:
        columns["split"] = DIVIDED + (f" ({note})" if note else "")
    elif crossing := len(set(zip(ids.tolist(), splits[rows].tolist(), strict=True))) - len(set(ids.tolist())):
        columns["split"] += f"; {count_text(crossing, 'picture')} in several parts"
    keys = {text: text_key(text) for text in cleaned.values()}
    return Pairs(
        images,
        tuple(texts[i] for i in kept.tolist()),
        position[image_of[kept]],
        image_ids=ids,
        text_ids=np.array([keys[texts[i]] for i in kept.tolist()], dtype=np.int64),
        splits=divide(ids, split.shares, split.seed) if splits is None else splits[rows],
        dropped=drops.counts,
        examples=tuple(drops.shown),
        columns=columns,
        location=found.location,
    )


def _splits(found: Found, captioned: np.ndarray, drops: _Drops) -> tuple[np.ndarray | None, str]:
    """(N,) parts, empty where the name of one is not known; None where the data do not divide themselves, and why."""
    given = found.splits
    if given is None or not any(given):
        return None, ""
    known = {name: split_name(name) for name in set(given)}
    parts = {part for part in known.values() if part}
    column = found.columns.pop("split", "split")
    if len(parts) < 2:
        only = next((name for name, part in known.items() if part), next(iter(known)))
        return None, f"{column} names one part alone, {only!r}" if parts else f"{column} names no known part, {only!r}"
    found.columns["split"] = column
    unknown = [row for row in np.flatnonzero(captioned).tolist() if not known[given[row]]]
    drops.add("split of another name", unknown, lambda row: f"{found.images.name(row)} ({given[row]!r})")
    return np.array([known[name] or "" for name in given]), ""


def _ids(images: StoredImages, given: Sequence[str] | None, sizes: np.ndarray, read: ReadOptions) -> np.ndarray:
    """(N,) int64: of the id that the data give, else of the picture's name; equal files have that of the first."""
    names = given if given is not None else [images.key(row) for row in range(len(images))]
    keys = np.array([text_key(name) for name in names], dtype=np.int64)
    if read.duplicates != "content":
        return keys
    first = _first_equal(images, sizes)
    changed = np.flatnonzero(keys[first] != keys)
    if not len(changed):
        return keys
    leader: dict[int, int] = {}  # an id may stand for several pictures, each of which may have its own equals

    def lead(key: int) -> int:
        while key in leader:
            key = leader[key]
        return key

    for row in changed.tolist():
        one, other = lead(int(keys[first[row]])), lead(int(keys[row]))
        if one != other:
            leader[other] = one
    return np.array([lead(key) for key in keys.tolist()], dtype=np.int64)


def _first_equal(images: StoredImages, sizes: np.ndarray) -> np.ndarray:
    """(N,) the first picture with the same bytes. Of those of equal size the beginnings are read, of what is left all."""
    first = np.arange(len(images))
    alike = _groups([(int(size),) for size in sizes], first.tolist())
    for read in (lambda row: images.head(row, _HEAD), images.data):
        keys = [(*key, _digest(read, row)) for key, rows in alike.items() for row in rows]
        alike = _groups(keys, [row for rows in alike.values() for row in rows])
    for rows in alike.values():
        first[rows] = rows[0]
    return first


def _groups(keys: Sequence[tuple[int | bytes, ...]], rows: Sequence[int]) -> dict[tuple[int | bytes, ...], list[int]]:
    """Rows by their key, where several have it."""
    found: dict[tuple[int | bytes, ...], list[int]] = {}
    for key, row in zip(keys, rows, strict=True):
        found.setdefault(key, []).append(row)
    return {key: some for key, some in found.items() if len(some) > 1}


def _digest(read: Callable[[int], bytes], row: int) -> int | bytes:
    """Of what ``read`` gives; what cannot be read equals nothing."""
    try:
        return blake2b(read(row), digest_size=16).digest()
    except BadSampleError:
        return row
