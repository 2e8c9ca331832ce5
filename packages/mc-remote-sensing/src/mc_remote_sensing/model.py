"""The model that a run of HPCL-Net saves: raw bands and elevation in, probability of the target class out.

Legend: B tiles, C bands, H × W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from mc_core.engine.config import StrictModel
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model
from mc_core.files import StrPath
from mc_remote_sensing.encoders_config import BandsConfig, NetworkConfig
from mc_remote_sensing.methods.hpcl_net.network import SegmentationNetwork
from mc_remote_sensing.receptive_field import measure_receptive_field


class SegmentationConfig(StrictModel):
    """All that is needed to use a trained model: the folder needs nothing beside it."""

    network: NetworkConfig = NetworkConfig()
    """Encoders, fusion and decoder."""
    bands: BandsConfig = BandsConfig()
    """Bands of the image, in order, with the mean and deviation that are taken off inside."""
    target: str = "landslide"
    """Name of the class that is mapped."""
    resolution_m: float | None = Field(default=None, gt=0)
    """Metres that a pixel of the training images measures."""
    threshold: float = Field(default=0.5, ge=0, le=1)
    """Probability from which a pixel counts as target."""
    receptive_field: int | None = Field(default=None, ge=1)
    """Side of the square of pixels that an output pixel depends on; None where not known yet, or the whole tile."""


class SegmentationModel(nn.Module):
    """A trained segmentation network with what belongs to it. Save it by :func:`mc_core.export.save_model`.

    Args:
        config: see :class:`SegmentationConfig`.
        network: a trained one; default: a new one with random weights.

    >>> small = NetworkConfig.model_validate(
    ...     {
    ...         "modality": "image",
    ...         "image": {"backbone": "small-w4"},
    ...         "output_stride": 8,
    ...         "width": 8,
    ...         "rates": (1,),
    ...         "detail_width": 4,
    ...         "decoder_width": 8,
    ...     }
    ... )
    >>> model = SegmentationModel(SegmentationConfig(network=small)).eval()
    >>> model(torch.zeros(1, 3, 50, 70)).shape, model.stride, model.receptive_field
    (torch.Size([1, 50, 70]), 8, 93)
    """

    def __init__(self, config: SegmentationConfig, network: SegmentationNetwork | None = None) -> None:
        super().__init__()
        if network is None:
            network = SegmentationNetwork(config.network, config.bands, load_pretrained=False)
        self.network = network
        if config.receptive_field is None:
            config = config.model_copy(update={"receptive_field": measure_receptive_field(network)})
        self.config = config

    @classmethod
    def from_config(cls, config: SegmentationConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model: nothing is downloaded."""
        return cls(SegmentationConfig.model_validate(config))

    @property
    def stride(self) -> int:
        """Origins of tiles must be multiples of this many pixels for equal results."""
        return self.network.stride

    @property
    def receptive_field(self) -> int | None:
        """Side of the square of pixels, itself in the middle, that an output pixel depends on; None for the whole tile.

        A tile with ``receptive_field // 2`` pixels more on each side gives what the whole scene would.
        """
        return self.config.receptive_field

    @property
    def modality(self) -> str:
        """``image``, ``elevation``, ``stacked`` or ``fused``."""
        return self.config.network.modality

    @property
    def threshold(self) -> float:
        """Probability from which a pixel counts as target."""
        return self.config.threshold

    def set_threshold(self, threshold: float) -> None:
        """Keep another threshold, such as the best on validation blocks.

        Raises:
            ConfigError: beyond [0, 1].
        """
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold {threshold}: a probability lies between 0 and 1")
        self.config = self.config.model_copy(update={"threshold": float(threshold)})

    def forward(
        self, image: Tensor | None, elevation: Tensor | None = None, image_valid: Tensor | None = None
    ) -> Tensor:
        """(B, H, W) float32 probability of the target class.

        Args:
            image: (B, C, H, W) bands in the units of the raster; None for modality ``elevation``.
            elevation: (B, 4, H, W) relative elevation, slope, curvature, valid; None where there is none.
            image_valid: (B, H, W) bool; invalid pixels count as the mean. Default: all valid.

        Raises:
            DataError: a missing input, another number of bands, or sizes that do not fit.
        """
        given = image if image is not None else elevation
        if given is None or given.ndim != 4:
            raise DataError("give the image, the elevation or both, as (batch, channels, height, width)")
        height, width = given.shape[2:]
        for name, part in (("elevation", elevation), ("image_valid", image_valid)):
            if part is not None and part.shape[-2:] != given.shape[-2:]:
                raise DataError(f"{name} has {tuple(part.shape[-2:])} pixels, the image {(height, width)}")
        beyond = (0, -width % self.stride, 0, -height % self.stride)
        if any(beyond):
            if image_valid is None and image is not None:
                image_valid = torch.ones(len(image), height, width, dtype=torch.bool, device=image.device)
            image, elevation = (None if part is None else pad(part, beyond) for part in (image, elevation))
            image_valid = None if image_valid is None else pad(image_valid, beyond, value=False)
        logits = self.network(image, elevation, image_valid)
        return logits[:, :height, :width].float().sigmoid()


def load_segmentation_model(run: StrPath, *, device: str | torch.device = "cpu") -> SegmentationModel:
    """The model of a run, in evaluation mode.

    Args:
        run: the run folder, or its ``model``.
        device: to put it on.

    Raises:
        CheckpointError: no segmentation model there.
    """
    folder = Path(run)
    if (folder / "model").is_dir():
        folder = folder / "model"
    model = load_model(folder, device=device)
    if not isinstance(model, SegmentationModel):
        raise CheckpointError(f"{run} holds a {type(model).__name__}, no segmentation model; give a run of hpcl-net")
    return model
