"""Sentences to be judged: about two pictures (NLVR2), about one (SNLI-VE), from published files, one's own tables, digit scenes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mc_core.errors import DataError
from mc_vision_language.data.options import ReadOptions
from mc_vision_language.data.records import Record, field, need, read_records, text_list
from mc_vision_language.data.task_rows import Pictures, TaskRows, split_name
from mc_vision_language.tasks.config import ENTAILMENT_LABELS, STATEMENT_LABELS

_UNDECIDED = "-"  # people did not agree
_TRUTH = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), 1),
    **dict.fromkeys(("false", "0", "0.0", "no"), 0),
}
_RELATION = {name: number for number, label in enumerate(ENTAILMENT_LABELS) for name in (label, str(number))}


@dataclass(frozen=True)
class Judged(TaskRows):
    """Sentences with a label; see :class:`~mc_vision_language.data.task_rows.TaskRows`.

    Attributes:
        texts: M sentences as written.
        labels: (M,) int64, indices into ``label_names``.
        ids: M names of the rows.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    ids: tuple[str, ...]

    columns: ClassVar[tuple[str, ...]] = ("texts", "labels", "ids")
    label_names: ClassVar[tuple[str, ...]] = ()


@dataclass(frozen=True)
class Statements(Judged):
    """Sentences about two pictures, true or false; ``image_of`` is (M, 2)."""

    label_names: ClassVar[tuple[str, ...]] = STATEMENT_LABELS


@dataclass(frozen=True)
class Entailments(Judged):
    """Sentences that a picture contradicts (0), leaves open (1) or confirms (2)."""

    label_names: ClassVar[tuple[str, ...]] = ENTAILMENT_LABELS


@dataclass(frozen=True)
class _Row:
    record: Record
    images: tuple[tuple[str, ...], ...]
    text: str
    label: int | None
    split: str = ""
    id: str = ""


def open_statements(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: str = "",
) -> Statements:
    """True and false sentences about two pictures each.

    - NLVR2: its JSON lines, with pictures in ``<folder>``, ``<folder>/<split>`` or ``<folder>/images/<split>/<directory>``;
    - ALBEF's own list, with ``images``, ``sentence``, ``label``;
    - a table with ``image_1``, ``image_2``, ``sentence``, ``label``;
    - NLVR as a tar of pictures with a JSON beside each: one picture that shows everything takes both places (ours).

    Args:
        source: the file.
        images: folder of the pictures; default: that of the file.
        read: how many pictures may be missing.
        split: of rows that do not say theirs.

    Raises:
        DataError: a file that cannot be read, a label that is neither true nor false, or more missing pictures than allowed.
    """
    source = Path(source)
    records = read_records(source)
    parts = _collected(source, records, (_statement(record) for record in records), images, read, split)
    return Statements(*parts)


def open_entailments(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: str = "",
) -> Entailments:
    """Sentences that a picture confirms, contradicts or leaves open.

    - SNLI-VE: its JSON lines (``Flickr30K_ID``, ``sentence2``, ``gold_label``); rows on which people did not agree are left out;
    - a table, or ALBEF's own list, with ``image``, ``sentence``, ``label``.

    Args:
        source: the file.
        images: folder of the pictures; default: that of the file.
        read: how many pictures may be missing.
        split: of rows that do not say theirs.

    Raises:
        DataError: a file that cannot be read, an unknown label, or more missing pictures than allowed.
    """
    source = Path(source)
    records = read_records(source)
    parts = _collected(source, records, (_entailment(record) for record in records), images, read, split)
    ids, rows = parts[2][:, 0], parts[3:]
    return Entailments(parts[0], parts[1], ids, *rows)


def _statement(record: Record) -> _Row:
    text = str(field(record, "sentence", "statement", "text", "caption") or "").strip()
    label = _label(record, _TRUTH, need(record, "label"))
    told = str(field(record, "split") or "")
    name = str(field(record, "identifier", "id") or "")
    if record.picture is not None:
        one = (record.picture,)
        return _Row(record, (one, one), text, label, told, name)
    several = field(record, "images")
    if several is not None:
        files = text_list(several)
        if len(files) != 2:
            raise DataError(f"{record.place}: {len(files)} images; a statement is about two")
        return _Row(record, ((files[0],), (files[1],)), text, label, told, name)
    first = field(record, "image_1", "image1", "left_image", "left")
    second = field(record, "image_2", "image2", "right_image", "right")
    if first is not None and second is not None:
        return _Row(record, ((str(first),), (str(second),)), text, label, told, name)
    if not name:
        raise DataError(
            f"{record.place}: no image_1 and image_2, and no identifier of NLVR2; it has {', '.join(record.fields)}"
        )
    base, _, _ = name.rpartition("-")
    part = name.partition("-")[0]
    folder = f"images/{part}/{record.fields['directory']}" if "directory" in record.fields else f"images/{part}"
    places = tuple(
        (
            f"{base}-img{side}.png",
            f"{part}/{base}-img{side}.png",
            f"{folder}/{base}-img{side}.png",
            f"images/{part}/{base}-img{side}.png",
        )
        for side in (0, 1)
    )
    return _Row(record, places, text, label, told or part, name)


def _entailment(record: Record) -> _Row:
    text = str(field(record, "sentence2", "hypothesis", "sentence", "text", "caption") or "").strip()
    told = need(record, "gold_label", "label")
    label = None if str(told).strip() == _UNDECIDED else _label(record, _RELATION, told)
    flickr = field(record, "Flickr30K_ID", "Flikr30kID", "Flickr30kID")
    file = (
        f"{str(flickr).removesuffix('.jpg')}.jpg"
        if flickr is not None
        else str(need(record, "image", "image_path", "path", "file"))
    )
    places = (file, f"flickr30k-images/{file}", f"flickr30k_images/{file}")
    return _Row(
        record, (places,), text, label, str(field(record, "split") or ""), str(field(record, "pairID", "id") or "")
    )


def _label(record: Record, known: Mapping[str, int], given: Any) -> int:
    number = known.get(str(given).strip().lower())
    if number is None:
        raise DataError(
            f"{record.place}: label {given!r}; labels are {', '.join(name for name in known if name.isalpha())}"
        )
    return number


def _collected(
    source: Path,
    records: Sequence[Record],
    rows: Iterator[_Row],
    images: str | os.PathLike[str] | None,
    read: ReadOptions,
    split: str,
) -> tuple[Any, ...]:
    tar = records[0].picture is not None
    pictures = Pictures(Path(images) if images is not None else source if tar else source.parent, str(source), read)
    kept: list[_Row] = []
    places: list[list[int]] = []
    for one in rows:
        found = [pictures.row(*names) for names in one.images]
        known = [row for row in found if row is not None]
        if not one.text:
            pictures.drop("empty sentence", one.record, "the sentence is empty")
        elif one.label is None:
            pictures.drop("no label", one.record, "people did not agree on a label")
        elif len(known) < len(found):
            missing = one.images[found.index(None)][0]
            pictures.drop("missing image", one.record, f"there is no {pictures.root / missing}")
        else:
            kept.append(one)
            places.append(known)
    image_set, ids = pictures.finished(len(kept))
    return (
        image_set,
        ids,
        np.array(places, dtype=np.int64),
        np.array([split_name(one.split or split) for one in kept]),
        pictures.dropped,
        pictures.examples,
        tuple(one.text for one in kept),
        np.array([one.label for one in kept], dtype=np.int64),
        tuple(one.id or str(number) for number, one in enumerate(kept)),
    )
