"""Masked-language-model training: Devlin, Chang, Lee, Toutanova 2019 (BERT), arXiv:1810.04805, section 3.1.

Of a sentence's tokens some are predicted from the others: 80 % of them are replaced by the mask token, 10 % by any other, 10 %
stay. Ours is that each sentence has one at least, and that nothing is predicted of pairs of sentences::

    L = mean over predicted tokens t of −log softmax(E · n(gelu(W s_t + b)) + c)_t          E: the encoder's own embeddings

with s the states of the last layer and n a LayerNorm. The head W, b, n, c is thrown away. A contrast needs positions and words
that already mean something: this gives them to an encoder that starts from random weights.

Legend: B sentences, L tokens of the longest, P predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear

from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.random import BatchRandom
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.methods.base import SentenceMethod
from mc_text_code.methods.mlm.config import MaskedLMConfig

_CHOSEN, _KIND, _OTHER = 0x301, 0x302, 0x303  # streams of random numbers


class MaskedLM(SentenceMethod):
    """Masked-language-model training of a sentence encoder.

    Args:
        config: see :class:`MaskedLMConfig`.
        encoder: to train instead of the one that ``config.encoder`` describes; with its tokenizer.

    Batches need ``input_ids`` and ``attention_mask``, (B, L).

    Raises:
        ConfigError: a tokenizer without mask token.
    """

    config: MaskedLMConfig

    def __init__(self, config: MaskedLMConfig, encoder: SentenceEncoder | None = None) -> None:
        super().__init__()
        encoder = SentenceEncoder(config.encoder) if encoder is None else encoder
        self.config = config.model_copy(update={"encoder": encoder.config})
        tokenizer = encoder.tokenizer
        if tokenizer is None or tokenizer.mask_token_id is None:
            raise ConfigError("a warm start needs a tokenizer with a mask token: set warm_start.steps to 0")
        self.mask_id = int(tokenizer.mask_token_id)
        self.vocabulary = len(tokenizer)
        self.register_buffer(
            "special", torch.zeros(encoder.embeddings.num_embeddings, dtype=torch.bool), persistent=False
        )
        self.get_buffer("special")[torch.tensor(tokenizer.all_special_ids)] = True
        parts: OrderedDict[str, nn.Module] = OrderedDict(encoder=encoder)
        self.online = nn.Sequential(parts)
        self.dense = nn.Linear(encoder.num_features, encoder.num_features)
        self.norm = nn.LayerNorm(encoder.num_features)
        self.bias = nn.Parameter(torch.zeros(encoder.embeddings.num_embeddings))

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The mean over predicted tokens of their negative log-likelihood."""
        input_ids, mask = batch["input_ids"], batch["attention_mask"]
        random = BatchRandom(progress.run_seed, int(batch["epoch"]), batch["index"])
        changed, predicted = self.corrupt(input_ids, mask, random)
        states_PD = self.encoder.states(changed, mask)[predicted]
        hidden_PD = self.norm(gelu(self.dense(states_PD)))
        scores_PV = linear(hidden_PD, self.encoder.embeddings.weight, self.bias)
        loss = cross_entropy(scores_PV.float(), input_ids[predicted])
        return StepOutput(loss, {"predicted": predicted.sum() / len(input_ids)})

    def corrupt(self, input_ids: Tensor, mask: Tensor, random: BatchRandom) -> tuple[Tensor, Tensor]:
        """(B, L) ids with some replaced, and (B, L) bool which are predicted."""
        width = input_ids.shape[1]
        u_BL = random.uniform(width, stream=_CHOSEN)
        u_BL = u_BL.masked_fill(self.get_buffer("special")[input_ids] | (mask == 0), 2.0)
        predicted = u_BL < self.config.rate
        least = u_BL.argmin(1, keepdim=True)
        predicted = predicted.scatter(1, least, u_BL.gather(1, least) < 1)
        kind_BL = random.uniform(width, stream=_KIND)
        other_BL = (random.uniform(width, stream=_OTHER) * self.vocabulary).long().clamp_(max=self.vocabulary - 1)
        changed = input_ids.masked_fill(predicted & (kind_BL < 0.8), self.mask_id)
        return torch.where(predicted & (kind_BL >= 0.9), other_BL, changed), predicted
