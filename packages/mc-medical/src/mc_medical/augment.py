"""Random views of square radiographs, whole batches at a time on the device of the batch.

What is drawn is a function of (seed, epoch, sample index, view) alone. A view is one reading of the stored square along a turned,
scaled and shifted grid, whose random crop is a scale and a shift too; so pixels are interpolated once.

Legend: B images, S stored side, V side of a view.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.random import BatchRandom, uniform
from mc_medical.augment_config import AugmentConfig

_DRAWS = 8
_FLIP_STREAM = 0xF11F


def make_view(pixels: Tensor, random: BatchRandom, view: int, config: AugmentConfig) -> Tensor:
    """One random view of each image.

    Args:
        pixels: (B, 1, S, S) or (B, S, S) uint8, or floats in [0, 1]; not written to.
        random: of the batch: seed, epoch and the B indices.
        view: its number; views of the same image differ by it, but for the mirror image, which they share.
        config: what is drawn.

    Returns:
        (B, 1, V, V) float32 in [0, 1]; what lies outside of the image is 0.

    >>> random = BatchRandom(seed=0, epoch=0, index=torch.arange(2))
    >>> make_view(torch.zeros(2, 1, 64, 64), random, 1, AugmentConfig(size=56)).shape
    torch.Size([2, 1, 56, 56])
    """
    x = pixels[:, None] if pixels.ndim == 3 else pixels
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    draw = (2 * random.uniform(_DRAWS, stream=view) - 1).unbind(1)  # in [−1, 1)
    with torch.autocast(x.device.type, enabled=False):
        grid = F.affine_grid(
            _placements(draw, random, config), [len(x), 1, config.size, config.size], align_corners=False
        )
        x = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        brighter = 1 + config.brightness * draw[5]
        steeper = 1 + config.contrast * draw[6]
        mean = x.mean((1, 2, 3))
        return (
            ((x - mean[:, None, None, None]) * (brighter * steeper)[:, None, None, None])
            .add_((mean * brighter)[:, None, None, None])
            .clamp_(0, 1)
        )


def _placements(draw: tuple[Tensor, ...], random: BatchRandom, config: AugmentConfig) -> Tensor:
    """(B, 2, 3): where the corners of a view lie in the stored square, whose own are at ±1."""
    angle = math.radians(config.rotation) * draw[0]
    low, high = config.scale
    side = config.crop / (low + (high - low) * (draw[1] + 1) / 2)
    free = 1 - config.crop
    x_at = free * draw[2] + 2 * config.shift * draw[3]
    y_at = free * draw[4] + 2 * config.shift * draw[7]
    mirror = torch.ones_like(angle)
    if config.flip == "swap":
        mirror = torch.where(flip_coins(random.seed, random.epoch, random.index), -1.0, 1.0)
    cos, sin = angle.cos() * side, angle.sin() * side
    rows = [torch.stack([mirror * cos, -sin, x_at], dim=1), torch.stack([mirror * sin, cos, y_at], dim=1)]
    return torch.stack(rows, dim=1)


def flip_coins(seed: int, epoch: int, index: Tensor) -> Tensor:
    """(B,) bool: which pairs ``flip: swap`` mirrors in this epoch, also for whoever changes their text.

    >>> flip_coins(0, 0, torch.arange(4)).dtype
    torch.bool
    """
    return uniform(seed, epoch, index, 1, stream=_FLIP_STREAM)[:, 0] < 0.5
