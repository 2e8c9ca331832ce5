"""How the second view of a sentence is made longer. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel

Cap = Literal["code", "paper"]


class AugmentConfig(StrictModel):
    """What is done to a sentence's token ids before it is encoded as the positive of itself.

    >>> AugmentConfig().rate, AugmentConfig(kind="none").kind
    (0.32, 'none')
    """

    kind: Literal["subword", "word", "stop-word", "mask", "none"] = "subword"
    """`subword` repeats pieces (ESimCSE), `word` whole words; `stop-word` and `mask` insert instead (the paper's ablation);
    `none`: SimCSE, whose views differ by dropout alone."""
    rate: float = Field(default=0.32, ge=0, le=1)
    """Greatest share r of tokens that are repeated or inserted."""
    cap: Cap = "code"
    """How many at the most, of n tokens: `code`: fewer than min(10, ⌊r·n⌋), n counting special tokens, as released; `paper`: up
    to max(2, ⌊r·n⌋)."""
