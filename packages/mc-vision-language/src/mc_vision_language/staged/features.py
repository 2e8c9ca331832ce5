"""Maps of frozen experts, computed once for each picture and kept as 16-bit floats in files.

Frozen experts say the same of the same view every time. Where views are not varied, all later stages and all arms of an ablation
read their maps from here, and no expert runs again. A folder holds, for each expert and set of pictures::

    detection-3f0c…/maps.f16     (P, C, H, W) float16, picture after picture
    detection-3f0c…/meta.json    shape, and which pictures could not be read; written last

The name is a digest of the expert's weights and settings, of the pictures and of how they are looked at: maps of something else are
never taken. Interrupted, the work goes on where it was.

Legend: P pictures, B of a batch, S side of a view, C channels, H × W places of a map.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mc_core.data import in_order
from mc_core.distributed import first_process_first, rank
from mc_core.engine.run import locked
from mc_core.errors import DataError
from mc_core.files import explain_write_error, read_json, sync_folder, write_json
from mc_core.listing import fingerprint
from mc_core.modules import evaluating
from mc_core.random import BatchRandom, derive_seed
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.views import ImageViews
from mc_vision_language.methods.astrea.adapters import to_grid
from mc_vision_language.methods.astrea.base import MAP

_log = logging.getLogger("mc_core")
_MAPS, _META = "maps.f16", "meta.json"
_PARTIAL = "maps.f16.part"


def always_alike(augment: AugmentConfig | None) -> bool:
    """Whether views of a picture are the same every time, so that maps can be kept.

    >>> (
    ...     always_alike(None),
    ...     always_alike(AugmentConfig()),
    ...     always_alike(AugmentConfig(resize="squash", flip=0, rand_augment=0)),
    ... )
    (True, False, True)
    """
    return augment is None or (augment.resize == "squash" and augment.flip == 0 and augment.rand_augment == 0)


class KeptMaps:
    """Maps of all experts for P pictures, read from files when they are asked for.

    Attributes:
        maps: kind → (P, C, H, W) float16, mapped into memory.
        bad: pictures that could not be read, row → (name, reason).
    """

    def __init__(self, maps: Mapping[str, np.ndarray], bad: Mapping[int, tuple[str, str]]) -> None:
        self.maps, self.bad = dict(maps), dict(bad)

    def __len__(self) -> int:
        return len(next(iter(self.maps.values())))

    @property
    def features(self) -> dict[str, int]:
        """Kind → C."""
        return {kind: found.shape[1] for kind, found in self.maps.items()}

    def take(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Kind → (B, C, H, W) float16 of these pictures."""
        return {kind: torch.from_numpy(found[rows]) for kind, found in self.maps.items()}


def keep_maps(
    experts: Mapping[str, nn.Module],
    views: ImageViews,
    folder: Path | str,
    *,
    grid: int | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int | None = None,
) -> KeptMaps:
    """The maps of these experts for all pictures; what is there already is read.

    Args:
        experts: kind → module with ``features(view) → (B, C, H, W)`` and ``config``; in evaluation mode meanwhile.
        views: of the pictures, always alike.
        folder: of all kept maps.
        grid: side of the grid that maps are brought to afterwards: finer ones are kept at that size.
        batch_size: pictures at once.
        device: where experts run.
        workers: processes that decode pictures; default: as for training.

    Raises:
        DataError: views that differ from time to time, features that 16 bits cannot hold, or no picture that can be read.
        ConfigError: another process is at work there. RunError: the disk is full.
    """
    if not always_alike(views.augment):
        raise DataError(
            "these views differ from time to time, so maps cannot be kept: set augment.resize squash, augment.flip 0 and "
            "augment.rand_augment 0, or let the experts look anew at each step"
        )
    folder = Path(folder)
    places = {kind: folder / f"{kind}-{_key(expert, views, grid)}" for kind, expert in experts.items()}
    with first_process_first():
        missing = {kind: place for kind, place in places.items() if not (place / _META).is_file()}
        if missing and rank() == 0:
            with locked(folder):
                _compute(experts, views, missing, grid, batch_size, torch.device(device), workers)
    maps, bad = {}, {}
    for kind, place in places.items():
        meta = read_json(place / _META)
        maps[kind] = np.memmap(place / _MAPS, dtype=np.float16, mode="r", shape=tuple(meta["shape"]))
        bad |= {int(row): (name, reason) for row, (name, reason) in meta["bad"].items()}
    return KeptMaps(maps, bad)


