"""Encoders that give a fine and a coarse feature map: those of timm, and small ones for CPUs.

Legend: B tiles, C channels, H × W pixels.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError, closest
from mc_core.files import StrPath, atomic_path
from mc_remote_sensing.encoders_config import Norm, PyramidConfig

_SMALL = re.compile(r"small-w([1-9]\d*)")
_DETAIL_STRIDE = 4


class Pyramid(nn.Module):
    """An encoder with two outputs.

    Attributes:
        channels: of the input.
        detail_channels: of the fine map.
        detail_stride: pixels of a cell of the fine map.
        out_channels: of the coarse map.
        stride: pixels of a cell of the coarse map.

    Shapes: (B, channels, H, W) → (B, detail_channels, H/detail_stride, W/detail_stride), (B, out_channels, H/stride, W/stride),
    for H and W that are multiples of ``stride``.
    """

    channels: int
    detail_channels: int
    detail_stride: int
    out_channels: int
    stride: int

    def timm_state(self) -> dict[str, Tensor]:
        """The weights under the names that timm gives them; ConfigError where timm has no such encoder."""
        raise ConfigError(f"{type(self).__name__} is ours: timm has no such encoder to load it into")


class TimmPyramid(Pyramid):
    """A timm backbone with ``features_only``.

    Args:
        config: which backbone.
        channels: of the input, any number.
        output_stride: of the coarse map, 8, 16 or 32.
        load_pretrained: whether to do what ``config.pretrained`` asks for.

    Raises:
        ConfigError: no such backbone, one that cannot give feature maps of this stride, or weights that cannot be had.

    >>> import torch
    >>> pyramid = TimmPyramid(PyramidConfig(backbone="resnet10t"), 4, 16)
    >>> [tuple(part.shape) for part in pyramid(torch.zeros(1, 4, 64, 64))]
    [(1, 64, 16, 16), (1, 512, 4, 4)]
    """

    def __init__(
        self, config: PyramidConfig, channels: int, output_stride: int, *, load_pretrained: bool = True
    ) -> None:
        super().__init__()
        name = config.backbone
        if "/" in name or not timm.is_model(name):
            raise ConfigError(f"no backbone '{name}': did you mean {closest(name, ['small-w8', *timm.list_models()])}?")
        options: dict[str, Any] = {} if output_stride == 32 else {"output_stride": output_stride}
        pretrained = config.pretrained and load_pretrained
        try:
            backbone: Any = timm.create_model(
                name, pretrained=pretrained, features_only=True, in_chans=channels, **options
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            if pretrained:
                raise ConfigError(
                    f"the published weights of '{name}' cannot be had ({reason}); check the network"
                ) from error
            raise ConfigError(
                f"backbone '{name}' gives no feature maps of stride {output_stride} for {channels} channels ({reason}); "
                "take a resnet, convnext or efficientnet"
            ) from error
        self.backbone = backbone
        strides, widths = backbone.feature_info.reduction(), backbone.feature_info.channels()
        fine = [i for i, stride in enumerate(strides) if stride == _DETAIL_STRIDE]
        if not fine or strides[-1] != output_stride:
            raise ConfigError(
                f"backbone '{name}' gives maps of strides {', '.join(map(str, strides))}; one of 4 and a last one of "
                f"{output_stride} are needed"
            )
        self.channels = channels
        self._fine = fine[-1]
        self.detail_stride, self.detail_channels = _DETAIL_STRIDE, widths[self._fine]
        self.stride, self.out_channels = output_stride, widths[-1]

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The fine and the coarse map."""
        maps = self.backbone(x_BCHW)
        return maps[self._fine], maps[-1]

    def timm_state(self) -> dict[str, Tensor]:
        """The weights as ``timm.create_model(name, num_classes=0, in_chans=…)`` names them."""
        return {name: tensor.detach().cpu().contiguous() for name, tensor in self.backbone.state_dict().items()}


