"""A language model that reads visual tokens before the words: any causal model of transformers, or a BERT-style one as decoder.

::

    [v_1 … v_N] w_1 … w_L          log p(answer) = Σ_t log p(w_t | v_1 … v_N, w_1 … w_{t−1}),   t over the answer's tokens

Visual tokens enter as input embeddings, so that the model needs no change. Rows are padded on the right; padding is never looked
at, never counted, and takes no position.

Legend: B samples, N visual tokens, h features of a token, L tokens of the longest text, A answers, T tokens of the longest of them,
V words.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_core.hub import reaching, transformer_folder
from mc_core.modules import evaluating
from mc_vision_language.encoders import quiet_loading
from mc_vision_language.fusion import weight_std
from mc_vision_language.language_config import LanguageConfig

_DROPOUT = (
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "resid_pdrop",
)
_ROWS = 256  # answers scored at once
_ENDLESS = 1 << 30


class _Read(NamedTuple):
    """What the model knows after visual tokens and text.

    Attributes:
        logits: (B, L + 1, V) of what follows the last visual token, and each word.
        cache: keys and values of all slots.
        mask: (B, N + L) int64, 1 for what is there.
    """

    logits: Tensor
    cache: Any
    mask: Tensor


class LanguageModel(nn.Module):
    """Words after visual tokens.

    Args:
        config: which model.
        load_pretrained: load the weights of ``config.name``; else only its architecture, where the configuration holds it.

    Attributes:
        config: as given, with the architecture of a published model.
        transformer: with its head for words.
        num_features: h, of an input embedding.
        words: V.
        context: most slots, visual tokens and words together.

    Raises:
        ConfigError: a model that is not here, that predicts no next word, or whose folder lacks weights.

    >>> model = LanguageModel(LanguageConfig(hidden_size=16, heads=2, layers=1, vocabulary=64)).eval()
    >>> seen, ids = torch.randn(2, 4, 16), torch.tensor([[2, 9, 3, 7, 3], [2, 3, 8, 3, 0]])
    >>> mask, targets = (ids > 0).long(), torch.tensor([[0, 0, 0, 1, 1], [0, 0, 1, 1, 0]])
    >>> model.loss(seen, ids, mask, targets).shape
    torch.Size([])
    >>> model.generate(seen, ids[:, :2], mask[:, :2], 3).shape[0]
    2
    """

    def __init__(self, config: LanguageConfig, *, load_pretrained: bool = True) -> None:
        super().__init__()
        self.transformer, described = _transformer(config, load_pretrained)
        if config.name is not None:
            config = config.model_copy(update={"architecture": described.to_dict()})
        self.config = config
        table: Any = self.transformer.get_input_embeddings()
        self.num_features, self.words = int(table.embedding_dim), int(table.num_embeddings)
        # RoBERTa's family counts positions from after its padding
        inner = getattr(self.transformer.base_model, "embeddings", None)
        self._first = int(getattr(inner, "padding_idx", -1)) + 1
        self.context = int(getattr(described, "max_position_embeddings", None) or _ENDLESS) - self._first
        taken = inspect.signature(self.transformer.forward).parameters
        self._cache_name = "cache" if "cache" in taken else "past_key_values"  # renamed in transformers 5.2x
        self._takes = frozenset(taken)

    def embed(self, ids: Tensor) -> Tensor:
        """(…, h) input embeddings of ids (…)."""
        return self.transformer.get_input_embeddings()(ids)

    def logits(self, prefix: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L, V) float32 logits of each word, given the visual tokens and the words before it.

        Args:
            prefix: (B, N, h) visual tokens, N at least 1; gradients flow into them.
            ids: (B, L) int64, padded on the right.
            mask: (B, L), 1 for words.

        Raises:
            DataError: another width, no visual token, or more than the context holds.
        """
        return self._read(prefix, ids, mask, keep=False).logits[:, :-1]

    def loss(self, prefix: Tensor, ids: Tensor, mask: Tensor, target_mask: Tensor) -> Tensor:
        """Mean of −log p over the tokens to predict, of all rows together; 0 where there are none.

        Args:
            prefix, ids, mask: see :meth:`logits`.
            target_mask: (B, L), 1 for the tokens that are to be predicted, as those of the answer and its end; padding among
                them is not counted.
        """
        wanted = target_mask.bool() & mask.bool()
        found = F.cross_entropy(self.logits(prefix, ids, mask)[wanted], ids[wanted], reduction="sum")
        return found / wanted.sum().clamp(min=1)

    @torch.no_grad()
    def generate(
        self, prefix: Tensor, prompt_ids: Tensor, prompt_mask: Tensor, max_new_tokens: int, *, cached: bool = True
    ) -> Tensor:
        """(B, ≤ max_new_tokens) int64 ids, each the most probable; after the end token all is the end token.

        A row that has filled the context ends there. What a row gets does not depend on the others.

        Args:
            prefix: (B, N, h) visual tokens.
            prompt_ids: (B, L) int64, padded on the right; a row may be empty.
            prompt_mask: (B, L), 1 for words.
            max_new_tokens: at least 1.
            cached: keep keys and values; else everything is read again for each word.

        Raises:
            DataError: a prompt that leaves no room for an answer.
        """
        end, count = self.config.end_id, prefix.shape[1]
        lengths = prompt_mask.sum(1)
        self._need_room(count, lengths, 1)
        with evaluating(self):
            read = self._read(prefix, prompt_ids, prompt_mask, keep=cached)
            logits, cache, mask = _row(read.logits, lengths), read.cache, read.mask
            embedded = torch.cat([prefix, self.embed(prompt_ids).to(prefix.dtype)], 1)
            done = torch.zeros_like(lengths, dtype=torch.bool)
            made: list[Tensor] = []
            while True:
                word = logits.argmax(1).masked_fill(done, end)
                made.append(word)
                place = count + lengths + len(made) - 1  # of this word
                done = done | (word == end) | (place + 1 >= self.context)
                if len(made) >= max_new_tokens or bool(done.all()):
                    return torch.stack(made, 1)
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                new = self.embed(word)[:, None].to(prefix.dtype)
                if cached:
                    logits, cache = self._run(new, mask, place[:, None], keep=1, cache=cache, use_cache=True)
                else:
                    embedded = torch.cat([embedded, new], 1)
                    logits, _ = self._run(embedded, mask, _positions(mask), keep=1)
                logits = logits[:, -1]

    @torch.no_grad()
    def score_answers(
        self, prefix: Tensor, question_ids: Tensor, question_mask: Tensor, answer_ids: Tensor, answer_mask: Tensor
    ) -> Tensor:
        """(B, A) float32: log p of every answer to every question, the sum over its tokens.

        Visual tokens and question are read once for all answers.

        Args:
            prefix: (B, N, h) visual tokens.
            question_ids: (B, L) int64, padded on the right, with what stands before an answer.
            question_mask: (B, L), 1 for words.
            answer_ids: (A, T) int64, padded on the right, each with its end token: without it, the beginning of a longer answer
                would never lose to it.
            answer_mask: (A, T), 1 for words.

        Raises:
            DataError: no answers, an empty one, or more than the context holds.
        """
        if not len(answer_ids) or not bool(answer_mask[:, 0].all()):
            raise DataError(f"{len(answer_ids)} answers to rank, and each must have a token")
        lengths, most = question_mask.sum(1), answer_ids.shape[1]
        self._need_room(prefix.shape[1], lengths, most - 1)
        with evaluating(self):
            read = self._read(prefix, question_ids, question_mask, keep=most > 1)
            first = _row(read.logits, lengths).log_softmax(1)[:, answer_ids[:, 0]]
            if most == 1:
                return first
            pace = max(1, _ROWS // len(prefix))
            chunks = [slice(at, at + pace) for at in range(0, len(answer_ids), pace)]
            later = [
                self._later(read, prefix.shape[1] + lengths, answer_ids[part], answer_mask[part]) for part in chunks
            ]
            return first + torch.cat(later, 1)

    def _later(self, read: _Read, start: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, A) log p of all tokens but the first of some answers."""
        questions, answers = len(start), len(ids)
        cache = copy.deepcopy(read.cache)  # reading appends to it
        cache.batch_repeat_interleave(answers)
        each_ids, each_mask = ids.repeat(questions, 1), mask.repeat(questions, 1)
        place = start.repeat_interleave(answers)[:, None] + torch.arange(ids.shape[1] - 1, device=ids.device)
        seen = torch.cat([read.mask.repeat_interleave(answers, 0), each_mask[:, :-1].to(read.mask.dtype)], 1)
        embedded = self.embed(each_ids[:, :-1])
        logits, _ = self._run(embedded, seen, place, keep=ids.shape[1] - 1, cache=cache, use_cache=True)
        found = logits.log_softmax(2).gather(2, each_ids[:, 1:, None])[..., 0]
        return found.masked_fill(~each_mask[:, 1:].bool(), 0.0).sum(1).view(questions, answers)

    def _read(self, prefix: Tensor, ids: Tensor, mask: Tensor, *, keep: bool) -> _Read:
        if prefix.ndim != 3 or prefix.shape[1] < 1 or prefix.shape[2] != self.num_features:
            raise DataError(
                f"visual tokens of shape {tuple(prefix.shape)}; this language model takes (batch, tokens, {self.num_features}), "
                "at least one token"
            )
        count = prefix.shape[1]
        if count + ids.shape[1] > self.context:
            self._need_room(count, mask.sum(1), 0)
            raise DataError(
                f"texts padded to {ids.shape[1]} tokens and {count} visual tokens are more than the context of {self.context}: "
                "cut columns that are all padding"
            )
        seen = torch.cat([mask.new_ones(len(mask), count), mask], 1).long()
        embedded = torch.cat([prefix, self.embed(ids).to(prefix.dtype)], 1)
        logits, cache = self._run(embedded, seen, _positions(seen), keep=ids.shape[1] + 1, use_cache=keep)
        return _Read(logits, cache, seen)

    def _run(
        self, embedded: Tensor, mask: Tensor, places: Tensor, *, keep: int, cache: Any = None, use_cache: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits of the last ``keep`` slots, and the cache."""
        given: dict[str, Any] = {"inputs_embeds": embedded, "attention_mask": mask, "use_cache": use_cache}
        if "position_ids" in self._takes:
            given["position_ids"] = (
                places.clamp(max=self.context - 1) + self._first
            )  # rows that have ended go on for nothing
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = keep
        if cache is not None:
            given[self._cache_name] = cache
        found = self.transformer(**given, return_dict=True)
        logits = found.logits[:, -keep:]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, getattr(found, self._cache_name) if use_cache else None

    def _need_room(self, count: int, lengths: Tensor, more: int) -> None:
        longest = int(lengths.max()) if len(lengths) else 0
        if count + longest + more > self.context:
            row = int(lengths.argmax())
            raise DataError(
                f"text {row} of the batch has {longest} tokens, with {count} visual tokens and {more} of an answer more than the "
                f"context of {self.context}: shorten it, or take fewer visual tokens or a model with more positions"
            )


def _row(logits: Tensor, lengths: Tensor) -> Tensor:
    """(B, V) of what follows the last word of each row, of (B, L + 1, V)."""
    return logits[torch.arange(len(logits), device=logits.device), lengths]


def _positions(mask: Tensor) -> Tensor:
    """(B, S) the position of each slot: how many were there before it."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def _transformer(config: LanguageConfig, load_pretrained: bool) -> tuple[Any, Any]:
    """The transformer with its head, and its configuration."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.name is None:
        described = _small(config)
        return AutoModelForCausalLM.from_config(
            _prepared(described, config), dtype=torch.get_default_dtype()
        ), described
    if config.architecture is not None and not load_pretrained:
        described = _prepared(AutoConfig.for_model(**config.architecture), config)
        return AutoModelForCausalLM.from_config(described, dtype=torch.float32), described
    place = str(transformer_folder(config.name))
    with quiet_loading(), reaching(config.name, download=config.download, option="--method.language.download"):
        described = AutoConfig.from_pretrained(place, local_files_only=not config.download)
        _need_causal(config.name, described)
        model, found = AutoModelForCausalLM.from_pretrained(
            place,
            config=_prepared(described, config),
            local_files_only=not config.download,
            dtype=torch.float32,
            output_loading_info=True,
        )
    missing = sorted(found["missing_keys"])
    if missing:
        raise ConfigError(
            f"language model '{config.name}': its weights lack {len(missing)} tensors, such as {missing[0]}; is the folder "
            "complete, and does it hold a model that predicts words?"
        )
    return model, described


def _need_causal(name: str, described: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if described.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"language model '{name}' is a {described.model_type}, which predicts no next word: take a causal model (Llama, Qwen, "
            "GPT-2 …) or a BERT-style one"
        )


def _prepared(described: Any, config: LanguageConfig) -> Any:
    """From left to right, also where the model was made to look both ways, and with the dropout asked for."""
    if hasattr(described, "is_decoder"):
        described.is_decoder = True
    for name in _DROPOUT if config.dropout is not None else ():
        if hasattr(described, name):
            setattr(described, name, config.dropout)
    return described


def _small(config: LanguageConfig) -> Any:
    """Of our own sizes."""
    from transformers import BertConfig, GPT2Config, LlamaConfig

    ids = {"pad_token_id": config.pad_id, "bos_token_id": config.start_id, "eos_token_id": config.end_id}
    std = weight_std(config.hidden_size)
    if config.family == "gpt2":
        return GPT2Config(
            vocab_size=config.vocabulary,
            n_embd=config.hidden_size,
            n_layer=config.layers,
            n_head=config.heads,
            n_positions=config.positions,
            initializer_range=std,
            **ids,
        )
    shared: dict[str, Any] = {
        "vocab_size": config.vocabulary,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "max_position_embeddings": config.positions,
        "initializer_range": std,
        **ids,
    }
    if config.family == "bert":
        return BertConfig(intermediate_size=4 * config.hidden_size, **shared)
    return LlamaConfig(intermediate_size=2 * config.hidden_size, **shared)
