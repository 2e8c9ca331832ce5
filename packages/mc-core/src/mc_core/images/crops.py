"""Random crops of whole batches on their device, every picture with its own box: the arithmetic behind random views.

Boxes are drawn as torchvision's ``RandomResizedCrop`` draws them; pixels are resized as Pillow's ``resize(…, box=…)`` does it, in
floating point. Nothing is read back to the host from an accelerator. On the CPU an operation that only some samples undergo is
computed for those alone.

Legend: B samples, C channels (1 or 3), H × W pixels, S side of the output, A attempts at a crop that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

ATTEMPTS = 10
"""At a crop that fits, as torchvision makes; what :func:`random_boxes` needs numbers for, twice and two more."""

Kernel = Literal["bilinear", "bicubic"]


def _may_gather(x_BCHW: Tensor) -> bool:
    """Whether rows can be chosen by their number: elsewhere than on the CPU that would make the device wait."""
    return x_BCHW.device.type == "cpu"


def where_chosen(x_BCHW: Tensor, chosen_B: Tensor, operation: Callable[..., Tensor], *parameters: Tensor) -> Tensor:
    """``operation(x, *parameters)`` for the chosen samples, ``x`` for the others. May write into ``x``.

    Args:
        x_BCHW: batch.
        chosen_B: bool.
        operation: takes a batch and as many per-sample tensors as there are ``parameters``.
    """
    if not _may_gather(x_BCHW):
        return torch.where(chosen_B.view(-1, 1, 1, 1), operation(x_BCHW, *parameters), x_BCHW)
    rows = chosen_B.nonzero().squeeze(1)
    if len(rows) == 0:
        return x_BCHW
    if len(rows) == len(x_BCHW):
        return operation(x_BCHW, *parameters)
    return x_BCHW.index_copy_(0, rows, operation(x_BCHW[rows], *(value[rows] for value in parameters)))


def random_boxes(
    u_BR: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Tensor:
    """Random crops as torchvision's ``RandomResizedCrop`` draws them: the first of ten that fits, else a central one.

    Args:
        u_BR: (B, 2·ATTEMPTS + 2) uniform numbers in [0, 1): areas, ratios, top, left.
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        scale: smallest and largest share of the area.
        ratio: smallest and largest width/height.

    Returns:
        (B, 4) float32: top, left, height, width, whole pixels.

    >>> random_boxes(torch.rand(3, 2 * ATTEMPTS + 2), 40, 60, (1.0, 1.0), (1.5, 1.5))[0].tolist()
    [0.0, 0.0, 40.0, 60.0]
    """
    (scale_low, scale_high), (ratio_low, ratio_high) = scale, ratio
    area_BA = (scale_low + (scale_high - scale_low) * u_BR[:, :ATTEMPTS]) * (height * width)
    log_low, log_high = math.log(ratio_low), math.log(ratio_high)
    ratio_BA = torch.exp(log_low + (log_high - log_low) * u_BR[:, ATTEMPTS : 2 * ATTEMPTS])
    widths, heights = (area_BA * ratio_BA).sqrt_().round_(), (area_BA / ratio_BA).sqrt_().round_()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    first = fits.to(torch.uint8).argmax(1, keepdim=True)
    found = fits.any(1)

    central_ratio = min(max(width / height, ratio_low), ratio_high)
    central_width = max(1, min(width, round(height * central_ratio)))
    central_height = max(1, min(height, round(width / central_ratio)))
    crop_width = torch.where(found, widths.gather(1, first).squeeze(1), central_width)
    crop_height = torch.where(found, heights.gather(1, first).squeeze(1), central_height)
    spare_y, spare_x = height - crop_height, width - crop_width
    u_top, u_left = u_BR[:, 2 * ATTEMPTS], u_BR[:, 2 * ATTEMPTS + 1]
    top = torch.where(found, torch.minimum((u_top * (spare_y + 1)).floor(), spare_y), (spare_y / 2).floor())
    left = torch.where(found, torch.minimum((u_left * (spare_x + 1)).floor(), spare_x), (spare_x / 2).floor())
    return torch.stack([top, left, crop_height, crop_width], dim=1)


def random_box(
    u: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """One box of :func:`random_boxes`, drawn in a hundredth of the time: (top, left, height, width)."""
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(ATTEMPTS):
        area = (scale[0] + (scale[1] - scale[0]) * u[i]) * height * width
        aspect = math.exp(log_low + (log_high - log_low) * u[ATTEMPTS + i])
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 1 <= crop_width <= width and 1 <= crop_height <= height:
            top = min(int(u[-2] * (height - crop_height + 1)), height - crop_height)
            return top, min(int(u[-1] * (width - crop_width + 1)), width - crop_width), crop_height, crop_width
    central = min(max(width / height, ratio[0]), ratio[1])
    crop_width, crop_height = (max(1, min(width, round(height * central))), max(1, min(height, round(width / central))))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize_weights(
    start_B: Tensor,
    length_B: Tensor,
    size_in: int,
    size_out: int,
    flip_B: Tensor | None = None,
    *,
    kernel: Kernel = "bilinear",
) -> Tensor:
    """The matrix of an antialiased resize of a stretch of each row of pixels.

    The weights of PIL's ``resize(…, box=…)``: a kernel around each output pixel's centre, as wide as the reduction asks, that may
    see pixels beyond the stretch but none beyond the image. Bicubic is Keys' with a = −1/2, as PIL's.

    Args:
        start_B: first pixel of the stretch; fractions allowed.
        length_B: its length in pixels.
        size_in: pixels in the row.
        size_out: pixels wanted.
        flip_B: bool; whether to mirror the output.
        kernel: a triangle, or a cubic.

    Returns:
        (B, size_out, size_in); rows sum to 1.
    """
    at_S = torch.arange(size_out, device=start_B.device) + 0.5
    at_BS = at_S if flip_B is None else torch.where(flip_B[:, None], size_out - at_S, at_S)
    scale_B = length_B / size_out
    center_BS = start_B[:, None] + at_BS * scale_B[:, None]
    pixel_W = torch.arange(size_in, device=start_B.device) + 0.5
    distance_BSW = (pixel_W - center_BS[..., None]).abs_().div_(scale_B.clamp(min=1)[:, None, None])
    if kernel == "bilinear":
        weight_BSW = distance_BSW.neg_().add_(1).clamp_(min=0)
    else:
        weight_BSW = _cubic(distance_BSW)
    return weight_BSW.div_(weight_BSW.sum(-1, keepdim=True))


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = −1/2 of distances x ≥ 0, which are overwritten: −x³/2 + 5x²/2 − 4x + 2 up to 2, below 1 corrected by
    (1 − x)²(2x − 1)."""
    x.clamp_(max=2)
    weight = torch.mul(x, -0.5).add_(2.5).mul_(x).sub_(4).mul_(x).add_(2)
    near = torch.sub(1, x).clamp_(min=0).square_()
    return weight.addcmul_(near, x.mul_(2).sub_(1))


