"""From the maps of frozen experts to tokens of one width.

::

    Z_k = A_k(F_k) + τ_k + P,    A_k = LayerNorm → Linear(C_k, d) → GELU → Linear(d, d)

with F_k brought to a grid of G × G places, τ_k a tag of the expert and P positions. Bilinear resampling in float32 follows MoVA and
Eagle; that it looks at all of a finer map when it shrinks it is ours.

Legend: B samples, H × W places of a map, C_k its channels, G × G = N places of the grid, d width, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import DataError
from mc_vision_language.fusion import weight_std

Maps = Mapping[str, Tensor]
"""Kind of expert → (B, C_k, H_k, W_k)."""


def as_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, C, H, W) of tokens (B, N, C) that lie row by row.

    Raises:
        DataError: N is not H·W, as with a class token or detection tokens among them.

    >>> as_map(torch.zeros(2, 6, 3), 2, 3).shape
    torch.Size([2, 3, 2, 3])
    """
    if tokens.ndim != 3 or tokens.shape[1] != height * width:
        raise DataError(
            f"tokens of shape {tuple(tokens.shape)} are no map of {height} × {width} places: cut class, register and detection "
            f"tokens off, so that {height * width} are left"
        )
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def to_grid(feature_map: Tensor, grid: int) -> Tensor:
    """(B, C, G, G): a map resampled in at least float32; one of that size stays as it is.

    Args:
        feature_map: (B, C, H, W).
        grid: G.

    >>> to_grid(torch.arange(4.0).view(1, 1, 2, 2), 1)
    tensor([[[[1.5000]]]])
    """
    wide = feature_map.float() if feature_map.dtype.itemsize < 4 else feature_map
    height, width = feature_map.shape[2:]
    if (height, width) == (grid, grid):
        return wide
    with torch.autocast(feature_map.device.type, enabled=False):
        # antialias: plain interpolation would leave out places of a map more than twice as fine
        return F.interpolate(
            wide, (grid, grid), mode="bilinear", align_corners=False, antialias=max(height, width) > grid
        )


def on_grid(maps: Maps, features: Mapping[str, int], grid: int) -> dict[str, Tensor]:
    """The maps of these experts on the grid, in their order: kind → (B, C_k, G, G).

    In memory the channels of a place lie side by side, as its token does: what reads the tokens copies nothing.

    Args:
        maps: at least of the experts of ``features``.
        features: kind → C_k.
        grid: G.

    Raises:
        DataError: an expert is missing, or its map has another shape or number of samples.
    """
    found: dict[str, Tensor] = {}
    for kind, channels in features.items():
        if kind not in maps:
            raise DataError(f"no map of the {kind} expert among {', '.join(maps) or 'none'}: give one for each expert")
        one = maps[kind]
        if one.ndim != 4 or one.shape[1] != channels or 0 in one.shape:
            raise DataError(
                f"the map of the {kind} expert has shape {tuple(one.shape)}; it must be (batch, {channels}, height, width)"
            )
        if found and len(one) != len(next(iter(found.values()))):
            raise DataError(
                f"the map of the {kind} expert is of {len(one)} samples, others of {len(next(iter(found.values())))}"
            )
        found[kind] = to_grid(one, grid).contiguous(memory_format=torch.channels_last)
    return found


def grid_tokens(on_grid_map: Tensor) -> Tensor:
    """(B, N, C) tokens of a map (B, C, G, G), row by row."""
    return on_grid_map.flatten(2).transpose(1, 2)


def start_layers(module: nn.Module) -> None:
    """New weights for linear layers, which keep the scale of what passes and add nothing that all samples share.

    torch's own shrink it and add a constant; after some layers all pictures would look alike.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class Adapter(nn.Module):
    """A_k and τ_k: tokens of one expert (B, N, C_k) at the common width, (B, N, d).

    Args:
        features: C_k.
        width: d.

    >>> Adapter(6, 4)(torch.randn(2, 9, 6)).shape
    torch.Size([2, 9, 4])
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)
        self.tag = nn.Parameter(torch.randn(width) * weight_std(width))
        start_layers(self)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(F.gelu(self.hidden(self.norm(tokens)))) + self.tag


class Adapters(nn.Module):
    """The adapters of all experts, and the positions that they share.

    Args:
        features: kind → C_k, in the order of the experts.
        grid: G.
        width: d.

    >>> adapters = Adapters({"classification": 3, "detection": 5}, grid=2, width=4)
    >>> maps = {"classification": torch.randn(2, 3, 8, 8), "detection": torch.randn(2, 5, 2, 2)}
    >>> adapters(maps).shape
    torch.Size([2, 4, 2, 4])
    """

    def __init__(self, features: Mapping[str, int], grid: int, width: int) -> None:
        super().__init__()
        self.features, self.grid = dict(features), grid
        self.by_kind = nn.ModuleDict({kind: Adapter(count, width) for kind, count in features.items()})
        self.positions = nn.Parameter(torch.randn(grid * grid, width) * weight_std(width))

    def one(self, kind: str, maps: Maps) -> Tensor:
        """(B, N, d) Z_k of one expert."""
        found = on_grid(maps, {kind: self.features[kind]}, self.grid)[kind]
        return self.by_kind[kind](grid_tokens(found)) + self.positions

    def forward(self, maps: Maps) -> Tensor:
        """(B, N, E, d) Z of all experts, in their order."""
        found = on_grid(maps, self.features, self.grid)
        each = [self.by_kind[kind](grid_tokens(found[kind])) for kind in self.features]
        return torch.stack(each, dim=2) + self.positions[:, None]
