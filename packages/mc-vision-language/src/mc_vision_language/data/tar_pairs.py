"""Captions in WebDataset shards: beside each picture a ``.txt`` or ``.json`` with the same key."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.listing import PackedStrings
from mc_core.shards import ShardFile, find_shards, image_ending, walk_shard
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.columns import caption_list, roles_of, split_name, told
from mc_vision_language.data.options import ColumnOptions, ReadOptions
from mc_vision_language.data.stored_images import TarImages

_TEXTS = ("txt", "caption", "cap", "text")
_SIDECAR = 1 << 20  # a note larger than this is something else


def find_in_shards(pattern: str, columns: ColumnOptions, read: ReadOptions, *, location: str | None = None) -> Found:
    """Pictures and captions of tar files.

    Args:
        pattern: a path, URL, glob or brace pattern; several joined by ``::``.
        columns: ``image`` is the ending of the picture's file where a sample has several, ``caption`` a field of its ``.json``
            or the ending of its text file.
        read: where shards behind URLs go.
        location: for reports; default: the pattern.

    Raises:
        DataError: a shard is missing or damaged, or no sample has a picture and a caption.
    """
    shards = find_shards(pattern, read.cache)
    reader = _Reader(columns)
    for number, shard in enumerate(shards):
        reader.add(number, shard)
    where = location or pattern
    endings = ", ".join(sorted(reader.endings)[:6]) or "nothing"
    if not reader.members:
        raise DataError(f"{where}: no sample has a picture (.jpg, .png …); the files end in {endings}")
    for role in ("caption", "image_id", "split"):
        name = getattr(columns, role)
        if name is not None and name not in reader.fields and name.lstrip(".") not in reader.endings:
            known = closest(name, sorted(reader.fields | reader.endings))
            raise ConfigError(f"{where}: no field or file {name!r} for the {role}; there are {known} (--column.{role})")
    if not reader.captions:
        raise DataError(
            f"{where}: no sample has a caption in a .txt or .json; the files end in {endings}, "
            "name the field or the ending with --column.caption"
        )
    offsets, sizes = np.array(reader.places, dtype=np.int64).reshape(-1, 2).T
    images = TarImages(
        shards, np.array(reader.shard_of), PackedStrings(reader.members), offsets.copy(), sizes.copy(), location=where
    )
    splits = reader.splits
    if not any(splits):
        names = [os.path.basename(shard).split("-")[0].split("_")[0].split(".")[0] for shard in shards]
        splits = [names[number] if split_name(names[number]) else "" for number in reader.shard_of]
        if any(splits):
            reader.columns["split"] = "names of the shards"
    ids = reader.ids if reader.ids and all(reader.ids) else None
    if ids is None:
        reader.columns.pop("image_id", None)
    return Found(
        images,
        reader.captions,
        reader.image_of,
        lambda caption: images.name(reader.image_of[caption]),
        where,
        {"image": "pictures of the shards", **reader.columns},
        ids,
        splits,
        reader.bad,
    )


class _Reader:
    """Collects the samples of shard after shard."""

    def __init__(self, options: ColumnOptions) -> None:
        self.options = options
        self.shard_of: list[int] = []
        self.members: list[str] = []
        self.places: list[tuple[int, int]] = []
        self.captions: list[str] = []
        self.image_of: list[int] = []
        self.ids: list[str] = []
        self.splits: list[str] = []
        self.columns: dict[str, str] = {}
        self.bad: list[str] = []
        self.endings: set[str] = set()
        self.fields: set[str] = set()
        self._roles: dict[tuple[str, ...], dict[str, str | list[str]]] = {}

    def add(self, number: int, shard: str) -> None:
        """The samples of one shard."""
        file = ShardFile(shard)
        for key, endings in walk_shard(shard).items():
            self.endings.update(endings)
            ending = image_ending(endings, self.options.image, f"{shard}/{key}")
            if ending is None:
                continue
            record, texts = self._notes(file, endings, f"{shard}/{key}")
            row = len(self.members)
            self.shard_of.append(number)
            self.members.append(f"{key}.{ending}")
            self.places.append(endings[ending])
            self.captions += texts
            self.image_of += [row] * len(texts)
            self.ids.append(record.get("image_id", ""))
            self.splits.append(record.get("split", ""))

    def _notes(
        self, file: ShardFile, endings: dict[str, tuple[int, int]], place: str
    ) -> tuple[dict[str, str], list[str]]:
        """(id and split, captions) of a sample."""

        def content(ending: str) -> bytes:
            offset, size = endings[ending]
            return file.read(offset, min(size, _SIDECAR))

        record: Any = {}
        if "json" in endings:
            try:
                record = json.loads(content("json"))
            except ValueError:
                self.bad.append(f"{place}.json: not JSON")
                return {}, []
        wanted = (self.options.caption or "").lstrip(".")
        texts = [name for name in endings if (name == wanted if wanted else name in _TEXTS)]
        roles = self._recognised(record, bool(texts), place) if isinstance(record, dict) else {}
        found = {
            role: str(record[name])
            for role in ("image_id", "split")
            if isinstance(name := roles.get(role), str) and record.get(name) is not None
        }
        if texts:
            self.columns["caption"] = f"files .{texts[0]}"
            text = content(texts[0]).decode("utf-8-sig", "replace")
            return found, [line for line in text.splitlines() if line.strip()] or [""]
        if isinstance(record, list):
            return found, caption_list(record)
        name = roles.get("caption")
        if name is None:
            return found, []
        values = [record.get(one) for one in ([name] if isinstance(name, str) else name)]
        return found, [text for value in values for text in caption_list(value)]

    def _recognised(self, record: dict[str, Any], texts: bool, place: str) -> dict[str, str | list[str]]:
        """The roles of a record's fields; records of the same fields are looked at once."""
        fields = tuple(record)
        if fields not in self._roles:
            self.fields.update(fields)
            given = {role for role, name in self.options if name is not None}
            gone = {role: None for role, name in self.options if name not in fields}  # another sample may have it
            roles = roles_of(fields, self.options.model_copy(update={**gone, "image": None}), f"{place}.json")
            for role in ("image", *(given & set(gone)), *(("caption",) if texts else ())):
                roles.pop(role, None)
            self._roles[fields] = roles
            for role, text in told(roles, "field").items():
                self.columns.setdefault(role, text)
        return self._roles[fields]
