"""Captions in Hugging Face data sets, whose splits are the parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mc_core.errors import DataError
from mc_core.hub_data import load_hub, load_saved, one_split, require_datasets
from mc_vision_language.data.assembling import Found
from mc_vision_language.data.columns import caption_list, recognise, split_name, told
from mc_vision_language.data.options import ColumnOptions
from mc_vision_language.data.stored_images import HubImages

_EXTRA = "mc-vision-language[datasets]"


def find_hub(spec: str, columns: ColumnOptions) -> Found:
    """``hf:user/name[:split][?config=…&revision=…]``, which `datasets` fetches into its own cache if need be."""
    return _found(*load_hub(spec, extra=_EXTRA), spec, columns)


def find_saved(path: str | Path, columns: ColumnOptions) -> Found:
    """A folder written by ``save_to_disk``, ``folder:split``, or an ``.arrow`` file."""
    return _found(*load_saved(path, extra=_EXTRA), str(path), columns)


def _found(found: Any, split: str, spec: str, columns: ColumnOptions) -> Found:
    datasets = require_datasets(_EXTRA)
    parts: dict[str, Any] = (
        dict(found) if isinstance(found, Mapping) and not split else {split: one_split(found, split, spec)}
    )
    if len(parts) > 1:
        parts = {name: part for name, part in parts.items() if split_name(name)}
        if not parts:
            raise DataError(f"{spec} has the splits {', '.join(found)}: name one, as {spec}:{next(iter(found))}")
    data = datasets.concatenate_datasets(list(parts.values())) if len(parts) > 1 else next(iter(parts.values()))
    if not len(data):
        raise DataError(f"{spec} is empty")
    pictures = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
    if columns.image is None:
        if len(pictures) != 1:
            what = f"several image columns ({', '.join(pictures)})" if pictures else "no image column"
            raise DataError(f"{spec} has {what} among {', '.join(data.features)}: name one with --column.image")
        columns = columns.model_copy(update={"image": pictures[0]})
    elif columns.image not in pictures:
        raise DataError(
            f"{spec}: column {columns.image!r} holds no pictures; those that do: {', '.join(pictures) or 'none'}"
        )
    roles = recognise(list(data.features), columns, spec)
    captions = roles["caption"]
    names = [captions] if isinstance(captions, str) else captions
    wanted = [*names, *(str(roles[role]) for role in ("image_id", "split") if role in roles)]
    table = data.select_columns(list(dict.fromkeys(wanted))).with_format(None)[:]
    texts: list[str] = []
    image_of: list[int] = []
    for row in range(len(data)):
        several = [text for name in names for text in caption_list(table[name][row])]
        texts += several
        image_of += [row] * len(several)
    ids = [str(value) for value in table[str(roles["image_id"])]] if "image_id" in roles else None
    splits = [str(value) for value in table[str(roles["split"])]] if "split" in roles else None
    told_columns = told(roles)
    if len(parts) > 1:
        splits = [name for name, part in parts.items() for _ in range(len(part))]
        told_columns["split"] = "splits of the data set"
    images = HubImages(data, str(roles["image"]), spec)
    return Found(
        images, texts, image_of, lambda caption: images.name(image_of[caption]), spec, told_columns, ids, splits
    )
