"""RandAugment of a whole batch on its device, every picture with its own operations.

The ten operations of ALBEF's official code, which leaves out Solarize, Posterize, Color and Contrast. They give what Pillow gives;
the official code uses OpenCV, which differs from Pillow in the outermost pixels and, where a picture is sheared or turned, by less
than half a pixel of place. Levels stay whole numbers from 0 to 255 between operations, as they do there.

Legend: B pictures, C = 3 channels, S side, R random numbers, N operations of a view.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.images.crops import where_chosen
from mc_vision_language.augment_config import OPERATIONS, AugmentConfig

DRAWS_EACH = 3
"""Random numbers an operation needs: which, whether, and its sign."""

_NUMBER: dict[str, int] = {name: number for number, name in enumerate(OPERATIONS)}
_MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")


def rand_augment(x_BCSS: Tensor, u_BR: Tensor, config: AugmentConfig) -> Tensor:
    """``config.rand_augment`` operations, drawn with replacement, each applied with ``config.rand_augment_p``.

    Args:
        x_BCSS: float32, whole numbers from 0 to 255; may be written to.
        u_BR: (B, DRAWS_EACH · N) uniform numbers in [0, 1).
        config: operations, magnitude, fill.

    Returns:
        (B, 3, S, S) float32, whole numbers from 0 to 255.

    >>> x = torch.randint(256, (2, 3, 16, 16)).float()
    >>> bool((rand_augment(x.clone(), torch.zeros(2, 6), AugmentConfig(operations=("identity",))) == x).all())
    True
    """
    choices = torch.tensor([_NUMBER[name] for name in config.operations], device=x_BCSS.device)
    for u_B3 in u_BR.split(DRAWS_EACH, dim=1):
        which_B = choices[(u_B3[:, 0] * len(choices)).long().clamp_(max=len(choices) - 1)]
        applied_B = u_B3[:, 1] < config.rand_augment_p
        sign_B = torch.where(u_B3[:, 2] < 0.5, -1.0, 1.0)
        for first, last, function in _FUNCTIONS:
            if not any(first <= _NUMBER[name] <= last for name in config.operations):
                continue
            chosen_B = applied_B & (which_B >= first) & (which_B <= last)
            x_BCSS = where_chosen(x_BCSS, chosen_B, functools.partial(function, config=config), which_B, sign_B)
    return x_BCSS


def _factor(config: AugmentConfig) -> float:
    """Of brightness and sharpness: 0.1 at magnitude 0, 1.9 at 10."""
    return 0.1 + 1.8 * config.magnitude / 10


def _brighten(x_BCSS: Tensor, which_B: Tensor, sign_B: Tensor, config: AugmentConfig) -> Tensor:
    return x_BCSS.mul(_factor(config)).floor_().clamp_(0, 255)


def _stretch(x_BCSS: Tensor, which_B: Tensor, sign_B: Tensor, config: AugmentConfig) -> Tensor:
    """Each channel's levels spread over all; in float64, for the levels are cut to whole numbers."""
    x = x_BCSS.double()
    low, high = (edge.double() for edge in x_BCSS.flatten(2).aminmax(dim=2))
    span = (high - low)[..., None, None]
    scale = torch.full_like(span, 255).div_(span.clamp(min=1))  # 255 / span would multiply by a rounded reciprocal
    stretched = (x * scale).sub_(low[..., None, None] * scale).trunc_().clamp_(0, 255)
    return torch.where(span > 0, stretched, x).float()


def _equalize(x_BCSS: Tensor, which_B: Tensor, sign_B: Tensor, config: AugmentConfig) -> Tensor:
    """Each channel's levels as evenly filled as they can be."""
    planes = x_BCSS.shape[0] * x_BCSS.shape[1]
    offset = 256 * torch.arange(planes, device=x_BCSS.device)
    index = (x_BCSS.long().view(planes, -1) + offset[:, None]).flatten()
    counts = torch.zeros(planes * 256, device=x_BCSS.device, dtype=torch.int64)
    counts.scatter_add_(0, index, torch.ones((), device=x_BCSS.device, dtype=torch.int64).expand(len(index)))
    table = _equal_table(counts.view(*x_BCSS.shape[:2], 256))
    return table.flatten().index_select(0, index).view_as(x_BCSS)


