"""The encoder of a segment, whatever its architecture, and how it is saved, loaded and made ready untrained.

Legend: B samples, C channels, T time steps, E width of the embedding.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mc_core.errors import CheckpointError, DataError
from mc_core.export import load_model
from mc_core.files import StrPath
from mc_wearables.data.segments import FLAT
from mc_wearables.encoders.efficientnet import EfficientNet1d
from mc_wearables.encoders.resnet import ResNet1d
from mc_wearables.encoders.vit import ViT1d
from mc_wearables.encoders_config import EncoderConfig

_BACKBONES: dict[str, type[EfficientNet1d | ResNet1d | ViT1d]] = {
    "efficientnet": EfficientNet1d,
    "resnet": ResNet1d,
    "vit": ViT1d,
}


class SignalEncoder(nn.Module):
    """From segments to embeddings: (B, C, T) → (B, E). The head that training adds is not part of it.

    Segments come z-scored, as :class:`~mc_wearables.data.segments.Segments` holds them, unless the configuration says
    ``standardise``. Embeddings of the EfficientNet follow a SiLU: every entry is above −0.279 and their mean is far from
    0, so standardise before a probe and centre before a cosine.

    Args:
        config: which encoder.

    Attributes:
        config: as given.
        num_features: E.
        input_shape: (C, T) of the segments it is made for. The convolutional ones take any T, the ViT whole patches.

    >>> encoder = SignalEncoder(EncoderConfig(channels=1, sampling_rate=32, seconds=10, width=36, expansion=2)).eval()
    >>> encoder(torch.zeros(2, 1, 320)).shape, encoder.num_features, encoder.input_shape
    (torch.Size([2, 36]), 36, (1, 320))
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.width
        self.input_shape = (config.channels, config.samples)
        self.backbone: nn.Module = _BACKBONES[config.architecture](config)

    @classmethod
    def from_config(cls, config: EncoderConfig | Mapping[str, Any]) -> Self:
        """The same architecture with random weights, to be filled from a saved model."""
        return cls(EncoderConfig.model_validate(config))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, E) embeddings.

        Raises:
            DataError: another number of channels, or for a ViT a length that patches do not fill.
        """
        self._check(x_BCT)
        return self.backbone(_standardised(x_BCT) if self.config.standardise else x_BCT)

    def standardising(self) -> SignalEncoder:
        """A copy that takes raw signals in any unit: the z-score is its first step. For export."""
        twin = copy.deepcopy(self)
        twin.config = self.config.model_copy(update={"standardise": True})
        return twin

    def _check(self, x_BCT: Tensor) -> None:
        channels = self.config.channels
        if x_BCT.ndim != 3 or x_BCT.shape[1] != channels or x_BCT.shape[2] < 1:
            raise DataError(
                f"the encoder takes segments of shape (batch, {channels}, samples), got {tuple(x_BCT.shape)}; "
                "set encoder.channels to what the data has"
            )
        if self.config.architecture == "vit" and x_BCT.shape[2] % self.config.patch:
            raise DataError(
                f"the encoder takes segments of whole patches of {self.config.patch} samples, got {x_BCT.shape[2]}"
            )


def _standardised(x_BCT: Tensor) -> Tensor:
    """The z-score of each channel and segment, a flat channel zero: :func:`mc_wearables.data.segments.standardise`."""
    centred = x_BCT - x_BCT.mean(2, keepdim=True)
    spread = centred.square().mean(2, keepdim=True).sqrt()
    return torch.where(spread > FLAT, centred / spread.clamp_min(FLAT), 0.0)


def load_encoder(folder: StrPath) -> SignalEncoder:
    """An encoder saved by :func:`mc_core.export.save_model`, in evaluation mode.

    Raises:
        CheckpointError: no such model in the folder, a damaged one, or one of another kind.
    """
    model = load_model(folder)
    if not isinstance(model, SignalEncoder):
        raise CheckpointError(f"{folder} holds a {type(model).__name__}, not an encoder of signals")
    return model


@torch.no_grad()
def recalibrate_batchnorm(encoder: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running statistics of every BatchNorm by plain averages over ``batches``.

    For untrained baselines: fresh statistics (0 and 1) fade a signal to about 4e-13 on its way through 16 gates, and two
    training batches hardly mend that. Some 2,000 segments do. Everything but BatchNorm stays in evaluation mode.

    Args:
        encoder: changed in place; its modes and momenta come back as they were.
        batches: (B, C, T) each, on the encoder's device; at least two segments.

    Returns:
        Segments seen.

    Raises:
        DataError: no batch.
    """
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        raise DataError("no segments to take BatchNorm statistics from; give some 2,000")
    modes = {module: module.training for module in encoder.modules()}
    norms = [module for module in encoder.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    seen = 0
    try:
        encoder.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a cumulative average
            norm.train()
        for batch in itertools.chain([first], waiting):
            encoder(batch)
            seen += len(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return seen
