"""A transformer on patches of half a second, to compare the paper's encoder with.

Ours: the paper's Table 4 names a 1D-ViT of 7.2 million parameters without its layers. This one has 7.1 million: pre-norm
blocks, fixed sine and cosine positions, the mean of all patches instead of a class token.

Legend: B samples, C channels, T time steps, N patches, E width of the embedding, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_wearables.encoders_config import EncoderConfig

DEPTH = 9
_HEAD_WIDTH, _MLP_RATIO = 32, 4


def positions(count: int, width: int) -> Tensor:
    """(N, E) float32: sine and cosine of the position at E/2 frequencies from 1 down to 1/10000.

    >>> positions(3, 4)[0]
    tensor([0., 0., 1., 1.])
    """
    frequency = 10_000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = torch.arange(count, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


class Block(nn.Module):
    """Self-attention, then an MLP, each around a LayerNorm and beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // _HEAD_WIDTH)
        while width % self.heads:
            self.heads -= 1
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, _MLP_RATIO * width), nn.GELU(), nn.Linear(_MLP_RATIO * width, width))

    def forward(self, x_BNE: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm_1(x_BNE)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed_BHNF = F.scaled_dot_product_attention(q, k, v)
        x_BNE = x_BNE + self.out(mixed_BHNF.transpose(1, 2).flatten(2))
        return x_BNE + self.mlp(self.norm_2(x_BNE))


class ViT1d(nn.Module):
    """(B, C, T) → (B, E), T a multiple of the patch."""

    positions_NE: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patch = config.patch
        self.embed = nn.Linear(config.channels * self.patch, config.width)
        self.blocks = nn.Sequential(*(Block(config.width) for _ in range(config.depth or DEPTH)))
        self.norm = nn.LayerNorm(config.width)
        self.register_buffer("positions_NE", positions(config.samples // self.patch, config.width), persistent=False)

    def forward(self, x_BCT: Tensor) -> Tensor:
        patches_BNP = x_BCT.unflatten(2, (-1, self.patch)).transpose(1, 2).flatten(2)
        count, width = patches_BNP.shape[1], self.positions_NE.shape[1]
        fits = count == len(self.positions_NE)
        place_NE = self.positions_NE if fits else positions(count, width).to(x_BCT.device)
        return self.norm(self.blocks(self.embed(patches_BNP) + place_NE)).mean(1)