class SmallPyramid(Pyramid):
    """Five or six 3×3 convolutions with a small receptive field: for CPUs, and where few tiles are labelled. Ours.

    Strides 2, 4 (the fine map, 2N channels) and 8 (the coarse one, 4N), the last with a residual convolution.

    Args:
        width: N, channels of the first layer.
        channels: of the input.
        output_stride: of the coarse map: 8; 4 leaves out the last stride, 16 and 32 add one and two.
        norm: after each convolution.

    >>> import torch
    >>> [tuple(part.shape) for part in SmallPyramid(8, 3, 8)(torch.zeros(1, 3, 64, 64))]
    [(1, 16, 16, 16), (1, 32, 8, 8)]
    """

    def __init__(self, width: int, channels: int, output_stride: int, *, norm: Norm = "batch") -> None:
        super().__init__()
        if output_stride not in (4, 8, 16, 32):
            raise ConfigError(f"output_stride {output_stride}: small encoders have 4, 8, 16 or 32")
        self.stem = conv_norm_act(channels, width, 3, stride=2, norm=norm)
        self.fine = conv_norm_act(width, 2 * width, 3, stride=2, norm=norm)
        down = [conv_norm_act(2 * width, 4 * width, 3, stride=1 if output_stride == 4 else 2, norm=norm)]
        down += [conv_norm_act(4 * width, 4 * width, 3, stride=2, norm=norm) for at in (16, 32) if output_stride >= at]
        self.down = nn.Sequential(*down)
        self.residual = conv_norm_act(4 * width, 4 * width, 3, norm=norm)
        self.channels = channels
        self.detail_stride, self.detail_channels = _DETAIL_STRIDE, 2 * width
        self.stride, self.out_channels = output_stride, 4 * width

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """The fine and the coarse map."""
        fine = self.fine(self.stem(x_BCHW))
        coarse = self.down(fine)
        return fine, coarse + self.residual(coarse)


def build_pyramid(
    config: PyramidConfig, channels: int, output_stride: int, *, norm: Norm = "batch", load_pretrained: bool = True
) -> Pyramid:
    """The encoder that ``config`` names.

    Args:
        config: see :class:`~mc_remote_sensing.encoders_config.PyramidConfig`.
        channels: of the input.
        output_stride: pixels of a cell of the coarse map.
        norm: of encoders ``small-wN``; timm's have their own.
        load_pretrained: whether published weights may be fetched, where the configuration asks for them.

    Raises:
        ConfigError: no such encoder, or one that cannot do this.
    """
    small = _SMALL.fullmatch(config.backbone)
    if small is None:
        return TimmPyramid(config, channels, output_stride, load_pretrained=load_pretrained)
    if config.pretrained and load_pretrained:
        raise ConfigError(f"there are no published weights for '{config.backbone}': set pretrained to false")
    return SmallPyramid(int(small[1]), channels, output_stride, norm=norm)


def normalisation(norm: Norm, width: int) -> nn.Module:
    """Over batch and positions with running statistics for evaluation, or over the channels of each position."""
    return nn.BatchNorm2d(width) if norm == "batch" else LayerNorm2d(width)


def conv_norm_act(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, dilation: int = 1, norm: Norm = "batch"
) -> nn.Sequential:
    """Convolution without bias that keeps the size (divided by ``stride``), normalisation, ReLU."""
    padding = dilation * (kernel - 1) // 2
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, normalisation(norm, outputs), nn.ReLU(inplace=True))


def check_channels(x_BCHW: Tensor, channels: int, what: str) -> None:
    """DataError unless ``x`` is a batch of maps with so many channels."""
    if x_BCHW.ndim != 4 or x_BCHW.shape[1] != channels:
        raise DataError(f"{what} has shape {tuple(x_BCHW.shape)}; (batch, {channels}, height, width) is needed")


def save_timm_checkpoint(pyramid: Pyramid, path: StrPath) -> None:
    """Write an encoder's weights as timm reads them.

    ``timm.create_model(name, num_classes=0, in_chans=channels, checkpoint_path=path)`` then has them.

    Args:
        pyramid: a :class:`TimmPyramid`.
        path: a file name that ends in ``.safetensors``.

    Raises:
        ConfigError: an encoder that timm has not, another file name, or a place that cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ConfigError(f"{path}: timm tells the format by the file name, which must end in .safetensors")
    state = pyramid.timm_state()
    with atomic_path(path) as draft:
        save_file(state, draft, metadata={"format": "pt"})
