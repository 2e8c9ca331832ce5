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

_SHOWN = 5


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
    """Counts what is left out, and keeps the first of each reason to show."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.shown: list[str] = []

    def add(self, reason: str, names: Sequence[str]) -> None:
        if names:
            self.counts[reason] += len(names)
            self.shown += [f"{reason}: {name}" for name in names[:_SHOWN]]


def assemble(found: Found, captions: CaptionOptions, read: ReadOptions, split: SplitOptions) -> Pairs:
    """Pairs of what a reader found.

    Raises:
        DataError: more missing pictures, empty captions or unreadable rows than ``read.max_bad`` allows, or nothing is left.
    """
    drops = _Drops()
    image_of = np.asarray(found.image_of, dtype=np.int64)
    _refuse(found.bad, len(found.bad) + len(found.captions), "row", "unreadable", found.location, read)
    drops.add("unreadable row", found.bad)

    cleaned: dict[str, str] = {}
    texts = [
        cleaned[text] if text in cleaned else cleaned.setdefault(text, clean_caption(text, captions))
        for text in found.captions
    ]
    empty = [i for i, text in enumerate(texts) if not text]
    places = [found.place(i) for i in empty[:_SHOWN]] + [""] * (len(empty) - _SHOWN)
    _refuse(places, len(texts), "caption", "empty", found.location, read)
    drops.add("empty caption", places)

    sizes = found.images.sizes()
    gone = np.flatnonzero(sizes <= 0)
    names = [found.images.name(row) for row in gone[:_SHOWN].tolist()] + [""] * (len(gone) - _SHOWN)
    _refuse(names, len(sizes), "picture", "missing or empty", found.location, read)
    drops.add("missing picture", names)

    kept_M = (sizes > 0)[image_of] & np.array([bool(text) for text in texts], dtype=bool)
    captioned = np.zeros(len(sizes), dtype=bool)
    captioned[image_of[kept_M]] = True
    alone = np.flatnonzero(~captioned & (sizes > 0))
    drops.add(
        "picture without a caption",
        [found.images.name(row) for row in alone[:_SHOWN].tolist()] + [""] * (len(alone) - _SHOWN),
    )

    splits, note = _splits(found, captioned, drops)
    rows = np.flatnonzero(captioned if splits is None else captioned & (splits != ""))
    if not len(rows):
        shown = f", the first: {drops.shown[0]}" if drops.shown else ""
        raise DataError(
            f"{found.location}: no picture with a caption is left of {count_text(len(sizes), 'picture')}{shown}"
        )

    position = np.full(len(sizes), -1, dtype=np.int64)
    position[rows] = np.arange(len(rows))
    kept = np.flatnonzero(kept_M & (position[image_of] >= 0))
    kept = kept[np.argsort(position[image_of[kept]], kind="stable")]
    images = found.images.take(rows)
    ids = _ids(images, None if found.ids is None else [found.ids[row] for row in rows.tolist()], sizes[rows], read)
    keys = {text: text_key(text) for text in set(texts)}
    columns = {**found.columns, "image_id": found.columns.get("image_id", _SAME[read.duplicates])}
    if splits is None or not split.own:
        parts = divide(ids, split.shares, split.seed)
        why = note if split.own else "the data's own are not wanted"
        columns["split"] = f"divided by a hash of the picture ({why})" if why else "divided by a hash of the picture"
    else:
        parts = splits[rows]
    return Pairs(
        images,
        tuple(texts[i] for i in kept.tolist()),
        position[image_of[kept]],
        image_ids=ids,
        text_ids=np.array([keys[texts[i]] for i in kept.tolist()], dtype=np.int64),
        splits=parts,
        dropped=drops.counts,
        examples=tuple(drops.shown),
        columns=columns,
        location=found.location,
    )


_SAME = {"content": "equal files are the same picture", "name": "each file is a picture of its own"}


def _refuse(names: Sequence[str], total: int, noun: str, what: str, location: str, read: ReadOptions) -> None:
    if len(names) > read.max_bad * total:
        shown = ", ".join(name for name in names[:_SHOWN] if name)
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        raise DataError(
            f"{location}: {len(names):,} of {count_text(total, noun)} are {what} ({len(names) / total:.1%}, allowed "
            f"{read.max_bad:.1%}): {shown}{more}; mend them, or allow more with --max-bad"
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
    left_out = [
        f"{found.images.name(row)} ({given[row]!r})"
        for row in np.flatnonzero(captioned).tolist()
        if not known[given[row]]
    ]
    drops.add("split of another name", left_out)
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
    """(N,) the first picture with the same bytes. Only those of equal size are read."""
    first = np.arange(len(images))
    _, group, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    seen: dict[tuple[int, bytes], int] = {}
    for row in np.flatnonzero(counts[group] > 1).tolist():
        try:
            digest = blake2b(images.data(row), digest_size=16).digest()
        except BadSampleError:
            continue
        first[row] = seen.setdefault((int(sizes[row]), digest), row)
    return first
