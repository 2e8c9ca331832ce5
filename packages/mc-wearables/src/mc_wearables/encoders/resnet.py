"""A one-dimensional ResNet of 18 blocks with wide kernels, to compare the paper's encoder with.

Ours: the paper's Table 4 names a 1D-ResNet of 16.9 million parameters without its layers. This one has 17.2 million at 4
channels, and the same width of the embedding. With ``depth`` 4 and a small width it is a strided stack for CPUs.

Legend: B samples, C channels, T time steps, E width of the embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mc_wearables.encoders.layers import EveryStep, as_grid, convolution
from mc_wearables.encoders_config import EncoderConfig

KERNEL, DEPTH = 21, 18
_SHARES = (8, 4, 2, 1)  # of E, the width of each stage


class BasicBlock(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            convolution(channels_in, channels_out, kernel, stride),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            convolution(channels_out, channels_out, kernel),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            self.shortcut.append(EveryStep(stride))
            self.shortcut.append(convolution(channels_in, channels_out, 1))
            self.shortcut.append(nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layers(x) + self.shortcut(x))


class ResNet1d(nn.Module):
    """(B, C, T) → (B, E): a stem and four stages, each halving the length; mean over time."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kernel, depth = config.kernel or KERNEL, config.depth or DEPTH
        width = max(1, config.width // _SHARES[0])
        layers: list[nn.Module] = [
            convolution(config.channels, width, kernel, 2),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for stage, share in enumerate(_SHARES):
            following = max(1, config.width // share)
            later = stage >= len(_SHARES) - depth % len(_SHARES)  # blocks left over go to the last stages
            for block in range(depth // len(_SHARES) + later):
                layers.append(BasicBlock(width, following, kernel, 1 if block else 2))
                width = following
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(as_grid(x_BCT)).mean((2, 3))
