"""Which language model reads the visual tokens. Imports no torch."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from mc_core.engine.config import StrictModel


class LanguageConfig(StrictModel):
    """A transformer that goes on with a text, word by word.

    With ``name`` a published one, by its folder or its name on the Hugging Face hub: any causal model of transformers, or a
    BERT-style one, which then reads from left to right. Without, a small one made anew. The ids of special tokens are filled in
    from the tokenizer.

    >>> LanguageConfig().family, LanguageConfig(family="bert", hidden_size=64).layers
    ('llama', 2)
    """

    name: str | None = None
    """Folder or hub name, such as `Qwen/Qwen3-0.6B` or `google-bert/bert-base-uncased`; default: a small one of random weights."""
    download: bool = False
    """Fetch `name` from the hub when it is no folder and not in the local cache."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout everywhere; default: the model's own."""
    question_length: int = Field(default=32, ge=1)
    """Most tokens of a question, special ones not counted; a longer one is refused, as it would be cut."""
    answer_length: int = Field(default=24, ge=1)
    """Most tokens of an answer or a caption, its end included."""

    family: Literal["llama", "gpt2", "bert"] = "llama"
    """Without `name`: of which architecture."""
    vocabulary: int = Field(default=8_000, ge=8)
    """Without `name`: entries of the tokenizer; filled in."""
    hidden_size: int = Field(default=128, ge=8)
    """Without `name`: features of a token."""
    layers: int = Field(default=2, ge=1)
    """Without `name`: layers."""
    heads: int = Field(default=4, ge=1)
    """Without `name`: attention heads."""
    positions: int = Field(default=256, ge=8)
    """Without `name`: the context, that is visual tokens, question and answer together."""

    pad_id: int = Field(default=0, ge=0)
    """Id of padding, filled in."""
    start_id: int | None = Field(default=2, ge=0)
    """Id that each text begins with, filled in; none where the tokenizer has none."""
    separator: tuple[int, ...] = (3,)
    """Ids between a question and its answer, filled in."""
    end_id: int = Field(default=3, ge=0)
    """Id that ends an answer, filled in."""
    architecture: dict[str, Any] | None = None
    """Filled in for a published model: its own configuration, so that a saved model needs nothing else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name is not None:
            return self
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into {self.heads} heads")
        if self.family == "llama" and (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.heads} heads is {self.hidden_size // self.heads}: rotary positions "
                "need an even width of each"
            )
        if self.question_length + self.answer_length + 2 > self.positions:
            raise ValueError(
                f"question_length {self.question_length} and answer_length {self.answer_length} do not fit into "
                f"{self.positions} positions"
            )
        return self
