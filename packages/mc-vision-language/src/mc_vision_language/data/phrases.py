"""Phrases that name something in a picture, with its box: RefCOCO and its siblings, pictures with boxes in a tar, tables.

Legend: N pictures, M phrases, K proposals of a picture.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mc_core.errors import DataError
from mc_core.files import read_json
from mc_vision_language.data.captions import clean_caption, text_key
from mc_vision_language.data.images import ImageSet
from mc_vision_language.data.options import CaptionOptions, ReadOptions
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.records import Record, field, need, numbers, read_records, text_list, understood
from mc_vision_language.data.task_rows import Pictures, TaskRows, split_name

_SLACK = 1.5  # pixels by which a published box may reach beyond its picture
_NOWHERE = (np.nan,) * 4


@dataclass(frozen=True)
class Phrases(TaskRows):
    """Phrases with boxes; see :class:`~mc_vision_language.data.task_rows.TaskRows`.

    Attributes:
        texts: M phrases as written.
        boxes: (M, 4) x1, y1, x2, y2 in pixels of the picture (x2, y2 exclusive); NaN where the box is not known, as in training.
        sizes: (M, 2) width and height of the picture that the box is measured in; NaN where it is not known.
        ids: M names of the rows.
        proposals: boxes to choose from, (K, 4) for each picture that has some, by its number.
    """

    texts: tuple[str, ...]
    boxes: np.ndarray
    sizes: np.ndarray
    ids: tuple[str, ...]
    proposals: Mapping[int, np.ndarray]

    columns: ClassVar[tuple[str, ...]] = ("texts", "boxes", "sizes", "ids")

    def located(self) -> Phrases:
        """Those whose box is known.

        Raises:
            DataError: none is.
        """
        rows = np.flatnonzero(np.isfinite(self.boxes).all(1))
        if not len(rows):
            raise DataError("no phrase has a box to compare with: give the file of boxes too")
        return self if len(rows) == len(self) else self.take(rows)

    def pairs(self, captions: CaptionOptions = CaptionOptions()) -> Pairs:  # noqa: B008 - frozen
        """Pictures with their phrases as captions: what weakly supervised training sees, without boxes."""
        order = np.argsort(self.image_of, kind="stable")
        used, image_of = np.unique(self.image_of[order], return_inverse=True)
        texts = [clean_caption(self.texts[row], captions) for row in order.tolist()]
        splits = np.full(len(used), "", dtype=self.splits.dtype)
        splits[image_of] = self.splits[order]
        return Pairs(
            self.images.take(used),
            tuple(texts),
            image_of,
            self.image_ids[used],
            np.array([text_key(text) for text in texts], dtype=np.int64),
            splits,
            dropped=Counter(self.dropped),
            location="phrases",
        )


def open_phrases(
    source: str | os.PathLike[str],
    *,
    images: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    proposals: str | os.PathLike[str] | None = None,
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: str = "",
) -> Phrases:
    """Phrases from any layout understood.

    - RefCOCO, RefCOCO+, RefCOCOg: the list of references as JSON (the published pickle, written as JSON) with ``instances.json`` as
      ``boxes``, and detected boxes as ``proposals``: ``{image id: [[x, y, width, height], …]}`` or a list with ``image_id`` and
      ``box``;
    - a tar of pictures with ``objects`` (``category``, ``bbox``) in the JSON beside each: the names of what occurs once, and
      all boxes as proposals;
    - a table with ``image``, ``phrase`` and, where it is known, ``box`` (x1, y1, x2, y2).

    Args:
        source: the file.
        images: folder of the pictures; default: that of the file.
        boxes: annotations of RefCOCO; default: ``instances.json`` beside the file.
        proposals: detected boxes.
        read: how many pictures may be missing.
        split: of rows that do not say theirs.

    Raises:
        DataError: a file that cannot be read, a box outside its picture, or more missing pictures than allowed.
    """
    source = Path(source)
    records = read_records(source)
    tar = records[0].picture is not None
    pictures = Pictures(Path(images) if images is not None else source if tar else source.parent, str(source), read)
    if tar:
        rows, found = _of_objects(records, pictures)
    elif "sentences" in records[0].fields:
        beside = source.with_name("instances.json")
        if boxes is None and not beside.is_file():
            raise DataError(f"{source}: the boxes of these references are missing; give instances.json as boxes")
        rows, found = _of_references(records, Path(boxes) if boxes is not None else beside, pictures, proposals)
    else:
        rows, found = _of_table(records, pictures, proposals)
    image_set, ids = pictures.finished(len(rows))
    sizes = _sizes(rows, image_set)
    for row, (width, height) in zip(rows, sizes.tolist(), strict=True):
        _check_box(row, width, height)
    return Phrases(
        image_set,
        ids,
        np.array([row.image for row in rows], dtype=np.int64),
        np.array([split_name(row.split or split) for row in rows]),
        pictures.dropped,
        pictures.examples,
        tuple(row.text for row in rows),
        np.array([row.box for row in rows], dtype=np.float64),
        sizes,
        tuple(row.id or str(number) for number, row in enumerate(rows)),
        found,
    )


@dataclass(frozen=True)
class _Phrase:
    record: Record
    image: int
    text: str
    box: Sequence[float]
    split: str = ""
    id: str = ""
    size: tuple[float, float] | None = None


def _corners(box: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 of x, y, width, height, as COCO has them."""
    x, y, width, height = (float(one) for one in box[:4])
    return [x, y, x + width, y + height]


