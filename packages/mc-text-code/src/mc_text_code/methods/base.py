"""What every method on sentences shares: the encoder to keep, and frozen embeddings for evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mc_core.engine.method import Batch, Method
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.saving import save_sentence_transformer


class SentenceMethod(Method):
    """A method around one encoder of sentences. Subclasses set ``online`` with the encoder as its child ``encoder``."""

    online: nn.Module

    @property
    def encoder(self) -> SentenceEncoder:
        """The encoder that is trained and kept; heads are thrown away after training."""
        encoder = self.online.encoder
        assert isinstance(encoder, SentenceEncoder)
        return encoder

    def encode(self, batch: Batch) -> Tensor:
        """(B, D) embeddings of ``batch["input_ids"]`` and ``batch["attention_mask"]``, (B, L), not normalised."""
        return self.encoder(batch["input_ids"], batch["attention_mask"])

    def export_module(self) -> SentenceEncoder:
        """The encoder without head."""
        return self.encoder

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The encoder as a folder that ``SentenceTransformer`` loads; nothing where it has no tokenizer."""
        if self.encoder.tokenizer is not None:
            save_sentence_transformer(self.encoder, folder, card=card)
