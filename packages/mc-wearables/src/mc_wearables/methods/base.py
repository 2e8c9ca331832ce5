"""What every method on signals shares: the encoder to keep, and frozen embeddings for evaluation."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.engine.method import Batch, Method
from mc_wearables.encoders.signal import SignalEncoder


class SignalMethod(Method):
    """A method around one encoder of segments. Subclasses set ``online`` with the encoder as its child ``encoder``."""

    online: nn.Module

    @property
    def encoder(self) -> SignalEncoder:
        """The encoder that is trained and kept; heads are thrown away after training."""
        encoder = self.online.encoder
        assert isinstance(encoder, SignalEncoder)
        return encoder

    def encoders(self) -> dict[str, SignalEncoder]:
        """Encoders worth keeping besides :attr:`encoder`, by name; a run saves each as ``model-NAME``. Default: none."""
        return {}

    def encode(self, batch: Batch) -> Tensor:
        """(B, num_features) embeddings of ``batch["signal"]`` (B, C, T), not normalised."""
        return self.encoder(batch["signal"])

    def export_module(self) -> nn.Module:
        """The encoder without heads."""
        return self.encoder


def networks(encoder: SignalEncoder, projector: nn.Module) -> nn.Module:
    """Encoder and projector in a row, reachable by these names."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(encoder=encoder, projector=projector)
    return nn.Sequential(parts)


def unit(features: Tensor) -> Tensor:
    """Rows divided by max(‖row‖₂, 1e-12), in float32: what the equations write with a hat."""
    return normalize(features.float(), dim=1)
