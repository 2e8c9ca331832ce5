"""Image operations on a whole batch, every sample with its own parameters: the arithmetic behind random views.

They work in float32 on values in [0, 1], follow torchvision.transforms.v2.functional, and read nothing back to the host
from an accelerator. Crops are the core's, see :mod:`mc_core.images.crops`.

Legend: B samples, C channels (1 or 3), H × W pixels, R reach of a blur in pixels.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from mc_core.images.crops import where_chosen

BRIGHTNESS, CONTRAST, SATURATION, HUE, NOTHING = range(5)
SOLARIZE_FROM = 0.5  # between 127 and 128 of 255
_LUMA = (0.2989, 0.587, 0.114)


def _orders() -> list[list[int]]:
    """For each order of the four jitters: three slots before the hue, three after it, unused ones holding NOTHING."""
    rows = []
    for order in itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)):
        at = order.index(HUE)
        before, after = list(order[:at]), list(order[at + 1 :])
        rows.append(before + [NOTHING] * (3 - at) + after + [NOTHING] * at)
    return rows


ORDERS = len(_orders())


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(C, 1, 1) float32, copied to the device once."""
    return torch.tensor(values, device=device).view(-1, 1, 1)


@functools.lru_cache(maxsize=8)
def _order_table(device: torch.device) -> Tensor:
    return torch.tensor(_orders(), device=device)


def horizontal_flip(x_BCHW: Tensor) -> Tensor:
    """The mirror images."""
    return x_BCHW.flip(-1)


def luma(x_BCHW: Tensor) -> Tensor:
    """(B, 1, H, W) brightness by ITU-R 601, as torchvision weighs it; the image itself when it has one channel."""
    if x_BCHW.shape[1] == 1:
        return x_BCHW
    red, green, blue = x_BCHW.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def grayscale(x_BCHW: Tensor) -> Tensor:
    """The brightness in every channel."""
    return luma(x_BCHW).repeat(1, x_BCHW.shape[1], 1, 1)


def tone_weights(factor_B: Tensor, kind_B: Tensor) -> Tensor:
    """What these jitters make of an image: ``f·x + (1−f)·base`` with base nothing, its mean gray, or its gray.

    Args:
        factor_B: f ≥ 0; any shape.
        kind_B: BRIGHTNESS, CONTRAST, SATURATION, or NOTHING, which ignores the factor.

    Returns:
        (B, 3): the weights of the image, its mean gray and its gray.
    """
    factor_B = torch.where(kind_B == NOTHING, 1.0, factor_B)
    rest_B = 1 - factor_B
    return torch.stack([factor_B, rest_B * (kind_B == CONTRAST), rest_B * (kind_B == SATURATION)], dim=-1)


def adjust_tone(x_BCHW: Tensor, weight_B3: Tensor) -> Tensor:
    """Mix each image with its mean gray and its gray, and clamp to [0, 1]; see :func:`tone_weights`."""
    own_B, to_mean_B, to_gray_B = weight_B3.view(-1, 3, 1, 1, 1).unbind(1)
    gray_B1HW = luma(x_BCHW)
    base_B1HW = torch.addcmul(gray_B1HW.mean((1, 2, 3), keepdim=True) * to_mean_B, gray_B1HW, to_gray_B)
    return torch.addcmul(base_B1HW, x_BCHW, own_B).clamp_(0, 1)


def adjust_hue(x_B3HW: Tensor, shift_B: Tensor) -> Tensor:
    """Turn the hue (of the HSV hexagon) by ``shift_B`` turns; exact, and without a branch per pixel.

    With chroma c = max − min, the hue is ±(1 + (g + b − r − min)/c) sixths of a turn from red, with the sign of g − b;
    and a channel's value is max − c·clamp(d − 1, 0, 1) at d sixths of a turn from that channel's own hue.
    """
    red, green, blue = x_B3HW.unbind(1)
    high = torch.maximum(torch.maximum(red, green), blue)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    sixths = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    turns = sixths.copysign_(green - blue).div_(6).add_(shift_B[:, None, None])
    own_3 = torch.arange(3, device=x_B3HW.device) / 3  # red, green, blue
    away = turns[:, None] - own_3[:, None, None]
    distance = away.sub_(away.round()).abs_()
    fall = distance.mul_(6).sub_(1).clamp_(0, 1)
    return fall.mul_(chroma[:, None]).neg_().add_(high[:, None])