def _equal_table(counts_BCL: Tensor) -> Tensor:
    """(B, C, 256) float32: the level that Pillow's ``ImageOps.equalize`` gives each level."""
    last = 255 - (counts_BCL > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    step = (counts_BCL.sum(-1, keepdim=True) - counts_BCL.gather(-1, last)) // 255
    before = counts_BCL.cumsum(-1) - counts_BCL
    table = (step // 2 + before) // step.clamp(min=1)
    level = torch.arange(256, device=counts_BCL.device)
    return torch.where(step > 0, table.clamp(max=255), level).float()


def _sharpen(x_BCSS: Tensor, which_B: Tensor, sign_B: Tensor, config: AugmentConfig) -> Tensor:
    """Away from a 3 × 3 mean whose middle weighs 5 of 13; the outermost pixels stay."""
    inner = x_BCSS[..., 1:-1, 1:-1]
    across = (x_BCSS[..., :-2] + x_BCSS[..., 1:-1]).add_(x_BCSS[..., 2:])
    smooth = (across[..., :-2, :] + across[..., 1:-1, :]).add_(across[..., 2:, :])
    smooth = smooth.add_(inner, alpha=4).div_(13).add_(0.5).floor_()
    sharp = x_BCSS.clone()
    sharp[..., 1:-1, 1:-1] = (inner - smooth).mul_(_factor(config)).add_(smooth).trunc_().clamp_(0, 255)
    return sharp


def _move(x_BCSS: Tensor, which_B: Tensor, sign_B: Tensor, config: AugmentConfig) -> Tensor:
    """Shears about the upper left corner, shifts, turns about the middle; bilinear, ``config.fill`` beyond the edges."""
    share = config.magnitude / 10
    side = x_BCSS.shape[-1]
    shear_B = sign_B * 0.3 * share
    shift_B = sign_B * config.translate * share * 2 / side  # in half sides, as the grid counts
    angle_B = sign_B * math.radians(30 * share)
    here = {name: which_B == _NUMBER[name] for name in _MOVES}
    cos_B = torch.where(here["rotate"], angle_B.cos(), 1.0)
    sin_B = torch.where(here["rotate"], angle_B.sin(), 0.0)
    x_of_y_B = torch.where(here["shear_x"], shear_B, sin_B)
    y_of_x_B = torch.where(here["shear_y"], shear_B, -sin_B)
    # what lies at the upper left corner stays there when a picture is sheared
    x_at_B = torch.where(here["shear_x"], shear_B, torch.where(here["translate_x"], shift_B, 0.0))
    y_at_B = torch.where(here["shear_y"], shear_B, torch.where(here["translate_y"], shift_B, 0.0))
    rows = [torch.stack([cos_B, x_of_y_B, x_at_B], 1), torch.stack([y_of_x_B, cos_B, y_at_B], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x_BCSS.shape), align_corners=False)
    moved = F.grid_sample(x_BCSS, grid, mode="bilinear", padding_mode="border", align_corners=False)
    inside = ((grid >= -1) & (grid < 1)).all(-1)[:, None]
    return torch.where(inside, (moved + 0.5).floor(), float(config.fill))


# the numbers of the operations that a function does, in the order of OPERATIONS
_FUNCTIONS = (
    (_NUMBER["autocontrast"], _NUMBER["autocontrast"], _stretch),
    (_NUMBER["equalize"], _NUMBER["equalize"], _equalize),
    (_NUMBER["brightness"], _NUMBER["brightness"], _brighten),
    (_NUMBER["sharpness"], _NUMBER["sharpness"], _sharpen),
    (_NUMBER["shear_x"], _NUMBER["rotate"], _move),
)
