"""Which sentence encoder. Imports no torch."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel

Pooling = Literal["cls", "mean", "first-last"]


class EncoderConfig(StrictModel):
    """An encoder from a sentence to one vector: a transformer and how its token states become one.

    With ``name`` a published one, by its folder or its name on the Hugging Face hub; without, a small one made anew, of which
    the other fields say how large it is.

    >>> EncoderConfig().hidden_size, EncoderConfig(name="bert-base-uncased").pooling
    (128, 'cls')
    """

    name: str | None = None
    """Folder or hub name of a transformer, such as `bert-base-uncased`; default: a small BERT with random weights."""
    pooling: Pooling = "cls"
    """`cls`: the first token's state (the paper); `mean`: over all tokens; `first-last`: mean of embedding layer and last layer."""
    max_length: int = Field(default=32, ge=4)
    """Tokens of a sentence in training, special ones included; longer ones are cut before repetition."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of hidden states and of attention; default: the transformer's own (0.1)."""
    download: bool = False
    """Fetch `name` from the hub when it is no folder and not in the local cache."""

    tokenizer: Literal["wordpiece", "bpe"] = "wordpiece"
    """Without `name`: kind of tokenizer that is trained on the corpus, as BERT's or on bytes as RoBERTa's."""
    vocabulary: int = Field(default=16_000, ge=64)
    """Without `name`: entries of the tokenizer that is trained on the corpus; small corpora give fewer."""
    hidden_size: int = Field(default=128, ge=8)
    """Without `name`: width."""
    layers: int = Field(default=2, ge=1)
    """Without `name`: layers."""
    heads: int = Field(default=4, ge=1)
    """Without `name`: attention heads."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Without `name`: width inside a layer; default: four times `hidden_size`."""
    positions: int = Field(default=512, ge=16)
    """Without `name`: longest input, in tokens."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.heads} heads")
        if self.name is None and self.max_length > self.positions:
            raise ValueError(f"max_length {self.max_length} is more than the encoder's {self.positions} positions")
        return self
