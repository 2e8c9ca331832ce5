"""Data sets of torchvision by name: ``"torchvision:CIFAR10?root=/data&train=0"``."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from mc_core.errors import ConfigError, DataError, McError, closest
from mc_core.images.decoding import to_8_bit, to_channels, upright
from mc_core.listing import cache_folder, fingerprint
from mc_core.optional import require
from mc_vision.data.source import Picture, ReadOptions

_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_NOT_OURS = {"self", "transform", "target_transform", "transforms", "loader", "is_valid_file"}
_LABELS = ("targets", "labels", "_labels", "y")


class TorchvisionSource:
    """A torchvision data set whose samples are (image, label), or begin with an image.

    Args:
        data: the data set, without transforms.
        location: for the recipe.
        options: how to read it.

    Raises:
        DataError: it is empty, or its samples do not begin with an image.
    """

    def __init__(self, data: Any, location: str, options: ReadOptions) -> None:
        self.data, self.location, self.options = data, location, options
        self.ids: np.ndarray | None = None
        if not len(data):
            raise DataError(f"{location} is empty")
        first = data[0]
        if not (isinstance(first, tuple) and isinstance(first[0], Image.Image)):
            raise DataError(f"{location}: samples are not (image, label), so this set cannot be used for images alone")
        self.labels = None if options.labels == "none" else _labels(data)
        classes = getattr(data, "classes", None)
        usable = self.labels is not None and isinstance(classes, (list, tuple)) and self.labels.max() < len(classes)
        self.classes = [_class_name(name) for name in classes] if usable and classes is not None else None

    def __len__(self) -> int:
        return len(self.data)

    def load(self, index: int) -> Picture:
        """One image, upright, in the channels asked for."""
        name = self.name(index)
        image = to_8_bit(upright(self.data[index][0]), name=name)
        return image if self.options.channels is None else to_channels(image, self.options.channels, name=name)

    def name(self, index: int) -> str:
        """The spec with the position."""
        return f"{self.location}[{range(len(self))[index]}]"

    def describe(self) -> dict[str, Any]:
        """Kind, location, count and digest of name and labels."""
        digest = fingerprint(type(self.data).__name__, len(self), self.labels, self.classes)
        return {"kind": "torchvision", "location": self.location, "count": len(self), "digest": digest}


def open_torchvision(spec: str, options: ReadOptions | None = None) -> TorchvisionSource:
    """Open ``"torchvision:Name?root=FOLDER&download=1&…"``; what follows ``?`` are the arguments of the class.

    Nothing is downloaded without ``download=1``. ``root`` defaults to ``torchvision`` in the cache folder.

    Raises:
        ConfigError: an unknown set or argument.
        DataError: the files are not there (and where they were looked for).
    """
    options = options or ReadOptions()
    datasets = require("torchvision.datasets", extra="torchvision", purpose="read its data sets")
    name, _, query = spec.removeprefix("torchvision:").partition("?")
    if name not in datasets.__all__ or not inspect.isclass(getattr(datasets, name)):
        raise ConfigError(f"torchvision has no data set {name!r}; closest: {closest(name, datasets.__all__)}")
    make = getattr(datasets, name)
    parameters = {key: p for key, p in inspect.signature(make.__init__).parameters.items() if key not in _NOT_OURS}
    hints = typing.get_type_hints(make.__init__)
    arguments: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in parameters:
            raise ConfigError(f"{spec}: {name} takes no {key!r}; closest: {closest(key, parameters)}")
        arguments[key] = _convert(text, hints.get(key, str), f"{spec}: {key}")
    if "root" in parameters:
        arguments.setdefault("root", str(cache_folder(options.cache_dir, "torchvision")))
        arguments["root"] = str(Path(arguments["root"]).expanduser())
    try:
        return TorchvisionSource(make(**arguments), spec, options)
    except McError:
        raise
    except TypeError as error:
        raise ConfigError(f"{spec}: {error}") from error
    except (RuntimeError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        where = f" under {arguments['root']}" if "root" in arguments else ""
        hint = ""
        if "download" in parameters and not arguments.get("download"):
            mark = "&" if query else "?"
            hint = f"; to let torchvision download it, write {spec}{mark}download=1"
        raise DataError(f"{name} could not be opened{where} ({reason}){hint}") from error


def _convert(text: str, hint: Any, where: str) -> Any:
    kinds = {hint, *typing.get_args(hint)}
    if bool in kinds:
        if text.lower() not in _WORDS:
            raise ConfigError(f"{where}={text!r}: write 1 or 0")
        return _WORDS[text.lower()]
    if int in kinds and re.fullmatch(r"-?\d+", text):
        return int(text)
    return text


def _labels(data: Any) -> np.ndarray | None:
    for name in _LABELS:
        values = getattr(data, name, None)
        if values is None:
            continue
        array = np.asarray(values.numpy() if hasattr(values, "numpy") else values)
        if array.shape == (len(data),) and np.issubdtype(array.dtype, np.integer):
            return array.astype(np.int64)
    samples = getattr(data, "samples", None) or getattr(data, "_samples", None)
    if isinstance(samples, list) and samples and isinstance(samples[0], tuple) and isinstance(samples[0][-1], int):
        return np.array([sample[-1] for sample in samples], dtype=np.int64)
    return None


def _class_name(name: Any) -> str:
    return ", ".join(map(str, name)) if isinstance(name, tuple) else str(name)  # ImageNet's are tuples of synonyms
