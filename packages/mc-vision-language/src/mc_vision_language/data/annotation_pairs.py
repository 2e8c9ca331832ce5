"""Captions in annotation files as published: COCO, Karpathy's splits of COCO and Flickr, ALBEF's lists."""

from __future__ import annotations

import os
import re
from typing import Any

from mc_core.errors import DataError
from mc_core.files import read_json
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.options import ColumnOptions
from mc_vision_language.data.table_pairs import Rows, find_files, rows_of_records

_LAYOUTS = (
    "COCO's captions (images, annotations), Karpathy's dataset (images with sentences), or a list of mappings such as ALBEF's "
    '[{"image": "a.jpg", "caption": "a dog", "image_id": 1}]'
)


def find_in_json(path: str, images: str | None, columns: ColumnOptions) -> Found:
    """Pictures and captions of a JSON file.

    Raises:
        DataError: damaged, of no layout known here, or none of the pictures is there.
    """
    content = read_json(path)
    if isinstance(content, dict):
        pictures, notes = content.get("images"), content.get("annotations")
        if isinstance(pictures, list) and isinstance(notes, list):
            return _coco(path, pictures, notes, images)
        if isinstance(pictures, list) and any(isinstance(one, dict) and "sentences" in one for one in pictures[:1]):
            return _karpathy(path, pictures, images)
        content = next((value for value in (notes, content.get("data")) if isinstance(value, list)), content)
    if not isinstance(content, list) or not content or not all(isinstance(one, dict) for one in content):
        raise DataError(f"{path}: no layout known here; understood are {_LAYOUTS}")
    rows = rows_of_records(enumerate(content, start=1), columns, path, unit="entry")
    return find_files(rows, path, images)


def _coco(path: str, pictures: list[Any], notes: list[Any], images: str | None) -> Found:
    names = {
        one["id"]: one["file_name"] for one in pictures if isinstance(one, dict) and "file_name" in one and "id" in one
    }
    if not names:
        raise DataError(f"{path}: 'images' holds no file_name with an id; is this COCO's layout?")
    if notes and not any(isinstance(one, dict) and "caption" in one for one in notes):
        raise DataError(f"{path}: its annotations hold no 'caption': give captions_*.json, not instances or keypoints")
    rows = Rows(
        [], [], [], unit="annotation", columns={"image": "file_name of the image", "caption": "its annotations"}
    )
    paths, captions, numbers = [], [], []
    for number, note in enumerate(notes, start=1):
        name = names.get(note.get("image_id")) if isinstance(note, dict) else None
        if name is None or not isinstance(note.get("caption"), str):
            rows.bad.append(f"{path}, annotation {number}: no caption, or of an image_id that 'images' does not hold")
            continue
        paths.append(name)
        captions.append(note["caption"])
        numbers.append(number)
    captioned = set(paths)
    for name in names.values():
        if name not in captioned:  # counted as a picture without a caption
            paths.append(name)
            captions.append([])
            numbers.append(0)
    rows.paths, rows.captions, rows.lines = paths, captions, numbers
    year = re.search(r"((?:train|val|test)\d{4})", os.path.basename(path))
    return find_files(rows, path, images, folders=(year[1],) if year else ())


def _karpathy(path: str, pictures: list[Any], images: str | None) -> Found:
    columns = {"image": "filepath and filename", "caption": "raw of the sentences", "split": "field 'split'"}
    rows = Rows([], [], [], unit="image", columns=columns)
    paths, captions, numbers, splits = [], [], [], []
    for number, one in enumerate(pictures, start=1):
        name = one.get("filename") if isinstance(one, dict) else None
        if not isinstance(name, str) or not name:
            rows.bad.append(f"{path}, image {number}: no filename")
            continue
        folder = one.get("filepath") or ""
        paths.append(os.path.join(folder, name))
        captions.append(one.get("sentences") or [])
        numbers.append(number)
        splits.append(str(one.get("split") or ""))
    rows.paths, rows.captions, rows.lines, rows.splits = paths, captions, numbers, splits
    return find_files(rows, path, images)