def crop_resize(
    x_BCHW: Tensor,
    box_B4: Tensor,
    size: int,
    flip_B: Tensor | None = None,
    *,
    kernel: Kernel = "bilinear",
    levels: bool = False,
) -> Tensor:
    """Cut a box out of each image, resize it to a square and mirror it where asked, as two matrix products.

    Args:
        x_BCHW: float32.
        box_B4: top, left, height, width in pixels; one row serves all images when B is 1 there.
        size: S.
        flip_B: bool.
        kernel: of the resize; ``"bicubic"`` may overshoot the range of the pixels.
        levels: pixels are whole numbers from 0 to 255 and stay so: rounded and clipped after either direction, as in PIL.

    Returns:
        (B, C, S, S).

    >>> crop_resize(torch.ones(2, 3, 8, 8), torch.tensor([[0.0, 0.0, 4.0, 8.0]]), 4).shape
    torch.Size([2, 3, 4, 4])
    """
    top_B, left_B, height_B, width_B = box_B4.unbind(1)
    rows_BSH = resize_weights(top_B, height_B, x_BCHW.shape[2], size, kernel=kernel)
    columns_BSW = resize_weights(left_B, width_B, x_BCHW.shape[3], size, flip_B, kernel=kernel)
    x_BCHS = torch.matmul(x_BCHW.flatten(1, 2), columns_BSW.mT).unflatten(1, x_BCHW.shape[1:3])
    if not levels:
        return torch.matmul(rows_BSH[:, None], x_BCHS)
    return torch.matmul(rows_BSH[:, None], x_BCHS.round_().clamp_(0, 255)).round_().clamp_(0, 255)
