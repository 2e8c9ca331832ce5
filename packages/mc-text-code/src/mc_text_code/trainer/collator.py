"""From a column of sentences to both views, inside sentence-transformers' data loading.

Legend: B sentences, L tokens of the longest, T tokens of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_core.tokens import padded, ragged, tokenize
from mc_text_code.augment import lengthen
from mc_text_code.augment_config import AugmentConfig
from mc_text_code.data.pairs import stop_word_ids
from mc_text_code.data.sentences import Sentences

_IDS, _MASK = "input_ids", "attention_mask"


@dataclass
class ESimCSECollator(SentenceTransformerDataCollator):
    """Tokenises a column of sentences once and lengthens it for the second view: ``anchor_…`` and ``positive_…``.

    Which tokens are repeated is a function of (seed, epoch, the sentence), so that a run that goes on sees the same views;
    :class:`~mc_text_code.trainer.callback.ESimCSECallback` says which epoch it is. Sentences are cut to
    ``model.max_seq_length`` before repetition (32 in the paper), so that second views may be longer.

    Make one by :meth:`of`.

    Args:
        tokenizer: of the model.
        augment: what is done to the second view; its kind ``none`` is SimCSE.
        seed: of the repetition.
        positions: the most tokens that the model takes; second views that would be longer lose tokens before their last.

    Raises:
        ConfigError: a tokenizer that cannot pad, or lacks what ``augment.kind`` needs.
    """

    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    seed: int = 0
    positions: int | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is None or self.tokenizer.pad_token_id is None:
            raise ConfigError("ESimCSECollator needs the model's tokenizer, with a padding token")
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        self._stop_ids = None
        if self.augment.kind in ("word", "stop-word"):
            if not isinstance(self.tokenizer, PreTrainedTokenizerFast):
                raise ConfigError(f"augment.kind {self.augment.kind} needs a fast tokenizer: take another kind")
            self._stop_ids = stop_word_ids(self.tokenizer)
        if self.augment.kind == "mask" and self.tokenizer.mask_token_id is None:
            raise ConfigError("augment.kind mask needs a tokenizer with a mask token: take another kind")

    @classmethod
    def of(
        cls, model: SentenceTransformer, augment: AugmentConfig | None = None, *, seed: int = 0, **options: Any
    ) -> Self:
        """The collator of a model.

        Args:
            model: whose tokenizer and greatest length are used.
            augment: default: sub-word repetition as released.
            seed: of the repetition.
            **options: further fields of ``SentenceTransformerDataCollator``, such as ``prompts``.
        """
        config = getattr(getattr(model[0], "model", None), "config", None)
        limit = getattr(config, "max_position_embeddings", None)
        if limit is not None and "roberta" in getattr(config, "model_type", ""):
            limit -= int(getattr(config, "pad_token_id", 0)) + 1  # positions are counted from behind the padding index
        return cls(
            preprocess_fn=model.preprocess,
            tokenizer=model.tokenizer,
            augment=augment or AugmentConfig(),
            seed=seed,
            positions=limit,
            **options,
        )

    @property
    def epoch(self) -> int:
        """Of the pass over the data; other epochs draw other repetitions."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch with both views.

        Raises:
            DataError: other than one column of text.
        """
        batch = super().__call__(features)
        if not batch:
            return batch
        names = [name.removesuffix(f"_{_IDS}") for name in batch if name.endswith(f"_{_IDS}")]
        if len(names) != 1:
            raise DataError(
                f"ESimCSE is trained on one column of sentences, the data has {', '.join(names) or 'none'}: choose one with "
                "dataset.select_columns"
            )
        column = names[0] + "_"
        texts = [row[names[0]] for row in features]
        rest = {name: value for name, value in batch.items() if not name.startswith(column)}
        anchor = {name.removeprefix(column): value for name, value in batch.items() if name.startswith(column)}
        positive = self._lengthened(anchor, texts)
        return {
            **{f"anchor_{name}": value for name, value in anchor.items()},
            **{f"positive_{name}": value for name, value in positive.items()},
            **rest,
        }

    def _lengthened(self, anchor: Mapping[str, Any], texts: list[str]) -> dict[str, Any]:
        assert self.tokenizer is not None
        ids_BL, mask_BL = anchor[_IDS], anchor[_MASK]
        tokens, lengths = ragged(ids_BL, mask_BL)
        longer, grown = lengthen(
            tokens,
            lengths,
            BatchRandom(self.seed, self.epoch, torch.from_numpy(Sentences.of(texts).hashes)),
            self.augment,
            word_starts=self._word_starts(tokens, texts, ids_BL.shape[1]) if self.augment.kind == "word" else None,
            mask_id=self.tokenizer.mask_token_id,
            stop_ids=self._stop_ids,
        )
        longer, grown = _cut(longer, grown, np.maximum(lengths, self.positions or grown.max(initial=1)))
        ids, mask = padded(longer, grown, self.tokenizer.pad_token_id)
        if self.tokenizer.padding_side == "left":
            place = (torch.arange(ids.shape[1]) + torch.from_numpy(grown)[:, None]) % ids.shape[1]
            ids, mask = ids.gather(1, place), mask.gather(1, place)
        made: dict[str, Any] = {_IDS: ids, _MASK: mask.to(mask_BL.dtype)}
        return {name: made[name] if name in made else _like(name, value, ids) for name, value in anchor.items()}

    def _word_starts(self, tokens: np.ndarray, texts: list[str], longest: int) -> np.ndarray:
        assert isinstance(self.tokenizer, PreTrainedTokenizerFast)
        found = tokenize(self.tokenizer, texts, longest, words=True)
        if not np.array_equal(found.ids, tokens) or found.word_starts is None:
            raise ConfigError(
                "augment.kind word cannot tell where words begin, since the model changes texts before it tokenises them: "
                "take kind subword"
            )
        return found.word_starts


def _cut(tokens: np.ndarray, lengths: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most ``most`` tokens, the last one kept."""
    if not (lengths > most).any():
        return tokens, lengths
    row_T = np.repeat(np.arange(len(lengths)), lengths)
    place_T = np.arange(len(tokens)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept_T = (place_T < most[row_T] - 1) | (place_T == lengths[row_T] - 1)
    return tokens[kept_T], np.minimum(lengths, most)


def _like(name: str, value: Any, ids: Tensor) -> Any:
    """Another input of the model for the second view, such as token types, which are 0 throughout."""
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.ndim != 2 or bool(value.any()):
        raise ConfigError(f"ESimCSECollator does not know how to lengthen '{name}', which the model asks for")
    return torch.zeros_like(ids, dtype=value.dtype)
