"""The paper's encoder: a one-dimensional EfficientNet of 16 MBConv blocks.

Abbaspourazad et al. 2024 (ICLR, arXiv:2312.05409), with the layers of the authors' later released pipeline: widths
``int(c·E/36)`` for an embedding of width E; 3,146,129 parameters for PPG (4 channels, expansion 7) and 2,468,755 for ECG
(1 channel, expansion 6). The paper says 3.3 and 2.5 million; which kernels its PPG encoder had is not known.

Legend: B samples, C channels, T time steps, E width of the embedding.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mc_wearables.encoders.layers import as_grid, convolution
from mc_wearables.encoders_config import STRIDE_SLOTS, EncoderConfig

KERNEL = 3
_UNITS = 36  # the embedding is this many units wide
_STEM = 6
# (units, blocks, whether its kernel is 2k − 1, whether it begins at a stride slot)
_STAGES = (
    (4, 1, False, False),
    (5, 2, False, True),
    (7, 2, True, True),
    (9, 3, False, True),
    (11, 3, True, True),
    (14, 4, True, True),
    (18, 1, True, False),
)
_SQUEEZE = 0.25  # of the expanded width: most parameters sit here


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.1)


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate that sees their means over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, int(_SQUEEZE * channels))
        self.reduce = convolution(channels, squeezed, 1, bias=True)
        self.expand = convolution(squeezed, channels, 1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean(3, keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    """Widen (not at expansion 1), convolve each channel by itself, gate, narrow; around it the identity where it fits."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [convolution(channels_in, wide, 1), _norm(wide), nn.SiLU(inplace=True)]
        layers += [convolution(wide, wide, kernel, stride, groups=wide), _norm(wide), nn.SiLU(inplace=True)]
        layers += [SqueezeExcite(wide), convolution(wide, channels_out, 1), _norm(channels_out)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class EfficientNet1d(nn.Module):
    """(B, C, T) → (B, E): stem, 16 blocks, a 1×1 convolution with SiLU (so every entry is above −0.279), mean over time."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        kernel = config.kernel or KERNEL
        halvings = config.downsample.bit_length() - 1  # the first so many of the stride slots halve the length
        strides = iter([2] * halvings + [1] * (STRIDE_SLOTS - halvings))

        def units(count: int) -> int:
            return max(1, int(count * config.width / _UNITS))

        width = units(_STEM)
        layers: list[nn.Module] = [
            convolution(config.channels, width, kernel, next(strides)),
            _norm(width),
            nn.SiLU(inplace=True),
        ]
        for number, (count, blocks, longer, slot) in enumerate(_STAGES):
            for block in range(blocks):
                stride = next(strides) if slot and block == 0 else 1
                expansion = config.expansion if number else 1
                layers.append(MBConv(width, units(count), 2 * kernel - 1 if longer else kernel, stride, expansion))
                width = units(count)
        layers += [convolution(width, config.width, 1), _norm(config.width), nn.SiLU(inplace=True)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(as_grid(x_BCT)).mean((2, 3))
