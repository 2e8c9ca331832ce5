"""What every image method shares: the encoder to keep, and frozen features for evaluation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_core.distributed import world_size
from mc_core.engine.method import Batch, Method
from mc_core.losses import anchor_terms, info_nce_from_terms
from mc_vision.encoders import TimmEncoder


class ImageMethod(Method):
    """A method around one image encoder. Subclasses set ``online`` with the encoder as its child ``encoder``."""

    online: nn.Module

    @property
    def encoder(self) -> TimmEncoder:
        """The encoder that is trained and kept; heads are thrown away after training."""
        encoder = self.online.encoder
        assert isinstance(encoder, TimmEncoder)
        return encoder

    def encoders(self) -> dict[str, TimmEncoder]:
        """Encoders worth keeping besides :attr:`encoder`, by name; a run saves each as ``model-NAME``. Default: none."""
        return {}

    def encode(self, batch: Batch) -> Tensor:
        """(B, num_features) backbone features of ``batch["image"]`` (B, C, H, W), not normalised."""
        return self.encoder(batch["image"])

    def export_module(self) -> nn.Module:
        """The encoder without heads."""
        return self.encoder


def networks(encoder: TimmEncoder, projector: nn.Module) -> nn.Module:
    """Encoder and projector in a row, reachable by these names."""
    parts: OrderedDict[str, nn.Module] = OrderedDict(encoder=encoder, projector=projector)
    return nn.Sequential(parts)


def unit(features: Tensor) -> Tensor:
    """Rows divided by max(‖row‖₂, 1e-12), in float32: what the equations write n(·)."""
    return normalize(features.float(), dim=1)


def sync_batchnorm(module: nn.Module) -> nn.Module:
    """``module`` with BatchNorm over all processes where several train on GPUs (torch has none for CPUs), else as it is."""
    if world_size() > 1 and torch.cuda.is_available():
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return module


def contrast_of_step(
    query: Tensor,
    keys: Tensor,
    offset: int,
    *,
    temperature: float,
    ids: Tensor | None = None,
    key_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, terms) of ``ctr(q, k) = 2τ · CE(q kᵀ / τ, i)``: the other keys of the step are the negatives.

    Args:
        query: (B, D) unit rows.
        keys: (G, D) unit rows, those of all processes and micro-batches.
        offset: where the keys of these queries begin.
        temperature: τ.
        ids: (B,), with ``key_ids`` (G,): keys with the id of the query are no negatives.

    Source: Chen, Xie, He 2021 (MoCo v3, arXiv:2104.02057), algorithm 1.
    """
    terms = anchor_terms(
        query, keys, temperature=temperature, in_batch=True, positive_offset=offset, query_ids=ids, key_ids=key_ids
    )
    return 2 * temperature * info_nce_from_terms(terms), terms


def ids_of(batch: Batch) -> Tensor | None:
    """(B,) int64 ids of what counts as the same image, when the data knows them."""
    ids = batch.get("ids")
    return ids if isinstance(ids, Tensor) else None


def detached(**values: Any) -> dict[str, Any]:
    """Metrics without gradient."""
    return {name: value.detach() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
