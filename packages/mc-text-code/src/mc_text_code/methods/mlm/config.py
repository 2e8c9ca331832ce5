"""Settings of masked-language-model training. Imports no torch."""

from __future__ import annotations

from pydantic import Field

from mc_core.engine.config import StrictModel
from mc_text_code.encoders_config import EncoderConfig


class MaskedLMConfig(StrictModel):
    """Masked-language-model training as BERT's."""

    encoder: EncoderConfig = EncoderConfig()
    """The encoder of sentences."""
    rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of tokens that are predicted."""