def _of_references(
    records: Sequence[Record], boxes: Path, pictures: Pictures, proposals: str | os.PathLike[str] | None
) -> tuple[list[_Phrase], dict[int, np.ndarray]]:
    content = read_json(boxes)
    if not isinstance(content, dict) or "annotations" not in content or "images" not in content:
        raise DataError(f"{boxes}: no COCO annotations (images and annotations)")
    with understood(str(boxes)):
        known = {one["id"]: _corners(one["bbox"]) for one in content["annotations"]}
        shown = {
            one["id"]: (str(one["file_name"]), (float(one["width"]), float(one["height"]))) for one in content["images"]
        }
    rows: list[_Phrase] = []
    number_of: dict[str, int] = {}
    for record in records:
        name, image = need(record, "ann_id"), shown.get(need(record, "image_id"))
        if name not in known or image is None:
            raise DataError(f"{record.place}: annotation {name} of image {record.fields['image_id']} is not in {boxes}")
        file, size = image
        row = pictures.row(file, f"train2014/{file}", f"images/{file}")
        if row is None:
            pictures.drop("missing image", record, f"there is no {pictures.root / file}")
            continue
        number_of[str(record.fields["image_id"])] = row
        with understood(record.place):
            sentences = [dict(one) for one in need(record, "sentences")]
        for sentence in sentences:
            text = str(sentence.get("sent", sentence.get("raw", ""))).strip()
            if not text:
                pictures.drop("empty phrase", record, "a phrase is empty")
                continue
            told = str(record.fields.get("split", ""))
            name_of_row = str(sentence.get("sent_id", ""))
            rows.append(_Phrase(record, row, text, known[name], told, name_of_row, size))
    return rows, _proposals(proposals, number_of)


def _of_objects(records: Sequence[Record], pictures: Pictures) -> tuple[list[_Phrase], dict[int, np.ndarray]]:
    rows: list[_Phrase] = []
    found: dict[int, np.ndarray] = {}
    for record in records:
        with understood(record.place):
            objects = [one for one in record.fields.get("objects") or [] if not one.get("iscrowd")]
            boxes = [_corners(one["bbox"]) for one in objects]
            times = Counter(str(one["category"]) for one in objects)
            if not objects:
                continue
            size = (float(need(record, "width")), float(need(record, "height")))
        image = pictures.row(str(record.picture))
        assert image is not None
        found[image] = np.array(boxes)
        for one, box in zip(objects, found[image].tolist(), strict=True):
            if times[str(one["category"])] == 1:
                rows.append(
                    _Phrase(record, image, str(one["category"]), box, "", f"{record.picture}#{one['category']}", size)
                )
    if not rows:
        raise DataError(f"{pictures.source}: no picture has objects of which a category occurs once")
    return rows, found


def _of_table(
    records: Sequence[Record], pictures: Pictures, proposals: str | os.PathLike[str] | None
) -> tuple[list[_Phrase], dict[int, np.ndarray]]:
    rows: list[_Phrase] = []
    number_of: dict[str, int] = {}
    for record in records:
        file = str(need(record, "image", "image_path", "path", "file"))
        image = pictures.row(file)
        if image is None:
            pictures.drop("missing image", record, f"there is no {pictures.root / file}")
            continue
        number_of[str(record.fields.get("image_id", file))] = image
        given = field(record, "box", "bbox")
        try:
            box = _NOWHERE if given is None else tuple(numbers(given))
        except ValueError as error:
            raise DataError(f"{record.place}: box {given!r} is not four numbers") from error
        if len(box) != 4:
            raise DataError(f"{record.place}: box {given!r} has {len(box)} numbers; give x1, y1, x2, y2")
        texts = text_list(field(record, "phrase", "phrases", "text", "caption", "sentence") or "")
        if not texts:
            pictures.drop("empty phrase", record, "the phrase is empty")
        told = str(field(record, "split") or "")
        rows += [_Phrase(record, image, text, box, told, str(field(record, "id", "ref_id") or "")) for text in texts]
    return rows, _proposals(proposals, number_of)


def _proposals(path: str | os.PathLike[str] | None, number_of: Mapping[str, int]) -> dict[int, np.ndarray]:
    """Boxes to choose from, by the number of the picture."""
    if path is None:
        return {}
    content: Any = read_json(path)
    gathered: dict[str, list[list[float]]] = {}
    with understood(str(path)):
        if isinstance(content, dict):
            gathered = {str(name): [_corners(box) for box in found] for name, found in content.items()}
        elif isinstance(content, list):
            for one in content:
                gathered.setdefault(str(one["image_id"]), []).append(_corners(one.get("box", one.get("bbox"))))
    found = {number_of[name]: np.array(boxes) for name, boxes in gathered.items() if name in number_of and boxes}
    if not found:
        raise DataError(f"{path}: no proposals for any of these pictures; is it the file of this data set?")
    return found


def _sizes(rows: Sequence[_Phrase], images: ImageSet) -> np.ndarray:
    """(M, 2) width and height, as annotated or else as the picture has it; pictures without a box are not read."""
    read: dict[int, tuple[float, float]] = {}
    for row in rows:
        if row.size is not None:
            read[row.image] = row.size
        elif row.image not in read and not np.isnan(row.box[0]):
            read[row.image] = images.read(row.image).size
    return np.array([read.get(row.image, (np.nan, np.nan)) for row in rows], dtype=np.float64).reshape(-1, 2)


def _check_box(row: _Phrase, width: float, height: float) -> None:
    x1, y1, x2, y2 = row.box
    if np.isnan(x1):
        return
    outside = x1 < -_SLACK or y1 < -_SLACK or x2 > width + _SLACK or y2 > height + _SLACK
    if outside or not (x1 < x2 and y1 < y2):
        what = "lies outside" if outside else "has no area in"
        box = [round(float(value), 1) for value in row.box]
        raise DataError(
            f"{row.record.place}: box {box} {what} the picture of {width:.0f} × {height:.0f} pixels; boxes are "
            "x1, y1, x2, y2 in its pixels"
        )
