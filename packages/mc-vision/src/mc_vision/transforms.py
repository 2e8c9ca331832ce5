"""Random views of images for training, and the fixed view for evaluation.

The same operations with the same distribution run in two places. On a *worker*, one image at a time: PIL cuts and
resizes, the rest is the batched code on a batch of one (at 224 pixels as fast as the operations of PIL or torchvision).
On the *device* of the batch, all samples at once: from crops that the workers cut or, when the images lie in memory as
one array, from the whole images. Each random number is a function of (seed, epoch, sample index, view), so that no view
depends on its batch, worker or process.

Deviations from torchvision's transforms: pixels just outside the crop, where there are any, take part in its resize (as
in PIL's ``resize(box=…)``); the blur reaches three times the largest standard deviation.

Legend: B samples, C channels, H × W pixels of the image, S side of the view, R random numbers, N images of the source.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mc_core.data import BadSampleError, finish_on_device, stack_samples
from mc_core.errors import ConfigError, DataError
from mc_core.images.crops import ATTEMPTS, crop_resize, random_boxes, where_chosen
from mc_core.random import BatchRandom, sample_rng
from mc_vision import _batched_ops as ops
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD, View, Views

if TYPE_CHECKING:
    from mc_vision.data.source import ImageSource

# Where each choice finds its random numbers: fixed places, so that turning one operation off leaves the others alone.
_AREA = slice(0, ATTEMPTS)
_RATIO = slice(ATTEMPTS, 2 * ATTEMPTS)
_TOP, _LEFT, _FLIP, _JITTER, _ORDER, _GRAY, _BLUR, _SIGMA, _SOLARIZE = range(2 * ATTEMPTS, 2 * ATTEMPTS + 9)
_FACTORS = slice(2 * ATTEMPTS + 9, 2 * ATTEMPTS + 13)
DRAWS = 2 * ATTEMPTS + 13

_Numbers = tuple[float, ...]

_CACHE_FLOATS = 1 << 19  # a chunk of this many stays in a core's cache, which makes CPU views about three times as fast
_DEVICE_SIDE = 128  # beyond, whole images are cropped faster by PIL than by matrix products on a CPU
_REDUCING_GAP = 3.0  # PIL's "almost the same as the fair resampling"


def crop_boxes(u_BR: Tensor, height: int, width: int, view: View) -> Tensor:
    """Random crops as torchvision's ``RandomResizedCrop`` draws them: the first of ten that fits, else a central one.

    Args:
        u_BR: (B, DRAWS) uniform numbers in [0, 1).
        height: of the images, pixels.
        width: of the images, pixels.
        view: its ``crop_scale`` and ``crop_ratio``.

    Returns:
        (B, 4) float32: top, left, height, width, whole pixels.
    """
    numbers = torch.cat([u_BR[:, _AREA], u_BR[:, _RATIO], u_BR[:, [_TOP, _LEFT]]], dim=1)
    return random_boxes(numbers, height, width, view.crop_scale, view.crop_ratio)


@dataclass(frozen=True)
class _Choices:
    """What happens to each sample after the crop; all (B,) but ``factors`` (B, 4)."""

    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    gray: Tensor
    blur: Tensor
    sigma: Tensor
    solarize: Tensor

    @classmethod
    def draw(cls, u_BR: Tensor, view: View) -> Self:
        signed_B4 = 2 * u_BR[:, _FACTORS] - 1
        tones = []
        for column, strength in enumerate(view.jitter[:3]):
            low = max(0.0, 1 - strength)
            tones.append(low + (1 + strength - low) * u_BR[:, _FACTORS][:, column])
        low, high = view.blur_sigma
        return cls(
            flip=u_BR[:, _FLIP] < view.flip_p,
            jitter=u_BR[:, _JITTER] < view.jitter_p,
            factors=torch.stack([*tones, signed_B4[:, ops.HUE] * view.jitter[ops.HUE]], dim=1),
            order=(u_BR[:, _ORDER] * ops.ORDERS).long().clamp_(max=ops.ORDERS - 1),
            gray=u_BR[:, _GRAY] < view.grayscale_p,
            blur=u_BR[:, _BLUR] < view.blur_p,
            sigma=low + (high - low) * u_BR[:, _SIGMA],
            solarize=u_BR[:, _SOLARIZE] < view.solarize_p,
        )

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def _recolor(x_BCSS: Tensor, chosen: _Choices, view: View) -> Tensor:
    """Everything after crop and flip, on values in [0, 1]; writes into ``x``."""
    jitters = view.jitter_p > 0 and max(view.jitter) > 0

    def jitter(x: Tensor) -> Tensor:
        return where_chosen(x, chosen.jitter, ops.color_jitter, chosen.factors, chosen.order) if jitters else x

    def gray(x: Tensor) -> Tensor:
        return where_chosen(x, chosen.gray, ops.grayscale) if view.grayscale_p and x.shape[1] == 3 else x

    x_BCSS = gray(jitter(x_BCSS)) if view.order == "jitter-first" else jitter(gray(x_BCSS))
    if view.blur_p:
        blur = functools.partial(ops.gaussian_blur, reach=math.ceil(3 * view.blur_sigma[1]))
        x_BCSS = where_chosen(x_BCSS, chosen.blur, blur, chosen.sigma)
    if view.solarize_p:
        x_BCSS = where_chosen(x_BCSS, chosen.solarize, ops.solarize)
    return _normalize(x_BCSS, view.mean, view.std)


def _statistics(mean: Sequence[float], std: Sequence[float], channels: int) -> tuple[_Numbers, _Numbers]:
    """``mean`` and ``std`` for this many channels: three become one by averaging, one becomes three by repeating."""
    if len(mean) == channels:
        return tuple(mean), tuple(std)
    return (sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels


def _normalize(x_BCSS: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    mean, std = _statistics(mean, std, x_BCSS.shape[1])
    return x_BCSS.sub_(ops.constant(mean, x_BCSS.device)).div_(ops.constant(std, x_BCSS.device))


def _as_float(image_BCHW: Tensor, channels: int) -> Tensor:
    """uint8 → float32 in [0, 1] with this many channels, in memory of its own."""
    x_BCHW = image_BCHW.to(torch.float32).div_(255)
    if x_BCHW.shape[1] == channels:
        return x_BCHW
    return x_BCHW.repeat(1, 3, 1, 1) if channels == 3 else ops.luma(x_BCHW)


def _chunks(count: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Rows to work on together: on a CPU as many as fit its cache, elsewhere all."""
    step = max(1, _CACHE_FLOATS // floats) if device.type == "cpu" else count
    return (slice(start, start + step) for start in range(0, count, step))


def make_views(image_BCHW: Tensor, u_BR: Tensor, view: View, *, channels: int = 3, cropped: bool = False) -> Tensor:
    """One random view of each image of a batch, on the batch's device.

    Args:
        image_BCHW: uint8, C 1 or 3: whole images, or crops of the view's size.
        u_BR: (B, DRAWS) uniform numbers in [0, 1), all that is random about the views.
        view: what to do.
        channels: of the result, 1 or 3.
        cropped: whether the images are crops already.

    Returns:
        (B, channels, S, S) float32, normalised.

    >>> images = torch.randint(256, (2, 3, 40, 50), dtype=torch.uint8)
    >>> make_views(images, torch.rand(2, DRAWS), View(size=32)).shape
    torch.Size([2, 3, 32, 32])
    """
    height, width = image_BCHW.shape[2:]
    device = image_BCHW.device
    choices = _Choices.draw(u_BR, view)
    box_B4 = None if cropped else crop_boxes(u_BR, height, width, view)
    made = []
    with torch.autocast(device.type, enabled=False):
        for rows in _chunks(len(image_BCHW), channels * max(height * width, view.size**2), device):
            x, chosen = _as_float(image_BCHW[rows], channels), choices[rows]
            if box_B4 is not None:
                x = crop_resize(x, box_B4[rows], view.size, chosen.flip if view.flip_p else None)
            elif view.flip_p:
                x = where_chosen(x, chosen.flip, ops.horizontal_flip)
            made.append(_recolor(x, chosen, view))
    return made[0] if len(made) == 1 else torch.cat(made)


def _pixels(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    pixels = np.array(image)  # a copy: torch wants memory it may write to
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _resized(image: Image.Image, box: Sequence[float], size: int) -> Image.Image:
    top, left, height, width = box
    corners = (left, top, min(left + width, image.width), min(top + height, image.height))
    return image.resize((size, size), Image.Resampling.BILINEAR, box=corners, reducing_gap=_REDUCING_GAP)


class _FromSource:
    """What both data sets do with a source."""

    def __init__(self, source: ImageSource, channels: int) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"channels {channels}: views are made of gray (1) or colour (3) images")
        self.source, self.channels = source, channels
        self.array: np.ndarray | None = getattr(source, "array", None)
        self.ids: np.ndarray | None = getattr(source, "ids", None)
        if self.array is not None and self.array.shape[1] not in (1, 3):
            raise DataError(f"the images have {self.array.shape[1]} channels; views are made of images with 1 or 3")

    def __len__(self) -> int:
        return len(self.source)

    def image(self, index: int) -> Image.Image:
        """The original, in colour or gray as ``channels`` says."""
        image = self.source.load(index)
        if not isinstance(image, Image.Image):
            reason = f"{image.shape[-1]} channels; views are made of images with 1 or 3"
            raise BadSampleError(self.source.name(index), reason)
        mode = "RGB" if self.channels == 3 else "L"
        return image if image.mode == mode else image.convert(mode)

    def _rows(self, indices: Sequence[int]) -> Tensor:
        assert self.array is not None
        return torch.from_numpy(self.array[np.asarray(indices)])


class ViewDataset(_FromSource):
    """Random views of the images of a source, for training; follows the data contract of :mod:`mc_core.data`.

    A batch holds ``view_1``, ``view_2``, …: (B, channels, S, S) float32, normalised, each of its own size S; and
    ``ids`` when the source has them.

    Args:
        source: where images come from.
        views: what to make of them.
        where: ``"worker"``: finished views, one by one, on the loader's processes; ``"device"``: batched on the device
            of the batch, from crops cut by the workers or, when the source has an ``array``, from the whole images;
            ``"auto"``: device when CUDA is available or the source is an array of images of at most 128 pixels, else
            worker. The two draw from the same distribution, but not the same views.
        channels: 3, or 1 for gray views (then saturation, hue and grayscale change nothing).

    Raises:
        ConfigError: an unknown ``where``, or other numbers of channels.
        DataError: the source's array is not uint8 (N, 1 or 3, H, W).
    """

    def __init__(
        self,
        source: ImageSource,
        views: Views,
        *,
        where: Literal["auto", "worker", "device"] = "auto",
        channels: int = 3,
    ) -> None:
        super().__init__(source, channels)
        if where not in ("auto", "worker", "device"):
            raise ConfigError(f"where '{where}': views are made on a 'worker' or on the 'device'; 'auto' decides")
        if where == "auto":
            small_array = self.array is not None and max(self.array.shape[2:]) <= _DEVICE_SIDE
            where = "device" if torch.cuda.is_available() or small_array else "worker"
        self.views, self.where = views, where

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One sample: finished views, or what the device makes them of."""
        sample: dict[str, Any] = {}
        if self.where == "device" and self.array is not None:
            sample["image"] = self._rows([index])[0]
        else:
            image = self.image(index)
            for number, view in enumerate(self.views.views, start=1):
                u_1R = torch.from_numpy(rng.random((1, DRAWS), dtype=np.float32))
                box = crop_boxes(u_1R, image.height, image.width, view)[0].tolist()
                crop = _pixels(_resized(image, box, view.size))
                if self.where == "worker":
                    crop = make_views(crop[None], u_1R, view, channels=self.channels, cropped=True)[0]
                sample[f"view_{number}"] = crop
        if self.ids is not None:
            sample["ids"] = int(self.ids[index])
        return sample

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where whole batches can be had at once, else None."""
        return self._image_batch if self.where == "device" and self.array is not None else None

    def _image_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        batch: dict[str, Any] = {"image": self._rows(indices)}
        if self.ids is not None:
            batch["ids"] = torch.from_numpy(self.ids[np.asarray(indices)])
        return batch

    @property
    def device_transform(self) -> Callable[[Mapping[str, Any], BatchRandom], dict[str, Any]] | None:
        """``device_transform(batch, random)`` where the device has work to do, else None."""
        return self._views_on_device if self.where == "device" else None

    def _views_on_device(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        done = {name: value for name, value in batch.items() if name != "image"}
        for number, view in enumerate(self.views.views, start=1):
            cropped = "image" not in batch
            image = batch[f"view_{number}"] if cropped else batch["image"]
            u_BR = random.uniform(DRAWS, stream=number)
            done[f"view_{number}"] = make_views(image, u_BR, view, channels=self.channels, cropped=cropped)
        return done

    def describe(self) -> dict[str, Any]:
        """The source, and how it is looked at."""
        return {
            **self.source.describe(),
            "channels": self.channels,
            "views": self.views.model_dump(mode="json")["views"],
        }


class EvalDataset(_FromSource):
    """The middle of each image: its shorter side resized to ``size·resize_ratio``, then cut centrally.

    A sample holds ``image``, (channels, size, size) float32, normalised, and ``label`` when the source has labels.

    Args:
        source: where images come from.
        size: side of the result in pixels.
        resize_ratio: at least 1; 256/224 is the convention for photographs, 1 keeps the whole shorter side.
        mean: of the normalisation, 1 or 3 numbers.
        std: of the normalisation.
        channels: 1 or 3.

    Raises:
        ConfigError: a size, ratio or number of channels out of range.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int,
        *,
        resize_ratio: float = 256 / 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        channels: int = 3,
    ) -> None:
        if size < 1 or resize_ratio < 1:
            raise ConfigError(f"size {size} and resize_ratio {resize_ratio:g} must both be 1 or more")
        super().__init__(source, channels)
        self.size, self.resize_ratio = size, resize_ratio
        self.mean, self.std = _statistics(mean, std, channels)

    def _box(self, height: int, width: int) -> tuple[float, float, float, float]:
        """What the crop covers, in pixels of the original; rounded as torchvision's Resize and CenterCrop do."""
        short = round(self.size * self.resize_ratio)
        smaller = min(height, width)
        resized = [int(short * side / smaller) for side in (height, width)]
        top, left = (round((side - self.size) / 2) for side in resized)
        per_y, per_x = height / resized[0], width / resized[1]
        return top * per_y, left * per_x, self.size * per_y, self.size * per_x

    def get(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Sample ``index``; nothing is random about it."""
        image = self.image(index)
        crop = _pixels(_resized(image, self._box(image.height, image.width), self.size))
        sample: dict[str, Any] = {"image": _normalize(_as_float(crop[None], self.channels), self.mean, self.std)[0]}
        if self.source.labels is not None:
            sample["label"] = int(self.source.labels[index])
        return sample

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where the source is an array, else None."""
        return self._batch if self.array is not None else None

    def _batch(self, indices: Sequence[int], epoch: int = 0, seed: int = 0) -> dict[str, Any]:
        image_BCHW = self._rows(indices)
        height, width = image_BCHW.shape[2:]
        box_14 = torch.tensor([self._box(height, width)])
        made = []
        for rows in _chunks(len(image_BCHW), self.channels * max(height * width, self.size**2), image_BCHW.device):
            x = crop_resize(_as_float(image_BCHW[rows], self.channels), box_14, self.size)
            made.append(_normalize(x, self.mean, self.std))
        batch: dict[str, Any] = {"image": torch.cat(made)}
        if self.source.labels is not None:
            batch["label"] = torch.from_numpy(self.source.labels[np.asarray(indices)])
        return batch

    def describe(self) -> dict[str, Any]:
        """The source, and how it is looked at."""
        own = {"size": self.size, "resize_ratio": self.resize_ratio, "mean": list(self.mean), "std": list(self.std)}
        return {**self.source.describe(), "channels": self.channels, "evaluation_view": own}


def view_sheet(
    dataset: ViewDataset, indices: Sequence[int], epoch: int = 0, seed: int = 0, *, cell: int = 128
) -> Image.Image:
    """A picture of originals (left) and the views that training would see of them, one sample per row.

    Args:
        dataset: whose views.
        indices: which samples.
        epoch: of which pass.
        seed: of the run.
        cell: side of each picture in pixels.
    """
    samples = [dataset.get(index, sample_rng(seed, epoch, index)) for index in indices]
    batch = {**stack_samples(samples), "index": torch.as_tensor(indices, dtype=torch.int64), "epoch": epoch}
    batch = finish_on_device(dataset, batch, seed)
    gap = max(2, cell // 32)
    step = cell + gap
    sheet = Image.new("RGB", (step * (len(dataset.views.views) + 1) + gap, step * len(indices) + gap), "white")
    for row, index in enumerate(indices):
        original = dataset.image(index).convert("RGB")
        shrink = cell / max(original.size)
        original = original.resize((max(1, round(original.width * shrink)), max(1, round(original.height * shrink))))
        corner = gap + (cell - original.width) // 2, gap + step * row + (cell - original.height) // 2
        sheet.paste(original, corner)
        for number, view in enumerate(dataset.views.views, start=1):
            x_CSS = batch[f"view_{number}"][row]
            mean, std = _statistics(view.mean, view.std, len(x_CSS))
            x_CSS = x_CSS * ops.constant(std, x_CSS.device) + ops.constant(mean, x_CSS.device)
            pixels = x_CSS.mul(255).round().clamp(0, 255).byte().expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
            zoom = Image.Resampling.NEAREST if view.size < cell else Image.Resampling.BILINEAR
            picture = Image.fromarray(pixels).resize((cell, cell), zoom)
            sheet.paste(picture, (gap + step * number, gap + step * row))
    return sheet
