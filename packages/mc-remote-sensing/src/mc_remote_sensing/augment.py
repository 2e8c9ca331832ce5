"""Random changes of whole batches of tiles, on the device of the batch.

One geometric change moves image, elevation and labels together; photometric ones are drawn for each view by itself. Slope and
curvature belong to no direction, so flips and turns leave their values alone. All random numbers are functions of (seed, epoch,
sample index, view). Everything here is ours.

Legend: B tiles, C bands, T side of a tile in pixels, S side of the result.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from mc_core.data import Dataset
from mc_core.errors import DataError
from mc_core.random import BatchRandom
from mc_remote_sensing.augment_config import AugmentConfig
from mc_remote_sensing.encoders_config import BandsConfig

_GEOMETRY, _TONE, _RELIEF, _NOISE, _STREAMS = range(5)
_IGNORE = 255
_REACH = 3.0  # deviations to either side of the mean, between which gamma works
_NOISE_CELL = 8  # pixels
_SLOPE_UNIT = math.radians(45.0)


class TileAugment:
    """Changes batches of tiles, or of pairs of crops, for training.

    Args:
        config: what is changed how much.
        bands: of the images; brightness and contrast are measured in their deviations.
        second_view: whether the other view of a labelled tile is made too, which only the contrast needs.

    A batch of tiles has ``image`` (B, C, T, T), ``image_valid`` (B, T, T), ``elevation`` (B, 4, T, T) and ``labels`` (B, T, T),
    each if there is one; with a second view, ``image_2`` and ``elevation_2`` are added: the same ground in other light. A batch of
    pairs has ``image_1``, ``image_2``, ``valid_1``, ``valid_2`` and ``elevation``, which becomes ``elevation_1`` and
    ``elevation_2``. Use it as a data set's ``device_transform`` (see :class:`AugmentedTiles`).

    >>> augment = TileAugment(AugmentConfig(), BandsConfig())
    >>> batch = {"image": torch.rand(2, 3, 16, 16), "labels": torch.zeros(2, 16, 16, dtype=torch.uint8)}
    >>> made = augment(batch, BatchRandom(seed=0, epoch=0, index=torch.arange(2)))
    >>> sorted(made), made["image"].shape
    (['image', 'image_2', 'image_valid', 'labels'], torch.Size([2, 3, 16, 16]))
    """

    def __init__(self, config: AugmentConfig, bands: BandsConfig, *, second_view: bool = True) -> None:
        self.config, self.bands = config, bands
        self.views = (1, 2) if second_view else (1,)

    def __call__(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The changed batch; what it does not know is handed on."""
        made = dict(batch)
        side = next(
            (batch[name].shape[-1] for name in ("labels", "elevation", "image", "image_1") if name in batch), None
        )
        if side is None:
            return made
        geometry = Geometry.draw(random, self.config, side)
        pairs = "image_1" in batch
        with torch.autocast(random.index.device.type, enabled=False):
            for image, valid in (
                (("image_1", "valid_1"), ("image_2", "valid_2")) if pairs else (("image", "image_valid"),)
            ):
                if image in batch and batch[image].shape[1]:
                    made[image], made[valid] = geometry.move(batch[image].float(), batch.get(valid))
            if pairs:
                for view in (1, 2):
                    made[f"image_{view}"] = self.tone(made[f"image_{view}"], made[f"valid_{view}"], random, view)
            elif "image" in batch and batch["image"].shape[1]:
                moved = made["image"]
                for view in self.views:
                    made[_named("image", view)] = self.tone(moved, made["image_valid"], random, view)
            if "elevation" in batch:
                elevation = geometry.move_elevation(made.pop("elevation").float())
                for view in (1, 2) if pairs else self.views:
                    name = f"elevation_{view}" if pairs else _named("elevation", view)
                    made[name] = self.relief(elevation, random, view)
            if "labels" in batch:
                made["labels"] = geometry.move_labels(batch["labels"])
        return made

    def tone(self, image: Tensor, valid: Tensor, random: BatchRandom, view: int) -> Tensor:
        """(B, C, S, S) image in another light: gamma, blur, contrast and brightness. Invalid pixels stay what they are.

        Args:
            image: in the units of the raster.
            valid: (B, S, S) bool.
            random: of the batch.
            view: its number.
        """
        config = self.config
        if len(self.bands.mean) != image.shape[1]:
            raise DataError(f"the tiles have {image.shape[1]} bands, the statistics are of {len(self.bands.mean)}")
        mean, deviation = (_constant(values, image.device) for values in (self.bands.mean, self.bands.std))
        u = random.uniform(5, stream=view * _STREAMS + _TONE)[:, :, None, None, None]
        bright, strength, exponent, blurred, amount = u.unbind(1)
        known = valid[:, None]
        x = ((image - mean) / deviation).masked_fill(~known, 0.0)
        if config.gamma:
            power = torch.exp((2 * exponent - 1) * math.log1p(config.gamma))
            share = (x + _REACH) / (2 * _REACH)
            bent = share.clamp(0, 1).pow(power) * (2 * _REACH) - _REACH
            x = torch.where((share > 0) & (share < 1), bent, x)
        if config.blur_p:
            around = _mean_3x3(x, known)
            x = torch.lerp(x, around, (blurred < config.blur_p) * amount)
        factor = 1 + config.contrast * (2 * strength - 1)
        number = known.sum((2, 3), keepdim=True).clamp(min=1)
        middle = x.masked_fill(~known, 0.0).sum((2, 3), keepdim=True) / number
        shift = middle * (1 - factor) + config.brightness * (2 * bright - 1)
        made = (x * factor + shift) * deviation + mean
        return torch.where(known, made, image)

    def relief(self, elevation: Tensor, random: BatchRandom, view: int) -> Tensor:
        """(B, 4, S, S) elevation with all heights multiplied, and smooth noise. An offset of all heights changes nothing.

        With heights times k a slope s becomes atan(k tan s) and a curvature c becomes k c, within the ±1 it is cut to.
        """
        config = self.config
        height, slope, curvature, valid = elevation.unbind(1)
        u = random.uniform(1, stream=view * _STREAMS + _RELIEF)[:, :, None]
        factor = 1 + config.elevation_scale * (2 * u - 1)
        steep = torch.atan(factor * torch.tan(slope * _SLOPE_UNIT)) / _SLOPE_UNIT
        made = torch.stack([height * factor, steep, curvature * factor], dim=1)
        if config.elevation_noise:
            cells = -(-elevation.shape[-1] // _NOISE_CELL) + 1
            draws = random.uniform(3 * cells * cells, stream=view * _STREAMS + _NOISE).view(-1, 3, cells, cells)
            coarse = (2 * draws - 1) * (config.elevation_noise * math.sqrt(3))
            rows, columns = (_hats(side, cells, elevation.device) for side in made.shape[2:])
            made = made + rows @ (coarse @ columns.T)
        made[:, 1].clamp_(min=0)
        made[:, 2].clamp_(-1, 1)
        made = made * (valid > 0)[:, None]
        return torch.cat([made, valid[:, None]], dim=1)


@dataclass(frozen=True)
class Geometry:
    """Where each tile of a batch is cut, how large, and how it is turned.

    Attributes:
        start: (B, 2) first row and column, in pixels of the tile; negative where the cut begins outside.
        length: (B,) side of the cut in pixels of the tile.
        flip: (B, 2) bool, upside down and mirrored.
        transpose: (B,) bool, rows and columns exchanged, after the flips.
        size: S.
        exact: whether every cut has S × S whole pixels, so that nothing is interpolated.
    """

    start: Tensor
    length: Tensor
    flip: Tensor
    transpose: Tensor
    size: int
    exact: bool

    @classmethod
    def draw(cls, random: BatchRandom, config: AugmentConfig, side: int) -> Self:
        """At random: uniform in the logarithm of the zoom, in the place, and over the eight flips and turns."""
        u = random.uniform(6, stream=_GEOMETRY)
        size = config.size or side
        low, high = config.scale
        exact = low == high == 1 and size <= side
        zoom = low * torch.exp(u[:, 3] * math.log(high / low))
        length = size / zoom
        spare = (side - length)[:, None]
        start = (u[:, 4:6] * (side - size + 1)).floor() if exact else u[:, 4:6] * spare
        turned = (u[:, :3] < 0.5) & config.flip
        return cls(start, length, turned[:, :2], turned[:, 2], size, exact)

    def move(self, x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) values interpolated between valid pixels, and (B, S, S) where at least half of the weight was valid.

        Args:
            x: (B, C, T, T).
            valid: (B, T, T) bool; default: all.
        """
        if valid is None:
            valid = torch.ones(len(x), *x.shape[2:], dtype=torch.bool, device=x.device)
        if self.exact:
            return self._picked(x), self._picked(valid)
        known = valid[:, None].to(x.dtype)
        rows, columns = self._weights(0, x.shape[2]), self._weights(1, x.shape[3])
        summed = rows[:, None] @ (torch.cat([x * known, known], dim=1) @ columns[:, None].mT)
        weight = summed[:, -1:]
        made = summed[:, :-1] / weight.clamp(min=1e-6)
        found = weight >= 0.5
        return self._transposed(made.masked_fill(~found, 0.0)), self._transposed(found[:, 0])

    def move_elevation(self, elevation: Tensor) -> Tensor:
        """(B, 4, S, S): as :meth:`move`, by the valid channel of the elevation itself."""
        values, valid = self.move(elevation[:, :3], elevation[:, 3] > 0.5)
        return torch.cat([values, valid[:, None].to(values.dtype)], dim=1)

    def move_labels(self, labels: Tensor) -> Tensor:
        """(B, S, S) labels of the nearest pixels, 255 beyond the tile."""
        if self.exact:
            return self._picked(labels)
        for axis in (0, 1):
            place = self._places(axis).floor().long()
            outside = (place < 0) | (place >= labels.shape[1 + axis])
            place = place.clamp(0, labels.shape[1 + axis] - 1)
            shape = (len(labels), self.size, labels.shape[2]) if axis == 0 else (len(labels), self.size, self.size)
            index, beyond = ((t[:, :, None] if axis == 0 else t[:, None, :]).expand(shape) for t in (place, outside))
            labels = labels.gather(1 + axis, index).masked_fill(beyond, _IGNORE)
        return self._transposed(labels)

    def _places(self, axis: int) -> Tensor:
        """(B, S) where the centres of the result's pixels lie in the tile, in pixels."""
        at_S = torch.arange(self.size, device=self.start.device) + 0.5
        at_BS = torch.where(self.flip[:, axis, None], self.size - at_S, at_S)
        return self.start[:, axis, None] + at_BS * (self.length / self.size)[:, None]

    def _weights(self, axis: int, side: int) -> Tensor:
        """(B, S, T) of a bilinear resize with antialiasing; what falls beyond the tile is lost from the sums."""
        scale = (self.length / self.size)[:, None, None]
        pixel = torch.arange(side, device=self.start.device) + 0.5
        distance = (pixel - self._places(axis)[..., None]).abs() / scale.clamp(min=1)
        return (1 - distance).clamp(min=0) / scale.clamp(min=1)

    def _picked(self, x: Tensor) -> Tensor:
        """Whole pixels: where each pixel of the result comes from, read for all channels at once."""
        rows, columns = (self._places(axis).floor().long() for axis in (0, 1))
        place = self._transposed(rows[:, :, None] * x.shape[-1] + columns[:, None, :]).flatten(1)
        place = place.view(len(x), *[1] * (x.ndim - 3), -1).expand(*x.shape[:-2], -1)
        return x.flatten(-2).gather(-1, place).unflatten(-1, (self.size, self.size))

    def _transposed(self, x: Tensor) -> Tensor:
        return torch.where(self.transpose.view((-1,) + (1,) * (x.ndim - 1)), x.mT, x)


class AugmentedTiles:
    """A data set whose batches are changed on their device.

    Args:
        data: of tiles or of pairs of crops.
        augment: what to do with them.
    """

    def __init__(self, data: Dataset, augment: TileAugment) -> None:
        self.data, self.augment = data, augment

    def __len__(self) -> int:
        return len(self.data)

    def get(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """A sample as the data has it."""
        return self.data.get(index, rng)

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """That of the data, where it has one."""
        return getattr(self.data, "get_batch", None)

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The changed batch."""
        return self.augment(batch, random)

    def describe(self) -> dict[str, Any]:
        """What identifies the data, with its changes."""
        describe = getattr(self.data, "describe", None)
        return {**(describe() if describe else {}), "augment": self.augment.config.model_dump(mode="json")}


def _named(name: str, view: int) -> str:
    return name if view == 1 else f"{name}_{view}"


@functools.lru_cache(maxsize=8)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1), copied to the device once."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@functools.lru_cache(maxsize=8)
def _hats(side: int, cells: int, device: torch.device) -> Tensor:
    """(side, cells) weights of a linear interpolation between values that lie a cell apart."""
    at = (torch.arange(side) + 0.5) / _NOISE_CELL
    return (1 - (at[:, None] - torch.arange(cells)).abs()).clamp(min=0).to(device)


def _mean_3x3(x: Tensor, known: Tensor) -> Tensor:
    """The mean over the valid pixels of each 3×3 neighbourhood; ``x`` is 0 elsewhere."""
    box = x.new_full((1, 1, 3, 3), 1 / 9)
    weight = conv2d(pad(known.to(x.dtype), (1, 1, 1, 1)), box)
    summed = conv2d(pad(x, (1, 1, 1, 1)).flatten(0, 1)[:, None], box).view_as(x)
    return torch.where(known, summed / weight.clamp(min=1e-6), x)
