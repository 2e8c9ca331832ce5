"""Group masking: blocks hidden from the student, filled with nothing or with another image; for a whole batch at once.

As in GMML (Atito, Awais, Kittler 2022, arXiv:2205.14986) and SiT (Atito et al. 2021, arXiv:2104.03602): blocks are placed at random
until their union covers a target share of the image. An image is either masked or, with some probability, overlaid with
blocks of another image; never both.

A batch of blocks is held as one 64-bit word per image row and one per image column, in which bit r says whether block r
spans it; their AND is, at each pixel, the set of blocks there. How many blocks an image needs is then found by bisection
over whole words, with no loop over images or blocks and without waiting for the device.

Masks and choices are functions of (seed, epoch, sample index) alone. The partner an image is copied from is the one ``shift``
places further in this process's part of the step, so it does not depend on how that part is cut into micro-batches, but it
does on the number of processes.

Legend: B samples, C channels, H × W pixels, h × w cells of the grid that blocks snap to, R blocks drawn, K words.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mc_core.random import BatchRandom, derive_seed

_WORD = 62  # blocks per int64: its sign stays out of play
_SIDES = 4  # uniform numbers per block


@dataclass(frozen=True)
class Corruption:
    """What happens to each image of a batch.

    Attributes:
        mask: (B, H, W) bool, the corrupted pixels.
        copied: (B,) bool, images filled from their partner rather than with zeros or noise.
    """

    mask: Tensor
    copied: Tensor


def blocks_needed(ratio: float, height: int, width: int, max_side: float) -> int:
    """R: how many blocks to draw so that their union practically always covers ``ratio`` of an h × w grid.

    1 + ratio times what it takes on average away from the borders, which are covered less, and twelve more, rounded up to
    whole words. With blocks of at most 0.3 of the side, less than one image in a thousand then falls short of a ratio of 0.8.

    >>> blocks_needed(0.5, 224, 224, 0.3)
    62
    """
    share = math.prod((1 + max(1, int(max_side * side))) / (2 * side) for side in (height, width))  # of a mean block
    wanted = 12 + (1 + ratio) * math.log(1 - ratio) / math.log(1 - share) if share < 1 else 1
    return _WORD * math.ceil(wanted / _WORD)


def block_masks(u_BR4: Tensor, target_B: Tensor, height: int, width: int, max_side: float = 0.3) -> Tensor:
    """Unions of random blocks: the first of R that together cover the target, for each image.

    Args:
        u_BR4: uniform numbers in [0, 1): height, width, top and left of each block. R a multiple of 62.
        target_B: share of the grid to cover, in [0, 1]; 0 gives an empty mask.
        height, width: of the grid, in cells.
        max_side: longest side of a block as a share of the grid's, at least one cell. Sides are drawn uniformly from 1
            to this, places uniformly from those inside the image.

    Returns:
        (B, height, width) bool. The covered area is at least the target, and less than it without the last block; only
        where all R blocks do not reach it (see :func:`blocks_needed`) it is smaller.

    >>> mask = block_masks(torch.rand(2, 62, 4), torch.tensor([0.0, 0.5]), 32, 32)
    >>> [0.5 <= share < 0.6 for share in mask.float().mean((1, 2)).tolist()]
    [False, True]
    """
    rounds = u_BR4.shape[1]
    rows_BKh = _spans(u_BR4[..., 0], u_BR4[..., 2], height, max_side)
    columns_BKw = _spans(u_BR4[..., 1], u_BR4[..., 3], width, max_side)
    present = [  # a word per cell: the blocks there
        rows_Bh[:, :, None] & columns_Bw[:, None, :]
        for rows_Bh, columns_Bw in zip(rows_BKh.unbind(1), columns_BKw.unbind(1), strict=True)
    ]

    def covered(count_B: Tensor) -> Tensor:
        parts = [
            (word_Bhw & ((1 << (count_B - _WORD * k).clamp(0, _WORD)) - 1)[:, None, None]).ne(0)
            for k, word_Bhw in enumerate(present)
        ]
        return functools.reduce(torch.logical_or, parts)

    wanted_B = target_B * (height * width)
    short_B = torch.zeros(len(u_BR4), dtype=torch.int64, device=u_BR4.device)  # most blocks that do not reach it
    for step in (1 << power for power in reversed(range(rounds.bit_length()))):
        more_B = short_B + step
        below_B = (covered(more_B).sum((1, 2)) < wanted_B) & (more_B <= rounds)
        short_B = torch.where(below_B, more_B, short_B)
    return covered(torch.where(wanted_B > 0, short_B + 1, 0))


def _spans(side_BR: Tensor, start_BR: Tensor, length: int, max_side: float) -> Tensor:
    """(B, K, length) words: which blocks span each row, from uniform numbers for their heights and tops."""
    size_BR = 1 + (side_BR * max(1, int(max_side * length))).long()
    first_BR = (start_BR * (length + 1 - size_BR)).long()
    bits_R = 1 << torch.arange(_WORD, device=side_BR.device).repeat(side_BR.shape[1] // _WORD)
    edges_BKl = first_BR.new_zeros(len(side_BR), side_BR.shape[1] // _WORD, length + 1)
    bits_BK = bits_R.expand_as(first_BR).unflatten(1, (-1, _WORD))
    edges_BKl.scatter_add_(2, first_BR.unflatten(1, (-1, _WORD)), bits_BK)
    edges_BKl.scatter_add_(2, (first_BR + size_BR).unflatten(1, (-1, _WORD)), -bits_BK)
    return edges_BKl.cumsum(2)[..., :-1]


def draw_corruption(
    random: BatchRandom,
    height: int,
    width: int,
    *,
    cell: tuple[int, int] = (1, 1),
    ratio: float = 0.5,
    max_side: float = 0.3,
    copy_p: float = 0.5,
    copy_ratio: float = 0.3,
    stream: int = 0,
) -> Corruption:
    """Choose what is corrupted in each image of a batch, and how.

    Args:
        random: seed, epoch and indices of the samples.
        height, width: of the images in pixels, multiples of ``cell``.
        cell: pixels that blocks snap to: (1, 1), or the patch.
        ratio, max_side, copy_p, copy_ratio: as in :class:`~mc_vision.methods.mmc.config.CorruptionConfig`.
        stream: another one for each view.
    """
    grid = height // cell[0], width // cell[1]
    largest = max(ratio, copy_ratio if copy_p else 0.0)
    rounds = blocks_needed(largest, *grid, max_side)
    u_BD = random.uniform(2 + _SIDES * rounds, stream=stream)
    copied_B = u_BD[:, 0] < copy_p
    lowest = min(0.5, ratio)
    target_B = torch.where(copied_B, copy_ratio, lowest + (ratio - lowest) * u_BD[:, 1])
    mask_Bhw = block_masks(u_BD[:, 2:].unflatten(1, (rounds, _SIDES)), target_B, *grid, max_side)
    if cell != (1, 1):
        mask_Bhw = mask_Bhw.repeat_interleave(cell[0], 1).repeat_interleave(cell[1], 2)
    return Corruption(mask_Bhw, copied_B)


def partner_shift(count: int, *seeds: int) -> int:
    """How many places further the partner of each of ``count`` images stands: 1 … count − 1, or 0 for a single image.

    >>> all(0 < partner_shift(5, 0, step) < 5 for step in range(20)), partner_shift(1, 0, 3)
    (True, 0)
    """
    return 1 + derive_seed(*seeds) % (count - 1) if count > 1 else 0


def rows_from(parts: Sequence[Tensor], start: int, count: int) -> Tensor:
    """``count`` rows from ``start`` on of the parts in a row, going round at the end; joins only what it needs.

    >>> rows_from([torch.tensor([0, 1, 2]), torch.tensor([3, 4])], 4, 3).tolist()
    [4, 0, 1]
    """
    total = sum(len(part) for part in parts)
    found: list[Tensor] = []
    position = start % total
    while count:
        offset = 0
        for part in parts:
            if offset <= position < offset + len(part):
                found.append(part[position - offset : position - offset + count])
                break
            offset += len(part)
        count -= len(found[-1])
        position = (position + len(found[-1])) % total
    return found[0] if len(found) == 1 else torch.cat(found)


def noise_like(x_VCHW: Tensor, random: BatchRandom, stream: int) -> Tensor:
    """Standard normal noise for V = nB images, of which n are views of each sample; another for each view.

    Args:
        x_VCHW: for shape and dtype.
        random: of the B samples.
        stream: of view 1; the next ones follow it. Not those that the corruption was drawn from.
    """
    views = len(x_VCHW) // len(random.index)
    u = torch.cat([random.uniform(x_VCHW[0].numel(), stream=stream + view) for view in range(views)])
    return torch.special.ndtri(u.clamp_(min=2.0**-24)).view_as(x_VCHW).to(x_VCHW.dtype)


def corrupted(x_BCHW: Tensor, corruption: Corruption, partner_BCHW: Tensor, noise_BCHW: Tensor | None = None) -> Tensor:
    """The images with their masked pixels replaced, as a new tensor.

    Args:
        x_BCHW: normalised images, so that zero is the mean colour.
        corruption: of these images.
        partner_BCHW: the images that copied blocks come from.
        noise_BCHW: what fills the other blocks; default: zeros.
    """
    filling: Tensor | float = 0.0 if noise_BCHW is None else noise_BCHW
    filling = torch.where(corruption.copied[:, None, None, None], partner_BCHW, filling)
    return torch.where(corruption.mask[:, None], filling, x_BCHW)


def token_mask(mask_BHW: Tensor, patch: tuple[int, int]) -> Tensor:
    """(B, N) bool: patches, in rows from the top left, with at least one corrupted pixel.

    >>> token_mask(torch.tensor([[[0, 0, 0, 1], [0, 0, 0, 0]]]).bool(), (2, 2)).tolist()
    [[False, True]]
    """
    return mask_BHW.unflatten(1, (-1, patch[0])).unflatten(3, (-1, patch[1])).amax((2, 4)).flatten(1)
