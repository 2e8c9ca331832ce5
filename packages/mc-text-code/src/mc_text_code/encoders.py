"""From a sentence to one vector: a transformer, and how the states of its tokens become one.

Legend: B sentences, L tokens of the longest, D width of an embedding, N texts.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit_rows

from mc_core.errors import ConfigError
from mc_core.hub import reaching, transformer_folder
from mc_core.length_groups import length_groups
from mc_core.modules import Shared, evaluating
from mc_core.tokens import padded, tokenize
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.tokenizers import load_tokenizer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

_DROPOUT = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout")  # by architecture
_UNKNOWN_LIMIT = 1 << 20


class SentenceEncoder(nn.Module):
    """An encoder of sentences: token ids (B, L) → embeddings (B, D), or texts → embeddings by :meth:`encode`.

    Embeddings are not normalised; compare them by their cosine. A head that training adds is no part of it.

    Args:
        config: which transformer, and how it is pooled.
        tokenizer: of the transformer. Default: that of ``config.name``; without a name there is none, and only token ids
            can be encoded. A tokenizer says how large the vocabulary of a new encoder is.
        transformer: to take instead of the one that ``config`` names.

    Attributes:
        config: as given; for a new encoder with the true size of the vocabulary.
        transformer: of Hugging Face, without pooler.
        num_features: D.
        pad_id: token that fills up shorter rows.
        positions: the most tokens it takes, special ones included.

    Raises:
        ConfigError: a transformer that is not here, or that cannot be pooled so.

    >>> from mc_text_code.tokenizers import train_tokenizer
    >>> tokenizer = train_tokenizer(["a red house", "a boat"], 64)
    >>> encoder = SentenceEncoder(EncoderConfig(hidden_size=16, heads=2, layers=1), tokenizer)
    >>> encoder.encode(["a boat", "a red house", "a boat"]).shape, encoder.positions
    ((3, 16), 512)
    """

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        transformer: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if tokenizer is None and config.name is not None:
            tokenizer = load_tokenizer(config.name, download=config.download)
        if tokenizer is not None and config.name is None:
            config = config.model_copy(update={"vocabulary": max(len(tokenizer), 64)})
        self.config = config
        self._shared = Shared(tokenizer)
        self.transformer = transformer if transformer is not None else build_transformer(config, tokenizer)
        described = self.architecture
        self.num_features = int(described.hidden_size)
        self.pad_id = int(described.pad_token_id or 0)
        self.positions = _positions(described, tokenizer)
        if config.max_length > self.positions:
            raise ConfigError(
                f"max_length {config.max_length} is more than the {self.positions} tokens that {config.name} takes"
            )

    @property
    def tokenizer(self) -> PreTrainedTokenizerFast | None:
        """Of the transformer, or None."""
        return self._shared.value

    @property
    def architecture(self) -> Any:
        """The transformer's own configuration, of Hugging Face."""
        return self.transformer.config

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Embeddings of token ids.

        On a CPU, rows of like length go through the transformer together, so that little is spent on padding; what a row
        becomes does not depend on it, but for dropout.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 for tokens and 0 for padding; default: all are tokens.

        Returns:
            (B, D), not normalised.
        """
        if attention_mask is None or input_ids.device.type != "cpu" or torch.compiler.is_compiling():
            return self._pooled(input_ids, attention_mask)
        lengths = attention_mask.sum(1)
        if not bool(attention_mask[:, 0].all()):  # padded on the left
            return self._pooled(input_ids, attention_mask)
        groups = length_groups(lengths.numpy())
        parts = []
        for rows, longest, exact in groups:
            at = slice(None) if len(groups) == 1 else torch.from_numpy(rows)
            mask = None if exact else attention_mask[at, :longest]
            parts.append(self._pooled(input_ids[at, :longest], mask))
        if len(parts) == 1:
            return parts[0]
        order = torch.from_numpy(np.argsort(np.concatenate([rows for rows, _, _ in groups])))
        return torch.cat(parts).index_select(0, order)

    def states(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """(B, L, D) states of the last layer, for each token."""
        return self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    @property
    def embeddings(self) -> nn.Embedding:
        """The transformer's embeddings of tokens."""
        found = cast(Any, self.transformer).get_input_embeddings()
        assert isinstance(found, nn.Embedding)
        return found

    def _pooled(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        pooling = self.config.pooling
        output = self.transformer(
            input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=pooling == "first-last"
        )
        states_BLD = output.last_hidden_state
        if pooling == "cls":
            return states_BLD[:, 0]
        if pooling == "first-last":
            states_BLD = (output.hidden_states[0] + output.hidden_states[-1]) / 2
        if attention_mask is None:
            return states_BLD.mean(1)
        mask_BL1 = attention_mask[:, :, None].to(states_BLD.dtype)
        return (states_BLD * mask_BL1).sum(1) / mask_BL1.sum(1).clamp_min(1)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], *, batch_size: int = 64, normalize: bool = False) -> np.ndarray:
        """Embeddings of texts, in evaluation mode on the encoder's device.

        Texts are encoded in the order of their length; those beyond :attr:`positions` tokens are cut.

        Args:
            texts: N of them.
            batch_size: texts encoded together.
            normalize: to unit length.

        Returns:
            (N, D) float32.

        Raises:
            ConfigError: an encoder without tokenizer.
        """
        if isinstance(texts, str):
            raise ConfigError("encode takes a list of texts, not one text: put it into brackets")
        if self.tokenizer is None:
            raise ConfigError(
                "this encoder has no tokenizer: give SentenceEncoder one, or load the encoder from its run"
            )
        tokens = tokenize(self.tokenizer, texts, self.positions)
        lengths = tokens.lengths
        order = np.argsort(-lengths, kind="stable")
        embeddings = np.empty((len(texts), self.num_features), dtype=np.float32)
        device = next(self.parameters()).device
        with evaluating(self):
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                places, length = tokens.places(rows)
                input_ids, mask = padded(tokens.ids[places], length, self.pad_id)
                output = self(input_ids.to(device), mask.to(device)).float()
                embeddings[rows] = (unit_rows(output, dim=1) if normalize else output).cpu().numpy()
        return embeddings


