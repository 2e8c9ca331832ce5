"""The segmentation network of HPCL-Net: two encoders, atrous pooling, fusion of features, a decoder with fine features.

The paper says that image and elevation are fused as features ("in semantic space"); everything else here is ours, along the lines
of DeepLabv3+ (Chen et al. 2018, arXiv:1802.02611) without its pooling over the whole image, so that the result at a pixel does not
depend on how a scene was cut into tiles.

Legend: B tiles, C bands, H × W pixels, h × w cells, F channels of the coarse map, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from mc_core.errors import DataError
from mc_remote_sensing.encoders import Pyramid, build_pyramid, check_channels, conv_norm_act, normalisation
from mc_remote_sensing.encoders_config import ELEVATION_CHANNELS, BandsConfig, NetworkConfig, Norm


class AtrousPooling(nn.Module):
    """A 1×1 and several dilated 3×3 convolutions side by side, joined by a 1×1 convolution.

    Shapes: (B, inputs, h, w) → (B, width, h, w).

    Source: Chen et al. 2017 (DeepLabv3, arXiv:1706.05587), section 3.3, without the pooling over the image.
    """

    def __init__(self, inputs: int, width: int, rates: Sequence[int], dropout: float, norm: Norm) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_act(inputs, width, 1, norm=norm)])
        self.branches.extend(conv_norm_act(inputs, width, 3, dilation=rate, norm=norm) for rate in rates)
        self.project = conv_norm_act(len(self.branches) * width, width, 1, norm=norm)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BChw: Tensor) -> Tensor:
        """The coarse map with a wider view."""
        return self.dropout(self.project(torch.cat([branch(x_BChw) for branch in self.branches], dim=1)))


class GatedFusion(nn.Module):
    """Joins two maps: each channel of both is weighed by a gate in (0, 1), then a 1×1 convolution mixes them.

    Args:
        width: channels of each map, and of the result.
        reduction: of the gate's hidden layer.
        per_position: a gate for each position from its own channels; else one for the whole tile from their means (squeeze
            and excitation, Hu et al. 2018, arXiv:1709.01507), which then depends on the tile.
        norm: after the convolution.

    Shapes: (B, width, h, w) twice → (B, width, h, w).
    """

    def __init__(self, width: int, reduction: int, *, per_position: bool, norm: Norm) -> None:
        super().__init__()
        self.per_position = per_position
        hidden = max(1, 2 * width // reduction)
        self.gate = nn.Sequential(
            nn.Conv2d(2 * width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 2 * width, 1), nn.Sigmoid()
        )
        self.mix = conv_norm_act(2 * width, width, 1, norm=norm)

    def forward(self, first_BFhw: Tensor, second_BFhw: Tensor) -> Tensor:
        """The joint map."""
        both = torch.cat([first_BFhw, second_BFhw], dim=1)
        seen = both if self.per_position else both.mean((2, 3), keepdim=True)
        return self.mix(both * self.gate(seen))


class Decoder(nn.Module):
    """From the coarse map and fine features to one number per pixel: the log-odds of the target class.

    The classifier has an output for each class; their difference is all that a softmax over two classes sees, so it is taken
    before the enlargement.

    Shapes: (B, F, h, w), (B, detail, H/4, W/4) → (B, H, W).
    """

    def __init__(self, config: NetworkConfig, detail_channels: int, detail_stride: int, stride: int) -> None:
        super().__init__()
        self.up, self.detail_stride = stride // detail_stride, detail_stride
        self.detail = conv_norm_act(detail_channels, config.detail_width, 1, norm=config.norm)
        widths = [config.width + config.detail_width] + [config.decoder_width] * config.decoder_layers
        self.layers = nn.Sequential(*(conv_norm_act(a, b, 3, norm=config.norm) for a, b in pairwise(widths)))
        self.classifier = nn.Conv2d(config.decoder_width, 2, 1)

    def forward(self, coarse_BFhw: Tensor, fine_BEhw: Tensor) -> Tensor:
        """(B, H, W) log-odds."""
        coarse = enlarge(coarse_BFhw, self.up)
        scores = self.classifier(self.layers(torch.cat([coarse, self.detail(fine_BEhw)], dim=1)))
        return enlarge(scores[:, 1:] - scores[:, :1], self.detail_stride)[:, 0]


class Projection(nn.Sequential):
    """Coarse map to embeddings of cells: 1×1 convolution, normalisation, ReLU, 1×1 convolution. Not of unit length.

    Source: the closest public code, ``lib/models/modules/projection.py`` of tfzhou/ContrastiveSeg (with 256 outputs).
    """

    def __init__(self, width: int, dim: int, norm: Norm) -> None:
        super().__init__(
            nn.Conv2d(width, width, 1), normalisation(norm, width), nn.ReLU(inplace=True), nn.Conv2d(width, dim, 1)
        )


class SegmentationNetwork(nn.Module):
    """Raw image and elevation to the log-odds of the target class.

    Args:
        config: see :class:`~mc_remote_sensing.encoders_config.NetworkConfig`.
        bands: of the image; their mean and deviation are subtracted and divided by here, on the device.
        load_pretrained: whether published encoder weights may be fetched, where the configuration asks for them.

    Attributes:
        stride: pixels of a cell of the coarse map; sides must be multiples of it.
        encoders: by the names ``image`` (also of stacked bands) and ``elevation``.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: NetworkConfig, bands: BandsConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.config, self.bands, self.stride = config, bands, config.output_stride
        channels = {"image": bands.count, "elevation": ELEVATION_CHANNELS}
        if config.modality == "stacked":
            channels = {"image": bands.count + ELEVATION_CHANNELS}
        elif config.modality != "fused":
            channels = {config.modality: channels[config.modality]}
        pyramids: dict[str, Pyramid] = {}
        for name, count in channels.items():
            of = config.image if name == "image" else config.elevation
            pyramids[name] = build_pyramid(
                of, count, config.output_stride, norm=config.norm, load_pretrained=load_pretrained
            )
        self.encoders = nn.ModuleDict(pyramids)
        self.pooling = nn.ModuleDict(
            {
                name: AtrousPooling(
                    pyramid.out_channels, config.width, config.atrous_rates(), config.dropout, config.norm
                )
                for name, pyramid in pyramids.items()
            }
        )
        self.fusion: GatedFusion | None = None
        if config.modality == "fused":
            per_position = config.fusion == "position"
            self.fusion = GatedFusion(config.width, config.reduction, per_position=per_position, norm=config.norm)
        fine = list(pyramids.values())[: 1 if config.detail == "first" else None]
        self.decoder = Decoder(config, sum(p.detail_channels for p in fine), fine[0].detail_stride, self.stride)
        self.register_buffer("mean", torch.tensor(bands.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(bands.std).view(-1, 1, 1), persistent=False)

    def encoder(self, name: str) -> Pyramid:
        """The encoder ``image`` or ``elevation``."""
        found = self.encoders[name]
        assert isinstance(found, Pyramid)
        return found

    def inputs(
        self, image_BCHW: Tensor | None, elevation_B4HW: Tensor | None, valid_BHW: Tensor | None
    ) -> dict[str, Tensor]:
        """What each encoder sees: normalised bands, invalid pixels at the mean; no elevation is elevation known nowhere.

        Raises:
            DataError: a missing input, or another number of channels.
        """
        seen: list[tuple[str, Tensor]] = []
        if self.config.uses_image:
            if image_BCHW is None:
                raise DataError(f"a model of modality {self.config.modality} needs the image")
            check_channels(image_BCHW, len(self.mean), "the image")
            image = (image_BCHW.to(self.mean.dtype) - self.mean) / self.deviation
            if valid_BHW is not None:
                image = image.masked_fill(~valid_BHW[:, None], 0.0)
            seen.append(("image", image))
        if self.config.uses_elevation:
            if elevation_B4HW is None:
                if not seen:
                    raise DataError("a model of modality elevation needs the elevation")
                image = seen[0][1]
                elevation_B4HW = image.new_zeros(len(image), ELEVATION_CHANNELS, *image.shape[2:])
            check_channels(elevation_B4HW, ELEVATION_CHANNELS, "the elevation")
            seen.append(("elevation", elevation_B4HW.to(self.mean.dtype)))
        if self.config.modality == "stacked":
            return {"image": torch.cat([part for _, part in seen], dim=1)}
        return dict(seen)

    def encode(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, F, h, w) fused coarse map and (B, E, H/4, W/4) fine features of what :meth:`inputs` gave."""
        fine, coarse = [], []
        for name, x in inputs.items():
            if x.shape[2] % self.stride or x.shape[3] % self.stride:
                raise DataError(
                    f"tiles of {x.shape[2]}×{x.shape[3]} pixels: their sides must be multiples of the stride {self.stride}"
                )
            detail, deep = self.encoders[name](x.contiguous(memory_format=torch.channels_last))
            fine.append(detail)
            coarse.append(self.pooling[name](deep))
        joint = coarse[0] if self.fusion is None else self.fusion(*coarse)
        return joint, fine[0] if self.config.detail == "first" else torch.cat(fine, dim=1)

    def forward(
        self, image: Tensor | None, elevation: Tensor | None = None, image_valid: Tensor | None = None
    ) -> Tensor:
        """(B, H, W) log-odds of raw (B, C, H, W) bands and (B, 4, H, W) elevation."""
        return self.decoder(*self.encode(self.inputs(image, elevation, image_valid)))


class HyperPixelNetwork(nn.Module):
    """The segmentation network and the projection of its coarse map.

    The projection is built last, so that the rest starts from the same random weights with and without it.
    """

    def __init__(self, segmenter: SegmentationNetwork, dim: int | None) -> None:
        super().__init__()
        self.segmenter = segmenter
        config = segmenter.config
        self.projection = None if dim is None else Projection(config.width, dim, config.norm)

    def forward(self, inputs: dict[str, Tensor], *, decode: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """(B, H, W) log-odds where asked for, and (B, h·w, D) unit embeddings where there is a projection."""
        coarse, fine = self.segmenter.encode(inputs)
        logits = self.segmenter.decoder(coarse, fine) if decode else None
        if self.projection is None:
            return logits, None
        embedded_BDhw = self.projection(coarse)
        return logits, normalize(embedded_BDhw.float().flatten(2).transpose(1, 2), dim=2)


def enlarge(x_BCHW: Tensor, factor: int) -> Tensor:
    """Bilinear, pixel areas aligned: a cell's value stands at its centre, so that tiles meet without a shift."""
    if factor == 1:
        return x_BCHW
    return interpolate(x_BCHW, scale_factor=factor, mode="bilinear", align_corners=False)
