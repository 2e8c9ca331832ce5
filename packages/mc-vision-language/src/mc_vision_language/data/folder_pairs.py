"""Folders of pictures with a ``.txt`` or ``.json`` of the same name beside each, or with one table of captions inside."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from mc_core.errors import DataError
from mc_core.images.formats import IMAGE_EXTENSIONS
from mc_core.listing import walk
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.columns import caption_list, recognise, split_name, told
from mc_vision_language.data.images import FileImages
from mc_vision_language.data.options import ColumnOptions

_TABLES = ("captions", "metadata", "pairs", "results_20130124", "results", "annotations", "dataset")
_ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".txt", ".token")
_NOTES = (".txt", ".caption", ".json")


def captions_file(folder: str, names: Sequence[str]) -> str | None:
    """The table of captions inside a folder: ``captions.csv``, ``metadata.jsonl`` … or the only table there."""
    lower = {name.lower(): name for name in names}
    for stem in _TABLES:
        for ending in _ENDINGS:
            if stem + ending in lower:
                return os.path.join(folder, lower[stem + ending])
    tables = [name for name in names if name.lower().endswith((".csv", ".tsv", ".jsonl", ".token"))]
    if len(tables) > 1:
        raise DataError(f"{folder} holds several tables ({', '.join(tables[:5])}): name the one with the captions")
    return os.path.join(folder, tables[0]) if tables else None


def find_beside(folder: str, columns: ColumnOptions) -> Found:
    """Pictures with their notes beside them; the first folder below the root names the part, where it is called ``train`` … .

    Raises:
        DataError: no pictures, or none with a note.
    """
    notes: dict[str, list[str]] = {}
    images: list[str] = []
    for path in walk(folder):
        stem, ending = os.path.splitext(path)
        if ending.lower() in IMAGE_EXTENSIONS:
            images.append(path)
        elif ending.lower() in _NOTES:
            notes.setdefault(stem, []).append(ending)
    images.sort()
    if not images:
        raise DataError(f"no pictures (.jpg, .png, .webp …) under {folder}: is this the right folder?")
    if not any(os.path.splitext(path)[0] in notes for path in images):
        raise DataError(
            f"{folder}: no .txt or .json of the same name beside any picture, and no captions.csv inside: give a table of "
            "captions, and this folder with --images"
        )
    captions: list[str] = []
    image_of: list[int] = []
    places: list[str] = []
    bad: list[str] = []
    taken: dict[str, str] = {}
    for row, path in enumerate(images):
        stem = os.path.splitext(path)[0]
        for ending in sorted(notes.get(stem, ()), reverse=True)[:1]:  # .txt before .json
            place = os.path.join(folder, stem + ending)
            try:
                texts = note_captions(_read(place), ending, columns, place, taken)
            except ValueError as error:
                bad.append(f"{place}: {error}")
                continue
            captions += texts
            image_of += [row] * len(texts)
            places += [place] * len(texts)
    splits = [path.partition("/")[0] if "/" in path and split_name(path.partition("/")[0]) else "" for path in images]
    told_columns = {"image": "files of pictures", "caption": "the notes beside them", **taken}
    if any(splits):
        told_columns["split"] = "folders"
    return Found(
        FileImages(images, folder),
        captions,
        image_of,
        lambda caption: places[caption],
        folder,
        told_columns,
        None,
        splits,
        bad,
    )


def note_captions(text: str, ending: str, columns: ColumnOptions, place: str, taken: dict[str, str]) -> list[str]:
    """The captions of a note: each line of a text, or the field of captions of a JSON mapping (a list or a text alone are one).

    Raises:
        ValueError: not JSON, or JSON without captions.
    """
    if not ending.lower().endswith("json"):
        return [line for line in text.splitlines() if line.strip()] or [""]
    content: Any = json.loads(text)
    if isinstance(content, dict):
        roles = recognise(["image", *content], columns.model_copy(update={"image": None}), place)
        name = roles["caption"]
        taken.setdefault("caption", told({"caption": name}, "field")["caption"])
        values = [content[name]] if isinstance(name, str) else [content[one] for one in name]
        return [text for value in values for text in caption_list(value)]
    if not isinstance(content, (str, list)):
        raise ValueError(f"a JSON {type(content).__name__} holds no captions")
    return caption_list(content)


def _read(path: str) -> str:
    with open(path, "rb") as file:
        return file.read().decode("utf-8-sig")