def build_transformer(config: EncoderConfig, tokenizer: PreTrainedTokenizerFast | None = None) -> nn.Module:
    """The transformer that ``config`` names with its weights, or a new BERT with random ones.

    Raises:
        ConfigError: it cannot be reached; the message says which folder to give.
    """
    from transformers import AutoConfig, AutoModel, BertConfig

    if config.name is None:
        described = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.intermediate_size or 4 * config.hidden_size,
            max_position_embeddings=config.positions,
            pad_token_id=0 if tokenizer is None else tokenizer.pad_token_id,
        )
        return new_transformer(_with_dropout(described, config.dropout))
    place = str(transformer_folder(config.name))
    with quiet_loading(), reaching(config.name, download=config.download):
        described = AutoConfig.from_pretrained(place, local_files_only=not config.download)
        _with_dropout(described, config.dropout)
        transformer, found = AutoModel.from_pretrained(
            place,
            config=described,
            local_files_only=not config.download,
            dtype=torch.float32,
            output_loading_info=True,
            **without_pooler(described),
        )
    missing = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    if missing:
        raise ConfigError(
            f"encoder '{config.name}': its weights lack {len(missing)} tensors, such as {missing[0]}; is the folder complete?"
        )
    return transformer


def new_transformer(described: PretrainedConfig) -> nn.Module:
    """A transformer with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(described, **without_pooler(described))


def without_pooler(described: PretrainedConfig) -> dict[str, bool]:
    """The argument that leaves out the pooler of BERT and its like, where there is one."""
    from transformers import MODEL_MAPPING

    known = type(described) in MODEL_MAPPING
    parameters = inspect.signature(MODEL_MAPPING[type(described)].__init__).parameters if known else {}
    return {"add_pooling_layer": False} if "add_pooling_layer" in parameters else {}


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bar for a second's work, no report of the pooler that is left out on purpose."""
    from transformers.utils import logging as told

    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _with_dropout(described: Any, dropout: float | None) -> Any:
    for name in _DROPOUT if dropout is not None else ():
        if hasattr(described, name):
            setattr(described, name, dropout)
    return described


def _positions(described: Any, tokenizer: PreTrainedTokenizerFast | None) -> int:
    """The most tokens: RoBERTa and its like count positions from behind the padding index."""
    limit = int(getattr(described, "max_position_embeddings", 0) or _UNKNOWN_LIMIT)
    if limit != _UNKNOWN_LIMIT and _counts_from_padding(described):
        limit -= int(described.pad_token_id) + 1
    return limit if tokenizer is None else min(limit, int(tokenizer.model_max_length))


def _counts_from_padding(described: Any) -> bool:
    return any(name in described.model_type for name in ("roberta", "camembert", "mpnet", "xmod", "longformer"))
