"""Annotated pictures from the embedded digit scenes, from tars, from COCO's files; and any pairs, of which nothing else is known.

Legend: P pictures, M boxes of a picture, C classes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.files import StrPath, read_json
from mc_core.samples import DIGITS, QUESTION_KINDS, DigitScenes
from mc_core.shards import Places, ShardFile, walk_shard
from mc_vision_language.data.annotated import AnnotatedPairs, Boxes, renumbered
from mc_vision_language.data.assembling import Found, assemble
from mc_vision_language.data.class_masks import ArrayMasks, ClassMasks, DrawnMasks, StoredMasks
from mc_vision_language.data.columns import caption_list, split_name
from mc_vision_language.data.images import FileImages, StoredImages
from mc_vision_language.data.opening import open_pairs
from mc_vision_language.data.options import CaptionOptions, ColumnOptions, ReadOptions, SplitOptions
from mc_vision_language.data.pairs import Pairs, scene_pairs
from mc_vision_language.data.questions import Questions
from mc_vision_language.data.records import text_list
from mc_vision_language.data.scene_tasks import scene_questions
from mc_vision_language.data.stored_images import TarImages

_MASK = "seg.png"
_INSTANCES = re.compile(r"instances_?(.*)\.json")
_NOTHING = "picture"  # stands for a caption where there is none, until the pictures are sorted out
_WITHOUT_AREA = "box without area"


def scene_annotations(
    scenes: Mapping[str, DigitScenes],
    *,
    questions: int = 4,
    kinds: Sequence[str] = QUESTION_KINDS,
    seed: int = 0,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
) -> AnnotatedPairs:
    """Digit scenes with all there is to know of them: a caption, boxes, the class of every pixel, questions; classes are digits.

    Args:
        scenes: by split, such as ``{"train": …, "test": …}``.
        questions: most about each scene; 0: none.
        kinds: of questions.
        seed: another seed, other questions.
        captions: what of a caption is kept.

    >>> from mc_core.samples import digit_scenes
    >>> found = scene_annotations({"train": digit_scenes(3, size=32, digits=(2, 2))}, questions=1)
    >>> found.missing(), found.boxes.box_offsets.tolist(), found.labels.sum(1).tolist(), found.class_names[3]
    ((), [0, 2, 4, 6], [2, 2, 2], 'three')
    """
    pairs = scene_pairs(scenes, captions=captions)
    rows, boxes, classes = [], [], []
    masks, start = [], 0
    for part in scenes.values():
        digit, side = part.objects.digit.numpy(), part.images.shape[-1]
        corner = part.boxes.numpy().astype(np.float64) / side
        scene, place = np.nonzero(part.boxes.numpy()[..., 2] >= 0)  # a digit may be hidden behind later ones
        found = corner[scene, place]
        boxes.append(np.concatenate([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], 1))
        classes.append(digit[scene, place])
        rows.append(scene + start)
        codes = np.concatenate([np.zeros((len(part), 1), np.int64), digit + 1], 1)
        masks.append(codes[np.arange(len(part))[:, None, None], part.masks.numpy()])
        start += len(part)
    row = np.concatenate(rows)
    ragged = Boxes(
        np.concatenate(boxes).astype(np.float32),
        np.concatenate(classes).astype(np.int64),
        np.searchsorted(row, np.arange(start + 1)).astype(np.int64),
        np.ones(start, dtype=bool),
        np.zeros(len(row), dtype=bool),
    )
    asked = None
    if questions:
        asked = replace(
            scene_questions(scenes, per_scene=questions, seed=seed, kinds=kinds),
            images=pairs.images,
            image_ids=pairs.image_ids,
        )
    return AnnotatedPairs(pairs, ragged, ArrayMasks(np.concatenate(masks)), None, DIGITS, asked)


def open_annotated(
    source: StrPath,
    *,
    images: StrPath | None = None,
    columns: ColumnOptions = ColumnOptions(),  # noqa: B008 - frozen
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
    read: ReadOptions = ReadOptions(),  # noqa: B008 - frozen
    split: SplitOptions = SplitOptions(),  # noqa: B008 - frozen
) -> AnnotatedPairs:
    """Pictures with what is known of them, from wherever they are.

    - a tar, or WebDataset shards, with a ``.json`` beside each picture that may hold captions, ``objects`` (``category`` or
      ``category_id``, ``bbox`` as x, y, width, height in pixels, ``iscrowd``) and ``qa`` (``question``, ``answers``); with a
      ``.seg.png`` beside those whose pixels are annotated; and with a ``categories.json``, the name of each number;
    - a folder of COCO with ``instances_*.json`` in it or in its ``annotations``, ``captions_*.json`` where there are some, and
      folders of pictures named as the files end; or one such ``instances_*.json``;
    - anything else that :func:`~mc_vision_language.data.opening.open_pairs` takes: pictures of which captions alone are known.

    Args:
        source: as above.
        images: folder of the pictures, where they do not lie beside the annotations.
        columns, captions, read, split: see :func:`~mc_vision_language.data.opening.open_pairs`.

    Raises:
        DataError: missing, damaged or ambiguous data; the message says which file and entry.
    """
    text = os.path.expanduser(os.fspath(source))
    place = None if images is None else os.path.expanduser(os.fspath(images))
    if parts := _coco_parts(text):
        return _open_coco(text, parts, place, captions, read, split)
    try:
        pairs = open_pairs(text, images=place, columns=columns, captions=captions, read=read, split=split)
    except DataError:
        pairs = _pictures_of_tar(text, read, split) if text.lower().endswith(".tar") else None
        if pairs is None:
            raise
    if isinstance(pairs.images, TarImages):
        return _annotations_of_tar(pairs, pairs.images)
    return AnnotatedPairs(pairs)


# tars


@dataclass
class _Note:
    """What lies beside a picture: where, its record, and where its mask lies."""

    place: str
    record: dict[str, Any]
    mask: tuple[int, int, int] | None = None  # shard, first byte, size


def _pictures_of_tar(pattern: str, read: ReadOptions, split: SplitOptions) -> Pairs | None:
    """Pictures of a tar without captions; None where nothing else is known of them either."""
    try:
        images = TarImages.every(pattern, read.cache)
    except DataError:
        return None
    notes = _notes(images)[0]
    if not any(set(note.record) & {"objects", "qa"} or note.mask for note in notes):
        return None
    splits = [str(note.record.get("split", "")) for note in notes]
    return _without_captions(images, splits, pattern, read, split)


def _notes(images: TarImages) -> tuple[list[_Note], dict[Any, str]]:
    """The note of each picture, and the names of categories by their numbers."""
    walked: dict[int, Places] = {}
    files: dict[int, ShardFile] = {}
    names: dict[Any, str] = {}
    for number in sorted(set(images.shard_of[images.rows].tolist())):
        walked[number], files[number] = walk_shard(images.shards[number]), ShardFile(images.shards[number])
        for key, endings in walked[number].items():
            if os.path.basename(key) == "categories" and "json" in endings:
                where = f"{images.shards[number]}/{key}.json"
                names |= _category_names(_parsed(files[number].read(*endings["json"]), where), where)
    found = []
    for row in range(len(images)):
        number = int(images.shard_of[images.rows[row]])
        folder, base = os.path.split(images.key(row))
        key = os.path.join(folder, base.partition(".")[0])
        endings = walked[number].get(key, {})
        note = _Note(f"{images.shards[number]}/{key}.json", {})
        if "json" in endings:
            record = _parsed(files[number].read(*endings["json"]), note.place)
            note.record = record if isinstance(record, dict) else {}
        if _MASK in endings:
            note.mask = (number, *endings[_MASK])
        found.append(note)
    return found, names


def _parsed(data: bytes, place: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DataError(f"{place}: not JSON ({error})") from error


def _category_names(content: Any, place: str) -> dict[Any, str]:
    """Names by number, of a mapping, or of a list of mappings with id and name."""
    try:
        if isinstance(content, dict):
            return {int(number): str(name) for number, name in content.items()}
        return {int(one["id"]): str(one["name"]) for one in content}
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{place}: categories are {{"1": "person", …}} or [{{"id": 1, "name": "person"}}, …]'
        ) from error


def _annotations_of_tar(pairs: Pairs, images: TarImages) -> AnnotatedPairs:
    notes, names = _notes(images)
    objects = [note.record.get("objects") for note in notes]
    if not names:
        names = _names_of_objects(objects, notes)
    class_names, number_of = renumbered(names)
    dropped: Counter[str] = Counter()
    boxes = masks = None
    if any(one is not None for one in objects):
        number_of |= {name: number for number, name in enumerate(class_names)}
        gathered = [
            None if given is None else _boxes_of(given, _size(note, images, row), number_of, note.place, dropped)
            for row, (given, note) in enumerate(zip(objects, notes, strict=True))
        ]
        boxes = _ragged(gathered)
    if any(note.mask is not None for note in notes):
        masks = _stored_masks(images, notes, {number: place for number, place in number_of.items() if number in names})
    pairs = replace(pairs, dropped=pairs.dropped + dropped)
    return AnnotatedPairs(pairs, boxes, masks, None, class_names, _questions(pairs, notes))


def _names_of_objects(objects: Sequence[Any], notes: Sequence[_Note]) -> dict[Any, str]:
    """Names by the numbers that objects give, else by the alphabet."""
    found: dict[Any, str] = {}
    named: set[str] = set()
    for given, note in zip(objects, notes, strict=True):
        for one in given or ():
            if not isinstance(one, dict) or ("category" not in one and "category_id" not in one):
                raise DataError(f"{note.place}: an object without a category")
            name = str(one.get("category", one.get("category_id")))
            named.add(name)
            if "category_id" in one:
                found[int(one["category_id"])] = name
    if len(set(found.values())) == len(named):
        return found
    return dict(enumerate(sorted(named)))


def _size(note: _Note, images: StoredImages, row: int) -> tuple[float, float]:
    """Width and height that boxes are measured in."""
    given = note.record.get("width"), note.record.get("height")
    return (float(given[0]), float(given[1])) if all(given) else images.read(row).size  # type: ignore[arg-type]


def _boxes_of(
    objects: Any, size: tuple[float, float], number_of: Mapping[Any, int], place: str, dropped: Counter[str]
) -> _Gathered:
    """Boxes of one picture; those that have no area in it are counted."""
    found = _Gathered()
    if not isinstance(objects, list):
        raise DataError(f"{place}: objects is a {type(objects).__name__}, not a list")
    for position, one in enumerate(objects):
        where = f"{place}, object {position}"
        if not isinstance(one, dict):
            raise DataError(f"{where}: a mapping with category and bbox is needed")
        key = one["category"] if one.get("category") in number_of else one.get("category_id", one.get("category"))
        if key not in number_of:
            raise DataError(f"{where}: category {key!r} is not among the {len(number_of)} that have a name")
        box = _shares(one.get("bbox"), size, where)
        if box is None:
            dropped[_WITHOUT_AREA] += 1
        else:
            found.add(box, number_of[key], bool(one.get("iscrowd")))
    return found


@dataclass
class _Gathered:
    """Boxes of one picture."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def add(self, box: tuple[float, float, float, float], number: int, crowd: bool) -> None:
        """One more."""
        self.boxes.append(box)
        self.classes.append(number)
        self.crowd.append(crowd)