def weights_fingerprint(module: nn.Module) -> str:
    """A digest of all weights and buffers of a module, and of its settings."""
    state = module.state_dict()
    config = getattr(module, "config", None)
    told = config.model_dump_json() if hasattr(config, "model_dump_json") else repr(config)
    tensors = [state[name].detach().cpu().contiguous() for name in state]
    raw = [tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.zeros(0) for tensor in tensors]
    return fingerprint(told, list(state), *raw)


def _key(expert: nn.Module, views: ImageViews, grid: int | None) -> str:
    seen = {name: value for name, value in views.describe().items() if name not in ("location", "augment")}
    backbone = getattr(expert, "backbone", expert)  # what a head says does not matter
    return fingerprint(weights_fingerprint(backbone), repr(sorted(seen.items())), grid)[:16]


class _Pictures:
    """The pictures of a set in order, for :func:`mc_core.data.in_order`."""

    def __init__(self, views: ImageViews) -> None:
        self.views = views

    def __len__(self) -> int:
        return len(self.views.images)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"image": self.views.sample(index, rng)}

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        return self._batch if self.views.in_memory else None

    def _batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        rows = np.asarray(indices, dtype=np.int64)
        return dict(self.views.batch(rows, rows, epoch, seed))


class _Writer:
    """Appends the maps of one expert; what a killed process left is taken up."""

    def __init__(self, kind: str, place: Path, count: int) -> None:
        self.kind, self.place, self.count = kind, place, count
        place.mkdir(parents=True, exist_ok=True)
        self.path = place / _PARTIAL
        self.shape: tuple[int, ...] | None = None
        self.bad: dict[int, tuple[str, str]] = {}
        self.file: BinaryIO | None = None
        self.rows = 0

    def begin(self, shape: tuple[int, ...]) -> None:
        """Learn the shape (C, H, W) of a map, and how many rows are there."""
        self.shape = shape
        self.file = self.path.open("ab")
        size = 2 * int(np.prod(shape))
        self.rows = min(self.path.stat().st_size // size, self.count)
        self.file.truncate(self.rows * size)
        self.file.seek(0, os.SEEK_END)

    def write(self, first: int, maps: Tensor) -> None:
        """Rows ``first`` and on; those that are there already are left out."""
        assert self.file is not None
        kept = maps[max(0, self.rows - first) :]
        if not len(kept):
            return
        half = kept.to(torch.float16).cpu().contiguous()
        read = ~torch.isnan(kept.reshape(len(kept), -1)[:, 0]).cpu()
        if not bool(torch.isfinite(half[read]).all()):
            raise DataError(
                f"the {self.kind} expert gives features up to {float(kept[read.to(kept.device)].abs().max()):.3g}, more than 16 "
                "bits hold: let the experts look anew at each step (keep_maps false)"
            )
        self.file.write(half.numpy().tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows += len(kept)

    def finish(self, reasons: Mapping[int, tuple[str, str]]) -> None:
        """Give the file its name, then say that it is whole."""
        assert self.file is not None
        assert self.shape is not None
        self.file.close()
        shape = (self.count, *self.shape)
        first = np.memmap(self.path, dtype=np.float16, mode="r", shape=shape)[:, 0, 0, 0]
        unread = np.flatnonzero(np.isnan(first)).tolist()
        del first
        bad = {str(row): list(reasons.get(row, (f"picture {row}", "could not be read"))) for row in unread}
        self.path.replace(self.place / _MAPS)
        sync_folder(self.place)
        write_json(self.place / _META, {"shape": list(shape), "bad": bad})


def _compute(
    experts: Mapping[str, nn.Module],
    views: ImageViews,
    places: Mapping[str, Path],
    grid: int | None,
    batch_size: int,
    device: torch.device,
    workers: int | None,
) -> None:
    """Look at every picture once, with all experts whose maps are missing."""
    data, count = _Pictures(views), len(views.images)
    _log.info("looking at %s pictures once: %s", f"{count:,}", ", ".join(places))
    writers = {kind: _Writer(kind, place, count) for kind, place in places.items()}
    reasons: dict[int, tuple[str, str]] = {}
    with ExitStack() as stack, torch.no_grad():
        for kind in writers:
            stack.enter_context(evaluating(experts[kind].to(device)))
        try:
            blank = torch.zeros(1, 3, views.size, views.size, device=device)
            for kind, writer in writers.items():
                writer.begin(tuple(_features(experts[kind], blank, grid).shape[1:]))
                stack.callback(writer.file.close)  # type: ignore[union-attr]
            start = min(writer.rows for writer in writers.values()) // batch_size * batch_size
            for batch in in_order(data, batch_size=batch_size, workers=workers, start=start):
                first, size = start, min(batch_size, count - start)
                start += size
                reasons |= {row: (name, reason) for row, name, reason in batch.get("bad", [])}
                for kind, writer in writers.items():
                    if writer.rows < first + size:
                        writer.write(first, _rows(experts[kind], views, batch, first, size, device, writer.shape, grid))
            if len(reasons) == count:
                name, reason = reasons[0]
                raise DataError(f"no picture can be read, the first is {name}: {reason}")
            for writer in writers.values():
                writer.finish(reasons)
        except OSError as error:
            raise explain_write_error(error, next(iter(places.values()))) from error


def _rows(
    expert: nn.Module,
    views: ImageViews,
    batch: Mapping[str, Any],
    first: int,
    size: int,
    device: torch.device,
    shape: tuple[int, ...] | None,
    grid: int | None,
) -> Tensor:
    """(size, C, H, W) of a batch; what could not be read is not a number."""
    assert shape is not None
    index = batch["index"]
    if not len(index):
        return torch.full((size, *shape), torch.nan)
    view = views.view({"image": batch["image"].to(device)}, BatchRandom(0, 0, index.to(device)))
    found = _features(expert, view, grid)
    if len(index) == size:
        return found
    whole = found.new_full((size, *shape), torch.nan)
    whole[index - first] = found
    return whole


def _features(expert: Any, view: Tensor, grid: int | None) -> Tensor:
    found = expert.features(view).float()
    if grid is None or max(found.shape[2:]) <= grid:
        return found
    return to_grid(found, grid)


class PictureRows(Protocol):
    """A data set whose samples each have one picture, and which can be asked for all but the picture."""

    @property
    def views(self) -> ImageViews:
        """Of the pictures."""
        ...

    def __len__(self) -> int: ...

    def picture_rows(self, indices: np.ndarray) -> np.ndarray:
        """(B,) the picture of each sample."""
        ...

    def without_pictures(self, indices: np.ndarray, epoch: int, seed: int) -> dict[str, Any]:
        """The batch of these samples but for what is made of pixels."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        ...


class MapData:
    """A data set with the kept maps of its pictures in place of views; follows the data contract of :mod:`mc_core.data`.

    A batch holds what that of ``data`` holds but for ``view``, and a map of each expert, (B, C, H, W) float32, by names such as
    ``map_detection``.

    Args:
        data: whose views are always alike.
        kept: the maps of ``data.views``.

    Raises:
        DataError: maps of another number of pictures.
    """

    def __init__(self, data: PictureRows, kept: KeptMaps) -> None:
        if len(kept) != len(data.views.images):
            raise DataError(f"maps of {len(kept)} pictures, there are {len(data.views.images)}")
        self.data, self.kept = data, kept

    def __len__(self) -> int:
        return len(self.data)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample, as a batch of one has it."""
        batch = self.get_batch([index], 0, int(rng.integers(1 << 62)))
        return {name: value[0] for name, value in batch.items() if isinstance(value, Tensor)}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        """A whole batch; others take the place of samples whose picture could not be read, which are named in ``bad``."""
        rows = np.array(indices, dtype=np.int64)
        bad = self._replaced(rows, epoch, seed) if self.kept.bad else []
        rest = self.data.without_pictures(rows, epoch, seed)
        maps = self.kept.take(self.data.picture_rows(rows))
        found = rest | {f"{MAP}{kind}": found for kind, found in maps.items()}
        return {**found, "bad": bad} if bad else found

    def _replaced(self, rows: np.ndarray, epoch: int, seed: int) -> list[tuple[int, str, str]]:
        """Put others in the place of bad samples, and say which those were."""
        bad = []
        for slot, index in enumerate(rows.tolist()):
            attempt = 0
            while (picture := int(self.data.picture_rows(rows[slot : slot + 1])[0])) in self.kept.bad:
                bad.append((int(rows[slot]), *self.kept.bad[picture]))
                rows[slot] = derive_seed(seed, epoch, index, attempt) % len(self)
                attempt += 1
        return bad

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """Maps as 32-bit floats."""
        return {name: value.float() if name.startswith(MAP) else value for name, value in batch.items()}

    def advice(self) -> list[str]:
        """As that of the data."""
        return list(getattr(self.data, "advice", list)())

    def describe(self) -> dict[str, Any]:
        """The data; that maps are kept is part of what is computed, as 16 bits round."""
        return {**self.data.describe(), "kept_maps": {kind: list(one.shape) for kind, one in self.kept.maps.items()}}
