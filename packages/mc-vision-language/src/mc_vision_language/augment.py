"""Random views of pictures, whole batches at a time on the device of the batch.

What is drawn is a function of (seed, epoch, sample index, stream) alone.

Legend: B pictures, H × W pixels, S side of a view, R random numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mc_core.images.crops import ATTEMPTS, crop_resize, random_boxes
from mc_core.random import BatchRandom
from mc_vision_language.augment_config import AugmentConfig

BOX_DRAWS = 2 * ATTEMPTS + 2
_BOX, _FLIP = 0xB0C, 0xF11


def make_views(
    pixels: Tensor, random: BatchRandom, config: AugmentConfig, *, stream: int = 0, cropped: bool = False
) -> Tensor:
    """One random view of each picture.

    Args:
        pixels: (B, 3, H, W) uint8; not written to.
        random: of the batch: seed, epoch and the B indices.
        config: what is drawn.
        stream: separates several pictures of one sample.
        cropped: whether the pictures are crops of the view's size already.

    Returns:
        (B, 3, S, S) float32 in [0, 1], multiples of 1/255.

    >>> random = BatchRandom(seed=0, epoch=0, index=torch.arange(2))
    >>> make_views(torch.zeros(2, 3, 64, 48, dtype=torch.uint8), random, AugmentConfig(size=32)).shape
    torch.Size([2, 3, 32, 32])
    """
    height, width = pixels.shape[2:]
    if not cropped:
        whole = torch.tensor([[0.0, 0.0, height, width]], device=pixels.device)
        box = whole
        if config.resize == "crop":
            box = random_boxes(
                random.uniform(BOX_DRAWS, stream=stream + _BOX), height, width, config.scale, config.ratio
            )
        x = crop_resize(pixels.float(), box, config.size, kernel="bicubic").round_().clamp_(0, 255)
    else:
        x = pixels.float()
    flip = random.uniform(1, stream=stream + _FLIP)[:, 0] < config.flip
    return torch.where(flip[:, None, None, None], x.flip(-1), x) / 255
