"""Image tiles without georeference, each with a mask: from a folder, a tar or an npz file.

Legend: N patches, C bands, H × W of a patch (patches may differ), T side of a training tile.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from mc_core.errors import ConfigError, DataError, closest
from mc_core.random import derive_seed
from mc_remote_sensing.data.blocks import PARTS
from mc_remote_sensing.data.labels import BACKGROUND, IGNORE, TARGET
from mc_remote_sensing.data.raster import read_reflected
from mc_remote_sensing.data.relief import CHANNELS

_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".npz")
_MASKS = (".seg.png", ".seg.tif", ".mask.png", ".mask.tif")


@dataclass(frozen=True)
class _Bytes:
    """Where bytes lie: a file, or a part of a tar."""

    path: str
    offset: int = 0
    size: int | None = None
    name: str = ""

    def read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                return file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from error


class PatchScenes:
    """Patches and their masks as a data set: samples like those of :class:`~mc_remote_sensing.data.tiles.TileDataset`.

    Args:
        path: folder or tar of images (jpg, png, tif, or npz with ``image`` (H, W, C)) and masks ``NAME.seg.png``, the name of
            a sample ending at its first dot; or one npz with ``image`` (N, H, W, C), optionally ``mask`` (N, H, W) and ``bands``
            (C,) names.
        tile: T, side in pixels of training samples; smaller patches are reflected, which is not valid.
        values: of the masks, default ``{"background": 0, "target": 1}``; what has another value is not counted.
        elevation_bands: bands that are no image but a channel of the elevation, by channel:
            ``{"relative_elevation": "dem", "slope": "slope"}``. They are taken as they are stored.
        target_share: share of crops drawn around a target pixel, of patches that have one.
        shares: of training, validation and test patches, for :meth:`part`.
        seed: of the split.
        per_epoch: samples in an epoch; default one of each patch.

    Raises:
        DataError: nothing to read, images of different bands, or a mask of another size than its image.
        ConfigError: a band or channel that does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tile: int = 256,
        values: Mapping[str, int] | None = None,
        elevation_bands: Mapping[str, str] | None = None,
        target_share: float = 0.5,
        shares: Sequence[float] = (0.7, 0.15, 0.15),
        seed: int = 0,
        per_epoch: int | None = None,
    ) -> None:
        self.path, self.tile, self.seed = os.fspath(path), tile, seed
        self.values = dict(values or {"background": 0, "target": 1})
        self.target_share, self.shares, self.per_epoch = target_share, tuple(shares), per_epoch
        self._arrays: dict[str, np.ndarray] | None = None
        if not Path(self.path).exists():
            raise DataError(f"{self.path}: does not exist")
        if self.path.endswith(".npz"):
            self._arrays = _open_npz(self.path)
            self.names = [f"{Path(self.path).stem}-{i:05d}" for i in range(len(self._arrays["image"]))]
            files: list[dict[str, _Bytes]] = [{} for _ in self.names]
            self._groups = [""] * len(self.names)
        else:
            found = _pairs(_members(self.path), self.path)
            self.names, files = list(found), list(found.values())
            self._groups = [_group(each.get("json")) for each in files]
        self._files = files
        self._chosen = list(range(len(self.names)))
        self._all_bands = self._stored_bands()
        self._elevation = {
            CHANNELS.index(_known(channel, CHANNELS[:3], "elevation has no channel")): self._all_bands.index(
                _known(band, self._all_bands, f"{self.path}: has no band")
            )
            for channel, band in (elevation_bands or {}).items()
        }
        self._image = [i for i in range(len(self._all_bands)) if i not in self._elevation.values()]

    def __len__(self) -> int:
        return self.per_epoch or len(self._chosen)

    @property
    def count(self) -> int:
        """Patches of this part."""
        return len(self._chosen)

    @property
    def band_names(self) -> tuple[str, ...]:
        """Of the images."""
        return tuple(self._all_bands[i] for i in self._image)

    def part(self, name: str) -> PatchScenes:
        """The patches of ``"train"``, ``"validation"`` or ``"test"``: a draw by the seed, with as large a share of each source
        (``source`` in a sample's json) and of those with targets.

        Raises:
            ConfigError: no such part.
            DataError: no patch left for it.
        """
        names = PARTS[: len(self.shares)]
        number = names.index(_known(name, names, "patches have no part"))
        strata: dict[tuple[str, bool], list[int]] = {}
        for i in range(len(self.names)):
            strata.setdefault((self._groups[i], bool(self.target_fractions[i] > 0)), []).append(i)
        chosen: list[int] = []
        edges = np.cumsum([0.0, *self.shares]) / sum(self.shares)
        for position, key in enumerate(sorted(strata)):
            members = np.array(strata[key])
            rng = np.random.Generator(np.random.Philox(key=derive_seed(self.seed, position, 0x9A7)))
            order = rng.permutation(members)
            first, last = np.rint(edges[number : number + 2] * len(members)).astype(int)
            chosen += order[first:last].tolist()
        if not chosen:
            raise DataError(f"{self.path}: {len(self.names)} patches leave none for {name}; give more, or other shares")
        found = copy.copy(self)
        found._chosen = sorted(chosen)
        return found

    @cached_property
    def target_fractions(self) -> np.ndarray:
        """(N,) share of target pixels of each patch, of all parts."""
        return np.array([float((self._labels(i) == TARGET).mean()) for i in range(len(self.names))])

    def read(self, index: int) -> dict[str, Any]:
        """One whole patch of this part.

        Returns:
            ``image`` (C, H, W) float32, ``image_valid`` (H, W) bool, ``elevation`` (4, H, W) float32, ``labels`` (H, W) uint8 in
            {0, 1, 255} (255 everywhere without masks), as arrays, and ``name``.
        """
        position = self._chosen[index]
        bands, valid = self._bands(position)
        labels = self._labels(position, bands.shape[1:])
        if labels.shape != bands.shape[1:]:
            raise DataError(
                f"{self.path}, {self.names[position]}: the image is {bands.shape[2]}×{bands.shape[1]} pixels, its mask "
                f"{labels.shape[1]}×{labels.shape[0]}; a mask has the size of its image"
            )
        valid = valid & np.isfinite(bands).all(axis=0)
        bands = np.where(valid, bands, 0).astype(np.float32)
        elevation = np.zeros((len(CHANNELS), *valid.shape), dtype=np.float32)
        for channel, band in self._elevation.items():
            elevation[channel] = bands[band]
        if self._elevation:
            elevation[3] = valid
        return {
            "image": bands[self._image],
            "image_valid": valid,
            "elevation": elevation,
            "labels": np.where(valid, labels, IGNORE).astype(np.uint8),
            "name": self.names[position],
        }

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A T × T crop of a patch: its place comes from ``rng`` alone.

        Returns:
            Tensors as of :meth:`~mc_remote_sensing.data.tiles.TileDataset.get`; ``ids`` is that of the patch.
        """
        index %= len(self._chosen)
        patch = self.read(index)
        name = patch.pop("name")
        top, left = self._corner(patch["labels"], rng)
        stacked = np.concatenate([patch["image"], patch["elevation"], patch["labels"][None].astype(np.float32)])

        def whole(row: int, col: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
            window = slice(row, row + height), slice(col, col + width)
            return stacked[:, *window], patch["image_valid"][window]

        values, valid = read_reflected(whole, patch["labels"].shape, top, left, self.tile, self.tile)
        bands = len(self._image)
        elevation = values[bands : bands + 4].copy()
        elevation[3] *= valid
        found = {
            "image": values[:bands].copy(),
            "image_valid": valid.copy(),
            "elevation": elevation,
            "labels": np.where(valid, values[-1], IGNORE).astype(np.uint8),
        }
        return {**{key: torch.from_numpy(value) for key, value in found.items()}, "ids": _name_id(name)}

    def _corner(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
        height, width = labels.shape
        wanted, row, column = rng.random(3)
        targets = np.flatnonzero(labels == TARGET)
        if wanted < self.target_share and len(targets):
            middle = divmod(int(targets[rng.integers(len(targets))]), width)
            offsets = rng.integers(0, self.tile, 2)
            starts = [int(m) - int(o) for m, o in zip(middle, offsets, strict=True)]
        else:
            starts = [int(row * (height - self.tile + 1)), int(column * (width - self.tile + 1))]
        top, left = (
            min(max(start, 0), size - self.tile) if size >= self.tile else (size - self.tile) // 2
            for start, size in zip(starts, (height, width), strict=True)
        )
        return top, left

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "kind": "patches",
            "count": len(self),
            "tile": self.tile,
            "bands": list(self.band_names),
            "digest": hashlib.blake2b(
                "\n".join(self.names[i] for i in self._chosen).encode(), digest_size=8
            ).hexdigest(),
            "target_share": self.target_share,
        }

    def _stored_bands(self) -> list[str]:
        if self._arrays is not None:
            names = self._arrays.get("bands")
            count = self._arrays["image"].shape[-1]
            if names is not None and len(names) != count:
                raise DataError(f"{self.path}: has {count} bands, but {len(names)} names for them")
            return [f"B{i + 1}" for i in range(count)] if names is None else [str(name) for name in names]
        count = len(self._bands(0, check=False)[0])
        return ["red", "green", "blue"] if count == 3 else [f"B{i + 1}" for i in range(count)]

    def _bands(self, position: int, *, check: bool = True) -> tuple[np.ndarray, np.ndarray]:
        if self._arrays is not None:
            bands = np.moveaxis(self._arrays["image"][position], -1, 0).astype(np.float32)
            return bands, np.ones(bands.shape[1:], dtype=bool)
        file = self._files[position]["image"]
        bands, valid = _decode_image(file, self.path)
        if check and len(bands) != len(self._all_bands):
            raise DataError(
                f"{self.path}, {file.name}: has {len(bands)} bands, the first image has {len(self._all_bands)}; "
                "all patches of a set need the same"
            )
        return bands, valid

    def _labels(self, position: int, shape: Sequence[int] = (1, 1)) -> np.ndarray:
        if self._arrays is not None:
            raw = None if "mask" not in self._arrays else self._arrays["mask"][position]
        else:
            file = self._files[position].get("mask")
            raw = None if file is None else _decode_mask(file, self.path)
        if raw is None:
            return np.full(tuple(shape), IGNORE, dtype=np.uint8)
        found = np.full(raw.shape, IGNORE, dtype=np.uint8)
        found[raw == self.values["background"]] = BACKGROUND
        found[raw == self.values["target"]] = TARGET
        return found


def _known(name: str, names: Sequence[str], what: str) -> str:
    if name not in names:
        raise ConfigError(f"{what} {name!r}; the closest is {closest(name, names, count=1)} of {', '.join(names)}")
    return name


def _name_id(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1


def _open_npz(path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("image", "mask", "bands") if name in file.files}
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path}: is no npz file that can be read ({error})") from error
    if "image" not in arrays or arrays["image"].ndim != 4:
        raise DataError(f"{path}: needs an array 'image' of shape (N, H, W, C)")
    if "mask" in arrays and arrays["mask"].shape != arrays["image"].shape[:3]:
        raise DataError(f"{path}: mask has shape {arrays['mask'].shape}, image {arrays['image'].shape}")
    return arrays


def _members(path: str) -> list[_Bytes]:
    if Path(path).is_dir():
        found = sorted(each for each in Path(path).rglob("*") if each.is_file() and not each.name.startswith("."))
        return [_Bytes(str(each), name=each.relative_to(path).as_posix()) for each in found]
    try:
        with tarfile.open(path, "r:") as tar:
            return [_Bytes(path, m.offset_data, m.size, m.name) for m in tar if m.isfile()]
    except tarfile.TarError as error:
        raise DataError(f"{path}: is neither a folder, nor an uncompressed tar, nor an npz file ({error})") from error


def _pairs(members: Sequence[_Bytes], path: str) -> dict[str, dict[str, _Bytes]]:
    found: dict[str, dict[str, _Bytes]] = {}
    for member in members:
        folder, _, name = member.name.rpartition("/")
        key, _, rest = name.partition(".")
        suffix = "." + rest.lower()
        kind = "mask" if suffix in _MASKS else "image" if suffix in _IMAGES else "json" if suffix == ".json" else ""
        if kind:
            found.setdefault(f"{folder}/{key}" if folder else key, {})[kind] = member
    pairs = {name: files for name, files in found.items() if "image" in files}
    if not pairs:
        raise DataError(f"{path}: has no images ({', '.join(_IMAGES)}); masks are named like their image, NAME.seg.png")
    alone = [name for name, files in pairs.items() if "mask" not in files]
    if alone and len(alone) < len(pairs):
        raise DataError(f"{path}: {len(alone)} of {len(pairs)} images have no mask, the first is {alone[0]}")
    return dict(sorted(pairs.items()))


def _group(file: _Bytes | None) -> str:
    if file is None:
        return ""
    try:
        found = json.loads(file.read())
    except ValueError:
        return ""
    return str(found.get("source", "")) if isinstance(found, dict) else ""


def _decode_image(file: _Bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    data = file.read()
    try:
        if file.name.lower().endswith((".tif", ".tiff")):
            return _decode_tiff(data)
        if file.name.lower().endswith(".npz"):
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                bands = np.moveaxis(arrays["image"], -1, 0).astype(np.float32)
            return bands, np.ones(bands.shape[1:], dtype=bool)
        with Image.open(io.BytesIO(data)) as image:
            alpha = np.asarray(image.getchannel("A")) if "A" in image.getbands() else None
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, ValueError, KeyError, UnidentifiedImageError) as error:
        raise DataError(f"{path}, {file.name}: cannot be read ({error})") from error
    valid = np.ones(pixels.shape[:2], dtype=bool) if alpha is None else alpha > 0
    return np.moveaxis(pixels, -1, 0).astype(np.float32), valid


def _decode_tiff(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    import warnings

    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.io import MemoryFile

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with MemoryFile(data) as memory, memory.open() as file:
            return file.read().astype(np.float32), file.dataset_mask() > 0


def _decode_mask(file: _Bytes, path: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(file.read())) as image:
            if image.mode not in ("1", "L", "P", "I", "I;16"):
                raise DataError(
                    f"{path}, {file.name}: its pixels are colours ({image.mode}), not numbers; save a grey or palette PNG"
                )
            return np.asarray(image).astype(np.int64)
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}, {file.name}: cannot be read ({error})") from error
