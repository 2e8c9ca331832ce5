"""Strokes, grounds and places of the digits of a scene: what :mod:`mc_core.samples.scenes` paints with.

Legend: B scenes of one chunk, M places for digits in a scene, S canvas side in pixels, P texture side, U side of an
upsampled scan.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.optional import require
from mc_core.random import sample_rng

if TYPE_CHECKING:
    from mc_core.samples.scenes import SceneConfig

_UPSAMPLE = 4
_LUMA = (0.299, 0.587, 0.114)
_TILE = 4  # side of a texture tile, in canvases


@functools.cache
def strokes() -> tuple[Tensor, Tensor]:
    """All scans as smooth ink fields (1797, U, U), with an empty rim of one old pixel, and their classes (1797,)."""
    datasets = require("sklearn.datasets", extra="mc-core[samples]", purpose="compose scenes of handwritten digits")
    data = datasets.load_digits()
    ink = F.pad(torch.from_numpy(data.images).float() / 16, (1, 1, 1, 1))[:, None]
    smooth = F.interpolate(ink, scale_factor=_UPSAMPLE, mode="bicubic", align_corners=False)
    return smooth[:, 0].contiguous(), torch.from_numpy(data.target).long()


@functools.cache
def textures(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clouds, fine texture and white grain: tiles (P, P) of unit deviation that wrap around, P = 4 S."""
    side = _TILE * size
    rng = sample_rng(0, 0, 0, stream=0x7E)
    frequency = np.fft.fftfreq(side, _TILE / side)  # cycles per canvas
    radius = np.hypot(frequency[:, None], frequency)
    tiles = []
    for low, high in ((0.4, 1.5), (3, 7), (0, np.inf)):
        spectrum = np.fft.fft2(rng.standard_normal((side, side))) * ((radius >= low) & (radius <= high))
        wave = np.fft.ifft2(spectrum).real
        tiles.append(torch.from_numpy(wave / wave.std()).float().clamp_(-2, 2))
    return tiles[0], tiles[1], tiles[2]


def between(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    return low + (high - low) * u


def centers(count_B: Tensor, layout_B5: Tensor, place_BM2: Tensor, height_BM: Tensor, size: int) -> Tensor:
    """Centres (B, M, 2) such that digits keep apart: one has the canvas, two a half each, more a quarter each."""
    most = place_BM2.shape[1]
    quarter_BM = layout_B5[:, :4].argsort(1)[:, :most]
    quarter_BM2 = torch.stack([quarter_BM % 2, quarter_BM // 2], -1)
    # two digits: which axis is cut, and who comes first along it
    axis_B = (layout_B5[:, 4] * 2).long()
    side_BM = (layout_B5[:, :1] < 0.5).long() ^ (torch.arange(most) % 2)
    cut_BM2 = F.one_hot(axis_B, 2)[:, None].bool()
    pair_BM2 = torch.where(cut_BM2, side_BM[..., None], 0)
    count_B11 = count_B[:, None, None]
    corner_BM2 = torch.where(count_B11 > 2, quarter_BM2, torch.where(count_B11 == 2, pair_BM2, 0)) * (size / 2)
    halved_BM2 = (count_B11 > 2) | ((count_B11 == 2) & cut_BM2)
    extent_BM2 = torch.where(halved_BM2, size / 2, float(size))
    room_BM2 = (extent_BM2 - 1.1 * height_BM[..., None]).clamp(min=0)  # a turned digit reaches a little further
    return corner_BM2 + extent_BM2 / 2 + room_BM2 * (place_BM2 - 0.5)


def draw(ink_BMUU: Tensor, center_BM2: Tensor, height_BM: Tensor, angle_BM: Tensor, size: int) -> Tensor:
    """Opacity (B, M, S, S) of each digit, turned, scaled and moved to its place."""
    batch, most, side = ink_BMUU.shape[:3]
    pixel_S = torch.arange(size) + 0.5
    turn_BM = angle_BM.deg2rad()
    reach_BM = height_BM / 2 * (10 / 8)  # the rim adds one old pixel on either side
    cos_BM11, sin_BM11 = ((f(turn_BM) / reach_BM).float().view(batch * most, 1, 1) for f in (torch.cos, torch.sin))
    center = center_BM2.float().view(batch * most, 2)
    x = (pixel_S - center[:, :1])[:, None, :]
    y = (pixel_S - center[:, 1:])[:, :, None]
    grid = torch.stack([x * cos_BM11 + y * sin_BM11, y * cos_BM11 - x * sin_BM11], -1)
    value = F.grid_sample(ink_BMUU.view(-1, 1, side, side), grid, align_corners=False)
    # the field is smooth at the old resolution, so a steeper edge than the scan's does not alias
    return ((value - 0.45) * 3 + 0.5).clamp_(0, 1).view(batch, most, size, size)


def ground(dark_B: Tensor, draws_B: Tensor, size: int, single: bool, config: SceneConfig) -> Tensor:
    """Grounds (B, 3, S, S): dark or light grey with clouds of shade, clouds of colour and a fine texture."""
    clouds, fine, _ = textures(size)
    tint = config.tint if config.tint is not None else 0.4 if single else 0.1
    level_B1, shade_B2, tint_B6, fine_B2 = draws_B.split([1, 2, 6, 2], 1)
    grey_B1 = torch.where(dark_B[:, None], between(level_B1, 0.22, 0.34), between(level_B1, 0.66, 0.78)).float()
    light_BSS = config.clouds * window(clouds, shade_B2, size) + config.texture * window(fine, fine_B2, size)
    tint_B3SS = torch.stack([window(clouds, offset_B2, size) for offset_B2 in tint_B6.split(2, 1)], 1)
    tint_B3SS -= (tint_B3SS * torch.tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    return (grey_B1[..., None] + light_BSS)[:, None] + tint * tint_B3SS


def window(tile: Tensor, offset_B2: Tensor, size: int) -> Tensor:
    """A window (B, S, S) of the tile for each scene."""
    side = len(tile)
    at_B2S = ((offset_B2 * side).long()[..., None] + torch.arange(size)) % side
    return tile[at_B2S[:, 1, :, None], at_B2S[:, 0, None, :]]


def boxes(mask_BSS: Tensor, most: int) -> Tensor:
    """Boxes (B, M, 4) around the pixels k+1 of each mask; −1 where there are none."""
    size = mask_BSS.shape[-1]
    place = torch.arange(size, dtype=torch.float32)
    found = []
    for k in range(most):
        here_BSS = mask_BSS == k + 1
        spans = []
        for axis in (1, 2):  # columns that hold a pixel, then rows
            any_BS = here_BSS.any(axis)
            spans.append(place.expand_as(any_BS).masked_fill(~any_BS, size).amin(1))
            spans.append((place + 1).expand_as(any_BS).masked_fill(~any_BS, 0).amax(1))
        box_B4 = torch.stack([spans[0], spans[2], spans[1], spans[3]], 1)
        found.append(box_B4.masked_fill(~here_BSS.any(2).any(1)[:, None], -1))
    return torch.stack(found, 1)
