"""Hugging Face data sets: ``"hf:user/name:split"`` from the hub, or a folder or .arrow file that `datasets` saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.data import BadSampleError
from mc_core.errors import DataError
from mc_core.hub_data import load_hub, load_saved, one_split, require_datasets
from mc_core.images.decoding import read_file
from mc_core.listing import fingerprint
from mc_vision.data.source import (
    CLASS_NAMES,
    ID_NAMES,
    LABEL_NAMES,
    EncodedSource,
    ReadOptions,
    find_column,
    make_ids,
    make_labels,
)

_EXTRA = "mc-vision[datasets]"


class HubSource(EncodedSource):
    """A `datasets.Dataset` with an image column. Its files are memory-mapped, so workers share them.

    Args:
        data: the data set.
        location: for the recipe.
        options: how to read it.

    Raises:
        DataError: there is no image column, or several.
    """

    kind = "huggingface"

    def __init__(self, data: Any, location: str, options: ReadOptions) -> None:
        datasets = require_datasets(_EXTRA)
        if not len(data):
            raise DataError(f"{location} is empty")
        images = [name for name, feature in data.features.items() if isinstance(feature, datasets.Image)]
        self.column = find_column(list(data.features), options.image_column, (), option="image_column", where=location)
        if self.column is None:
            if len(images) != 1:
                columns = ", ".join(f"{name} ({type(f).__name__})" for name, f in data.features.items())
                what = "several image columns" if images else "no image column"
                raise DataError(f"{location} has {what} among {columns}: name one with image_column")
            self.column = images[0]
        elif self.column not in images:
            raise DataError(
                f"{location}: column {self.column!r} holds no images; image columns: {', '.join(images) or 'none'}"
            )
        columns = [name for name in data.features if name != self.column]
        labels, classes = None, None
        if options.labels != "none":
            chosen = options.label_column is not None or options.class_column is not None
            encoded = [name for name in columns if isinstance(data.features[name], datasets.ClassLabel)]
            known = () if chosen else (*LABEL_NAMES, *(encoded if len(encoded) == 1 else ()))
            label = find_column(columns, options.label_column, known, option="label_column", where=location)
            known = () if chosen else CLASS_NAMES
            name = find_column(columns, options.class_column, known, option="class_column", where=location)
            labels, classes = make_labels(
                _values(data, label), _values(data, name), lambda row: f"{location}, row {row}"
            )
            if label is not None and isinstance(data.features[label], datasets.ClassLabel):
                classes = list(data.features[label].names)
        group = find_column(columns, options.id_column, ID_NAMES, option="id_column", where=location)
        digest = fingerprint(data._fingerprint, len(data), self.column)
        super().__init__(location, digest, options, labels=labels, classes=classes, ids=make_ids(_values(data, group)))
        images_only = data.select_columns([self.column]).cast_column(self.column, datasets.Image(decode=False))
        self.data = images_only.with_format(None)

    def __len__(self) -> int:
        return len(self.data)

    def name(self, index: int) -> str:
        """The location with the row, counted from 0."""
        return f"{self.location}[{range(len(self))[index]}]"

    def read(self, index: int) -> bytes:
        """The encoded bytes of one image."""
        cell = self.data[range(len(self))[index]][self.column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise BadSampleError(self.name(index), "the image cell is empty")
        return cell["bytes"] if cell["bytes"] is not None else read_file(cell["path"], name=self.name(index))


def open_hub(spec: str, options: ReadOptions | None = None) -> HubSource:
    """Open ``"hf:user/name[:split][?config=…&revision=…]"``, which `datasets` fetches into its own cache if need be.

    Without a split, ``train`` is taken, or the only one. Code of a data set is never run.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    return HubSource(one_split(*load_hub(spec, extra=_EXTRA), spec), spec, options or ReadOptions())


def open_saved(path: str | Path, options: ReadOptions | None = None) -> HubSource:
    """Open a folder written by ``save_to_disk`` (``folder:split`` picks a split), or an ``.arrow`` file.

    Raises:
        DataError: it cannot be loaded, or has no such split.
    """
    spec = os.fspath(path)
    return HubSource(one_split(*load_saved(path, extra=_EXTRA), spec), spec, options or ReadOptions())


def _values(data: Any, column: str | None) -> Any:
    """A column as integers or text, without decoding images."""
    if column is None:
        return None
    values = data.select_columns([column]).with_format(None)[:][column]
    if all(isinstance(value, int) for value in values):
        return np.array(values, dtype=np.int64)
    return ["" if value is None else str(value) for value in values]
