"""What a random view is: one frozen model per view, and the published recipes by name. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel
from mc_core.errors import ConfigError, closest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class View(StrictModel):
    """One random view of an image. The defaults are those of MoCo v2 ("aug+", Chen et al. 2020, arXiv:2003.04297).

    The operations run in this order: crop and resize, flip, colour jitter, grayscale (the last two exchanged by
    ``order="grayscale-first"``), Gaussian blur, solarisation, normalisation.

    >>> View(size=64).crop_scale
    (0.2, 1.0)
    """

    size: int = Field(default=224, ge=1)
    """Side of the square view in pixels."""
    crop_scale: tuple[float, float] = (0.2, 1.0)
    """Share of the image area that the crop covers, drawn uniformly from this range."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width/height of the crop, drawn log-uniformly from this range."""
    flip_p: float = Field(default=0.5, ge=0, le=1)
    """Probability of a horizontal flip."""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    """Strengths s of brightness, contrast, saturation (factors in [1−s, 1+s]) and hue (turned by [−s, s], s ≤ 0.5)."""
    jitter_p: float = Field(default=0.8, ge=0, le=1)
    """Probability of the colour jitter."""
    grayscale_p: float = Field(default=0.2, ge=0, le=1)
    """Probability of turning gray."""
    blur_p: float = Field(default=0.5, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Standard deviation of the blur in pixels of the view (what PIL calls its radius), drawn uniformly."""
    solarize_p: float = Field(default=0.0, ge=0, le=1)
    """Probability of inverting all values from 128 of 255 on."""
    order: Literal["jitter-first", "grayscale-first"] = "jitter-first"
    """Jitter before grayscale (MoCo v2 and later) or after it (MoCo v1)."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Subtracted from values in [0, 1], one number per channel."""
    std: tuple[float, ...] = IMAGENET_STD
    """Divided by, one number per channel."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {self.crop_scale} is (low, high) with 0 < low ≤ high ≤ 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio {self.crop_ratio} is (low, high) with 0 < low ≤ high")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"jitter {self.jitter}: strengths are 0 or more, and that of hue at most 0.5 turns")
        low, high = self.blur_sigma
        if not 0 < low <= high:
            raise ValueError(f"blur_sigma {self.blur_sigma} is (low, high) in pixels with 0 < low ≤ high")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ValueError(f"mean {self.mean} and std {self.std} need one number per channel: 1 or 3 each")
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be positive")
        return self


class Views(StrictModel):
    """The views of one sample, in the order of the keys ``view_1``, ``view_2``, …. Their sizes may differ.

    >>> len(Views().views), Views().min_side
    (2, 501)
    """

    views: tuple[View, ...] = Field(default=(View(), View()), min_length=1)
    """One entry per view."""

    @property
    def small(self) -> tuple[View, ...]:
        """The views smaller than the first: the small crops of multi-crop."""
        return tuple(view for view in self.views if view.size < self.views[0].size)

    @property
    def min_side(self) -> int:
        """The shorter side an image needs, in pixels, so that a square crop of the smallest area is never enlarged.

        Files may be decoded at this size: give it to :class:`mc_vision.data.source.ReadOptions` as ``min_side``.
        """
        return max(math.ceil(view.size / math.sqrt(view.crop_scale[0])) for view in self.views)


_CIFAR = View(size=32, crop_scale=(0.08, 1.0), blur_p=0.0, mean=CIFAR_MEAN, std=CIFAR_STD)
_SMALL = View(size=32, crop_scale=(0.3, 1.0), blur_p=0.0, mean=(0.5,) * 3, std=(0.25,) * 3)
_DIGITS = _SMALL.model_copy(update={"flip_p": 0.0, "jitter": (0.5,) * 4, "grayscale_p": 0.5})
_V3_JITTER = (0.4, 0.4, 0.2, 0.1)
# The released code divides red by 0.228. That is a slip, worth 0.4 %, which nobody who uses the encoder would repeat.
_SWAV = View(crop_scale=(0.14, 1.0), jitter=(0.8, 0.8, 0.8, 0.2))


def _v3(crop_min: float) -> tuple[View, View]:
    base = View(crop_scale=(crop_min, 1.0), jitter=_V3_JITTER, blur_p=1.0)
    return base, base.model_copy(update={"blur_p": 0.1, "solarize_p": 0.2})


def _multi_crop(full: View, small: int, size: int, crop_scale: tuple[float, float]) -> tuple[View, ...]:
    """Two full views and ``small`` ones of another size and scale, alike in everything else."""
    return (full,) * 2 + (full.model_copy(update={"size": size, "crop_scale": crop_scale}),) * small


PRESETS: dict[str, tuple[View, ...]] = {
    # MoCo v1 (arXiv:1911.05722): stronger hue, always jittered, after the grayscale; no blur
    "moco-v1": (View(jitter=(0.4,) * 4, jitter_p=1.0, blur_p=0.0, order="grayscale-first"),) * 2,
    # MoCo v2 (arXiv:2003.04297)
    "moco-v2": (View(),) * 2,
    # MoCo v3 (arXiv:2104.02057): the two pipelines of BYOL; ResNets crop from 0.2 of the area, ViTs from 0.08
    "moco-v3": _v3(0.2),
    "moco-v3-vit": _v3(0.08),
    # SimCLR (arXiv:2002.05709), colour strength 1
    "simclr": (View(crop_scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2)),) * 2,
    # the CIFAR-10 recipe of MoCo and DCL
    "cifar": (_CIFAR,) * 2,
    # our own, for images of about 64 pixels or less: gentler crops, no blur
    "small": (_SMALL,) * 2,
    # the same for digits, letters and signs: a mirror changes them, their colour does not
    "digits": (_DIGITS,) * 2,
    # SwAV (arXiv:2006.09882): multi-crop, and its views without small crops
    "swav": _multi_crop(_SWAV, 6, 96, (0.05, 0.14)),
    "swav-2": (_SWAV.model_copy(update={"crop_scale": (0.08, 1.0)}),) * 2,
    # our own, digits with small crops: as in SwAV these end where the others begin, and are hardly enlarged
    "swav-small": _multi_crop(_DIGITS, 4, 16, (0.1, 0.3)),
}


def views_preset(name: str, size: int | None = None) -> Views:
    """The views of a published recipe.

    Args:
        name: a key of ``PRESETS``: ``moco-v1``, ``moco-v2``, ``moco-v3`` (ResNet), ``moco-v3-vit``, ``simclr``,
            ``cifar``, ``small``, ``digits``, ``swav`` (two full views and six small ones), ``swav-2`` or ``swav-small``.
        size: side of the full views in pixels; default: that of the recipe (224, or 32 for images of that size). Small
            views follow in proportion, in steps of 8 pixels, or 16 from 32 on, where ``size`` is a multiple of these:
            patches of a ViT then fit.

    Raises:
        ConfigError: no preset of this name.

    >>> first, second = views_preset("moco-v3", 96).views
    >>> first.size, first.blur_p, second.blur_p, second.solarize_p
    (96, 1.0, 0.1, 0.2)
    >>> [view.size for view in views_preset("swav", 192).views]
    [192, 192, 80, 80, 80, 80, 80, 80]
    """
    if name not in PRESETS:
        raise ConfigError(f"no views named '{name}': did you mean {closest(name, PRESETS)}?")
    views = PRESETS[name]
    if size is None:
        return Views(views=views)
    full = views[0].size
    return Views(
        views=tuple(
            View.model_validate({**view.model_dump(), "size": _in_proportion(view.size, full, size)}) for view in views
        )
    )


def _in_proportion(side: int, full: int, size: int) -> int:
    """``side`` when ``full`` becomes ``size``, rounded to a step that divides ``size``."""
    if side == full:
        return size
    exact = side * size / full
    step = math.gcd(size, 16 if exact >= 32 else 8)
    return max(step, step * round(exact / step))
