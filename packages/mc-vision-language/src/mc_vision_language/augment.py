"""Random views of pictures, whole batches at a time on the device of the batch.

What is drawn is a function of (seed, epoch, sample index, stream) alone.

Legend: B pictures, H × W pixels, S side of a view, R random numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mc_core.images.crops import ATTEMPTS, crop_resize, random_boxes, where_chosen
from mc_core.random import BatchRandom
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.rand_augment import DRAWS_EACH, rand_augment

BOX_DRAWS = 2 * ATTEMPTS + 2
_STREAM = 0xA0600
_CACHE_FLOATS = 1 << 18  # a chunk of this many stays in a core's cache, which makes views on a CPU faster


class Geometry(NamedTuple):
    """What becomes a view, of each picture.

    Attributes:
        box: (B, 4) top, left, height, width, in pixels.
        flip: (B,) bool, whether it is mirrored.
    """

    box: Tensor
    flip: Tensor


def draw_geometry(
    random: BatchRandom,
    config: AugmentConfig,
    height: int,
    width: int,
    *,
    stream: int = 0,
    cropped: bool = False,
    may_flip: Tensor | None = None,
) -> Geometry:
    """The crop and the mirroring of each picture.

    Args:
        random: of the batch.
        config: what is drawn.
        height, width: of the pictures, pixels.
        stream: see :func:`make_views`.
        cropped: whether the pictures are crops already: all of each is shown.
        may_flip: (B,) bool, pictures that may be mirrored; default: all.

    >>> random = BatchRandom(seed=0, epoch=0, index=torch.arange(2))
    >>> draw_geometry(random, AugmentConfig(resize="squash", flip=1.0), 8, 6)
    Geometry(box=tensor([[0., 0., 8., 6.],
            [0., 0., 8., 6.]]), flip=tensor([True, True]))
    """
    u_BR = random.uniform(BOX_DRAWS + 1, stream=_STREAM + stream)
    flip_B = u_BR[:, BOX_DRAWS] < config.flip
    if may_flip is not None:
        flip_B = flip_B & may_flip
    if config.resize == "crop" and not cropped:
        return Geometry(random_boxes(u_BR[:, :BOX_DRAWS], height, width, config.scale, config.ratio), flip_B)
    whole = torch.tensor([[0.0, 0.0, height, width]], device=u_BR.device)
    return Geometry(whole.expand(len(u_BR), 4), flip_B)


def make_views(
    pixels: Tensor,
    random: BatchRandom,
    config: AugmentConfig,
    *,
    stream: int = 0,
    cropped: bool = False,
    geometry: Geometry | None = None,
) -> Tensor:
    """One random view of each picture.

    Args:
        pixels: (B, 3, H, W) uint8; not written to.
        random: of the batch: seed, epoch and the B indices.
        config: what is drawn.
        stream: separates several pictures of one sample.
        cropped: whether the pictures are crops of the view's size already.
        geometry: of :func:`draw_geometry`, where others need it too; default: drawn here.

    Returns:
        (B, 3, S, S) float32 in [0, 1], multiples of 1/255.

    >>> random = BatchRandom(seed=0, epoch=0, index=torch.arange(2))
    >>> make_views(torch.zeros(2, 3, 64, 48, dtype=torch.uint8), random, AugmentConfig(size=32)).shape
    torch.Size([2, 3, 32, 32])
    """
    height, width = pixels.shape[2:]
    if geometry is None:
        geometry = draw_geometry(random, config, height, width, stream=stream, cropped=cropped)
    box, flip_B = geometry
    x_BCSS = torch.empty(len(pixels), 3, config.size, config.size, device=pixels.device)
    with torch.autocast(pixels.device.type, enabled=False):
        if cropped:
            x_BCSS = where_chosen(x_BCSS.copy_(pixels), flip_B, lambda y: y.flip(-1))
        else:
            for rows in _chunks(len(pixels), 3 * max(height * width, config.size**2), pixels.device):
                whole = pixels[rows].float()
                x_BCSS[rows] = crop_resize(whole, box[rows], config.size, flip_B[rows], kernel="bicubic", levels=True)
        if config.rand_augment:
            draws = BOX_DRAWS + 1 + DRAWS_EACH * config.rand_augment
            u_BR = random.uniform(draws, stream=_STREAM + stream)
            x_BCSS = rand_augment(x_BCSS, u_BR[:, BOX_DRAWS + 1 :], config)
        return x_BCSS.div_(255)


def _chunks(count: int, floats: int, device: torch.device) -> Iterator[slice]:
    """Rows to work on together: on a CPU as many as fit its cache, elsewhere all."""
    step = max(1, _CACHE_FLOATS // floats) if device.type == "cpu" else max(count, 1)
    return (slice(start, start + step) for start in range(0, count, step))
