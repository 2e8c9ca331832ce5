"""What could be said of a picture: a small language model reads the map of features as visual tokens and goes on in words.

::

    v_p = W LN(f_p) + e_p,      L = mean over tokens of −log p(w_t | v_1 … v_N, w_1 … w_{t−1}),   the end token included

Legend: B pictures, C features, N = H × W places p of a map f, h features of a visual token, L tokens of a caption.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.engine.method import Batch
from mc_core.errors import ConfigError
from mc_core.modules import Shared
from mc_vision_language.experts.base import Expert, Metrics
from mc_vision_language.experts.heads import tokens_of
from mc_vision_language.language import LanguageModel
from mc_vision_language.language_config import LanguageConfig
from mc_vision_language.language_text import with_language_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CaptioningExpert(Expert):
    """Captions; :meth:`predict` gives B of them, or, without a tokenizer, their ids (B, ≤ answer_length).

    Batches: ``input_ids`` and ``attention_mask`` (B, L), with or without the token that ends a caption.
    """

    kind = "captioning"
    needs = ("input_ids", "attention_mask")

    def make_head(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Visual tokens and the language model."""
        head = self.config.captioning
        described = head.language if tokenizer is None else with_language_ids(head.language, tokenizer)
        self.language = LanguageModel(described, load_pretrained=not self._filled(described))
        head = head.model_copy(update={"language": self.language.config})
        self.config = self.config.model_copy(update={"captioning": head})
        places, most = self.grid[0] * self.grid[1], head.language.answer_length
        if places + most + 1 > self.language.context:
            raise ConfigError(
                f"a map of {self.grid[0]} × {self.grid[1]} places and captions of {most} tokens are more than the "
                f"{self.language.context} positions of the language model: raise captioning.language.positions, or take a coarser "
                "map"
            )
        width = self.language.num_features
        self.norm = nn.LayerNorm(self.num_features)
        self.project = nn.Linear(self.num_features, width)
        self.pos_embed = nn.Parameter(torch.randn(1, places, width) * 0.02)
        self.take_tokenizer(tokenizer)

    @staticmethod
    def _filled(config: LanguageConfig) -> bool:
        return config.name is not None and config.architecture is not None

    def take_tokenizer(self, tokenizer: PreTrainedTokenizerFast | None) -> None:
        """Use this tokenizer from now on.

        Raises:
            ConfigError: it has more tokens than the language model.
        """
        if tokenizer is None:
            return
        if len(tokenizer) > self.language.words:
            raise ConfigError(
                f"the tokenizer has {len(tokenizer)} tokens, the language model knows {self.language.words}"
            )
        self._tokenizer = Shared(tokenizer)

    def head_outputs(self, features: Tensor) -> Tensor:
        """(B, N, h) visual tokens."""
        return self.project(self.norm(tokens_of(features))) + self.pos_embed

    def head_loss(self, features: Tensor, batch: Batch) -> tuple[Tensor, Metrics]:
        """See the module's text."""
        text = caption_targets(batch["input_ids"], batch["attention_mask"], self.language.config)
        logits = self.language.logits(self.head_outputs(features), text.ids, text.mask)
        count = text.wanted.sum().clamp(min=1)
        target = text.ids.masked_fill(~text.wanted, -100)
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / count
        right = ((logits.argmax(2) == text.ids) & text.wanted).sum() / count
        return loss, {"token_accuracy": right.detach()}

    def written(self, visual: Tensor) -> Tensor:
        """(B, ≤ answer_length) ids of captions of visual tokens (B, N, h), the end token from the end on."""
        config = self.language.config
        start = () if config.start_id is None else (config.start_id,)
        prompt = torch.tensor([start], dtype=torch.long, device=visual.device).expand(len(visual), len(start))
        return self.language.generate(visual, prompt, torch.ones_like(prompt), config.answer_length)

    def predicted(self, features: Tensor) -> Any:
        """B captions, or ids."""
        ids = self.written(self.head_outputs(features))
        if self.tokenizer is None:
            return ids
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


class CaptionTargets(NamedTuple):
    """Captions with their end.

    Attributes:
        ids: (B, L + 1) int64.
        mask: (B, L + 1) int64.
        wanted: (B, L + 1) bool, the tokens to predict: all but the one that every caption begins with.
    """

    ids: Tensor
    mask: Tensor
    wanted: Tensor


def caption_targets(input_ids: Tensor, attention_mask: Tensor, config: LanguageConfig) -> CaptionTargets:
    """Captions with the token that ends them, where it is not there already.

    Args:
        input_ids: (B, L), padded on the right.
        attention_mask: (B, L).
        config: names the tokens that begin and end a caption.

    >>> found = caption_targets(
    ...     torch.tensor([[2, 7, 3], [2, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]), LanguageConfig()
    ... )
    >>> found.ids.tolist(), found.wanted.int().tolist()
    ([[2, 7, 3, 0], [2, 3, 0, 0]], [[0, 1, 1, 0], [0, 1, 0, 0]])
    """
    there = attention_mask.bool()
    ids = F.pad(input_ids.masked_fill(~there, config.pad_id), (0, 1), value=config.pad_id)
    mask = F.pad(attention_mask.long(), (0, 1))
    length = mask.sum(1, keepdim=True)
    last = ids.gather(1, (length - 1).clamp(min=0))
    unended = (last != config.end_id) | (length == 0)
    ids = ids.scatter(1, length, torch.where(unended, config.end_id, ids.gather(1, length)))
    mask = mask.scatter(1, length, unended.long())
    wanted = mask.bool()
    if config.start_id is not None:
        wanted = torch.cat([wanted[:, :1] & (ids[:, :1] != config.start_id), wanted[:, 1:]], 1)
    return CaptionTargets(ids, mask, wanted)