def _ragged(gathered: Sequence[_Gathered | None]) -> Boxes:
    return Boxes.of(
        [None if one is None else one.boxes for one in gathered],
        [[] if one is None else one.classes for one in gathered],
        [[] if one is None else one.crowd for one in gathered],
    )


def _shares(box: Any, size: tuple[float, float], where: str) -> tuple[float, float, float, float] | None:
    """Centre, width and height as shares, of x, y, width, height in pixels, cut at the picture; None if nothing is left."""
    try:
        x, y, width, height = (float(one) for one in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: bbox {box!r} is not four numbers x, y, width, height") from error
    if not np.isfinite([x, y, width, height]).all():
        raise DataError(f"{where}: bbox {box!r} is not finite")
    low = min(max(x / size[0], 0.0), 1.0), min(max(y / size[1], 0.0), 1.0)
    high = min(max((x + width) / size[0], 0.0), 1.0), min(max((y + height) / size[1], 0.0), 1.0)
    wide, tall = high[0] - low[0], high[1] - low[1]
    if wide <= 0 or tall <= 0:
        return None
    return (low[0] + wide / 2, low[1] + tall / 2, wide, tall)


def _stored_masks(images: TarImages, notes: Sequence[_Note], number_of: Mapping[Any, int]) -> StoredMasks:
    if not number_of:
        raise DataError(
            f"{images.location}: {_MASK} beside pictures, but no categories.json and no objects with category_id say what their "
            "levels mean"
        )
    rows = [row for row, note in enumerate(notes) if note.mask is not None]
    places = np.array([notes[row].mask for row in rows], dtype=np.int64).reshape(-1, 3)
    members = [f"{images.key(row).partition('.')[0]}.{_MASK}" for row in rows]
    files = TarImages(
        images.shards, places[:, 0], members, places[:, 1].copy(), places[:, 2].copy(), location=images.location
    )
    row_of = np.full(len(notes), -1, dtype=np.int64)
    row_of[rows] = np.arange(len(rows))
    return StoredMasks(files, row_of, {0: 0, **{int(level): 1 + number for level, number in number_of.items()}})


def _questions(pairs: Pairs, notes: Sequence[_Note]) -> Questions | None:
    rows, texts, answers, ids = [], [], [], []
    for row, note in enumerate(notes):
        for position, one in enumerate(note.record.get("qa") or ()):
            if not isinstance(one, dict) or not str(one.get("question", "")).strip():
                raise DataError(f"{note.place}, qa {position}: no question")
            rows.append(row)
            texts.append(str(one["question"]).strip())
            given = text_list(one.get("answers", one.get("answer", [])))
            answers.append(tuple(text.replace("_", " ") for text in given))  # DAQUAR writes ``coffee_table``
            ids.append(f"{pairs.images.name(row)}#{position}")
    if not rows:
        return None
    image_of = np.array(rows, dtype=np.int64)
    return Questions(
        pairs.images,
        pairs.image_ids,
        image_of,
        pairs.splits[image_of],
        Counter(),
        {},
        tuple(texts),
        tuple(answers),
        ("",) * len(rows),
        np.ones(len(rows)),
        tuple(ids),
    )


def _without_captions(
    images: StoredImages, splits: Sequence[str], location: str, read: ReadOptions, split: SplitOptions
) -> Pairs:
    """Pictures without a caption, looked through as those with captions are."""
    count = len(images)
    found = Found(images, [_NOTHING] * count, range(count), images.name, location, {"image": "pictures"}, None, splits)
    pairs = assemble(found, CaptionOptions(), read, split)
    nothing = np.zeros(0, dtype=np.int64)
    return replace(pairs, captions=(), image_of=nothing, text_ids=nothing)


# COCO


@dataclass
class _Part:
    """Pictures of one ``instances_*.json``, in the order of the file."""

    path: str
    suffix: str
    entries: list[dict[str, Any]]
    notes: dict[Any, list[dict[str, Any]]]
    names: dict[Any, str]


def _coco_parts(source: str) -> list[str]:
    """Files of instances, if this is COCO's layout."""
    if os.path.isfile(source):
        return [source] if _INSTANCES.fullmatch(os.path.basename(source)) else []
    folders = [source, os.path.join(source, "annotations")]
    found = [
        os.path.join(folder, name)
        for folder in folders
        if os.path.isdir(folder)
        for name in sorted(os.listdir(folder))
        if _INSTANCES.fullmatch(name)
    ]
    return found


def _open_coco(
    source: str,
    paths: Sequence[str],
    images: str | None,
    captions: CaptionOptions,
    read: ReadOptions,
    split: SplitOptions,
) -> AnnotatedPairs:
    parts = [_coco_part(path) for path in paths]
    names: dict[Any, str] = {}
    for part in parts:
        for number, name in part.names.items():
            if names.setdefault(number, name) != name:
                raise DataError(f"{part.path}: category {number} is '{name}' here and '{names[number]}' in {paths[0]}")
    class_names, number_of = renumbered(names)
    files, keys, texts, image_of, splits = [], [], [], [], []
    for part in parts:
        folder = _coco_folder(part, images)
        said = _coco_captions(part)
        for entry in part.entries:
            lines = said.get(entry["id"], [])
            texts += lines
            image_of += [len(files)] * len(lines)
            files.append(os.path.join(folder, entry["file_name"]))
            keys.append(os.path.join(part.suffix, entry["file_name"]))
            splits.append(_split_of(part.suffix))
    stored = FileImages(files, keys=keys, location=source)
    own = splits if len(set(splits)) > 1 else None
    if texts:
        found = Found(
            stored,
            texts,
            image_of,
            lambda caption: stored.name(image_of[caption]),
            source,
            {"image": "file_name of images", "caption": "captions of the same image"},
            None,
            own,
        )
        pairs = assemble(found, captions, read, split)
    else:
        pairs = _without_captions(stored, own or [""] * len(files), source, read, split)
    kept = pairs.images.rows  # type: ignore[attr-defined]
    dropped: Counter[str] = Counter()
    boxes, masks = _coco_annotations(parts, number_of, kept, dropped)
    return AnnotatedPairs(replace(pairs, dropped=pairs.dropped + dropped), boxes, masks, None, class_names)


def _coco_part(path: str) -> _Part:
    content = read_json(path)
    for name in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise DataError(f"{path}: no list '{name}'; is this COCO's file of instances?")
    match = _INSTANCES.fullmatch(os.path.basename(path))
    assert match is not None
    notes: dict[Any, list[dict[str, Any]]] = {}
    try:
        entries = [{**one, "id": one["id"], "file_name": str(one["file_name"])} for one in content["images"]]
        known = {one["id"] for one in entries}
        for number, one in enumerate(content["annotations"]):
            if one["image_id"] not in known:
                raise DataError(f"{path}, annotation {number}: image_id {one['image_id']} is not among the images")
            notes.setdefault(one["image_id"], []).append(one)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: an image lacks id or file_name, or an annotation image_id ({error})") from error
    if not entries:
        raise DataError(f"{path} holds no images")
    return _Part(path, match[1], entries, notes, _category_names(content["categories"], path))


def _coco_folder(part: _Part, images: str | None) -> str:
    """Where the pictures lie."""
    beside = Path(part.path).absolute().parent
    bases = [Path(images)] if images is not None else [beside, beside.parent]
    tried = [base / inner for base in bases for inner in (part.suffix, f"images/{part.suffix}", "images", "")]
    first = part.entries[: min(5, len(part.entries))]
    for folder in tried:
        if any((folder / entry["file_name"]).is_file() for entry in first):
            return str(folder)
    where = (
        f"below {images}" if images is not None else f"in {part.suffix or 'images'} beside it, or in the folder above"
    )
    raise DataError(
        f"{part.path}: no file {first[0]['file_name']!r} {where}; name the folder of the pictures with --images"
    )


def _coco_captions(part: _Part) -> dict[Any, list[str]]:
    """Captions by image id, of the file beside that is named alike."""
    path = Path(part.path)
    beside = path.with_name(path.name.replace("instances", "captions", 1))
    if not beside.is_file():
        return {}
    content = read_json(beside)
    notes = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(notes, list):
        raise DataError(f"{beside}: no list 'annotations'; is this COCO's file of captions?")
    found: dict[Any, list[str]] = {}
    for number, one in enumerate(notes):
        if not isinstance(one, dict) or "image_id" not in one or "caption" not in one:
            raise DataError(f"{beside}, annotation {number}: no image_id or no caption")
        found.setdefault(one["image_id"], []).extend(caption_list(one["caption"]))
    return found


def _split_of(suffix: str) -> str:
    """``train2017`` → train."""
    return split_name(suffix) or ""


def _coco_annotations(
    parts: Sequence[_Part], number_of: Mapping[Any, int], kept: np.ndarray, dropped: Counter[str]
) -> tuple[Boxes, ClassMasks | None]:
    entries = [(part, entry) for part in parts for entry in part.entries]
    boxes: list[_Gathered | None] = []
    outlines: list[list[tuple[Any, int, bool]] | None] = []
    sizes, names = [], []
    for row in kept.tolist():
        part, entry = entries[row]
        size = float(entry.get("width") or 0), float(entry.get("height") or 0)
        if min(size) <= 0:
            raise DataError(f"{part.path}: image {entry['id']} has no width and height")
        notes = part.notes.get(entry["id"], [])
        where = f"{part.path}, image {entry['id']}"
        given = [{**one, "category": one.get("category_id")} for one in notes]
        boxes.append(_boxes_of(given, size, number_of, where, dropped))
        drawn = [
            (one["segmentation"], 1 + number_of[one["category_id"]], bool(one.get("iscrowd")))
            for one in notes
            if one.get("segmentation")
        ]
        outlines.append(drawn if len(drawn) == len(notes) else None)  # a thing without outline would become ground
        sizes.append((round(size[1]), round(size[0])))
        names.append(entry["file_name"])
    masks = DrawnMasks(sizes, outlines, names)
    return _ragged(boxes), masks if masks.known.any() and any(outlines) else None