def color_jitter(x_BCHW: Tensor, factor_B4: Tensor, order_B: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, in an order of its own for each sample. May write into ``x``.

    One channel has neither saturation nor hue: there they do nothing, as in torchvision.

    Args:
        x_BCHW: in [0, 1].
        factor_B4: the first three as factors, the hue as a shift in turns.
        order_B: int64 in [0, 24), the order's place among the permutations in lexicographic order.
    """
    kind_B6 = _order_table(x_BCHW.device)[order_B]
    weight_6B3 = tone_weights(torch.nn.functional.pad(factor_B4, (0, 1)).gather(1, kind_B6), kind_B6).unbind(1)
    for slot in range(6):
        if slot == 3 and x_BCHW.shape[1] == 3:
            x_BCHW = where_chosen(x_BCHW, factor_B4[:, HUE] != 0, adjust_hue, factor_B4[:, HUE])
        # for all samples, changed or not: twice the arithmetic, but cheaper than moving rows about
        x_BCHW = adjust_tone(x_BCHW, weight_6B3[slot].contiguous())
    return x_BCHW


@functools.lru_cache(maxsize=32)
def _reflected_taps(size: int, reach: int, device: torch.device) -> Tensor:
    """(R + 1, size·size): how often output pixel i meets input pixel j at distance 0 … R, edges reflected."""
    output = torch.arange(size).repeat_interleave(2 * reach + 1)
    step = torch.arange(-reach, reach + 1).repeat(size)
    source = (output + step).abs()
    source = torch.where(source > size - 1, 2 * (size - 1) - source, source)
    taps = torch.zeros(reach + 1, size, size)
    taps.index_put_((step.abs(), output, source), torch.ones(len(step)), accumulate=True)
    return taps.flatten(1).to(device)


def _blur_weights(sigma_B: Tensor, size: int, reach: int) -> Tensor:
    reach = min(reach, size - 1)  # reflection goes no further
    distance_R = torch.arange(reach + 1, device=sigma_B.device)
    kernel_BR = torch.exp(-0.5 * (distance_R / sigma_B[:, None]) ** 2)
    kernel_BR = kernel_BR / (2 * kernel_BR.sum(1, keepdim=True) - kernel_BR[:, :1])
    return (kernel_BR @ _reflected_taps(size, reach, sigma_B.device)).view(-1, size, size)


def gaussian_blur(x_BCHW: Tensor, sigma_B: Tensor, reach: int) -> Tensor:
    """Blur each image by its own Gaussian, edges reflected: torchvision's ``gaussian_blur``, kernel size 2·reach + 1.

    Two products with banded matrices: at the sizes of views faster than convolutions by per-sample kernels.

    Args:
        x_BCHW: any values.
        sigma_B: standard deviations in pixels, > 0.
        reach: pixels to either side that count; cut to the side of the image less one.
    """
    height, width = x_BCHW.shape[2:]
    rows_BHH, columns_BWW = _blur_weights(sigma_B, height, reach), _blur_weights(sigma_B, width, reach)
    x_BCHW = torch.matmul(x_BCHW.flatten(1, 2), columns_BWW.mT).view_as(x_BCHW)
    return torch.matmul(rows_BHH[:, None], x_BCHW)


def solarize(x_BCHW: Tensor) -> Tensor:
    """Invert what is at least 128 of 255."""
    return torch.where(x_BCHW >= SOLARIZE_FROM, 1 - x_BCHW, x_BCHW)
