"""CoCoSoDa: Shi, Wang, Gu, Du, Zhang, Han, Zhang, Sun 2023 (ICSE), arXiv:2204.03293.

With f the one encoder of questions and code, f_ξ its slow copy, x* a text x with some tokens masked or replaced by their class
(:mod:`mc_text_code.soft_augment`), all rows divided by their length::

    c = f(code),  q = f(question)
    c* = sg f_ξ(code*),  q* = sg f_ξ(question*)
    L = weighted mean of six InfoNCE terms over the batch and the queues N_c, N_q      :mod:`~mc_text_code.methods.cocosoda.loss`
    then, once per optimizer step:  ξ ← m ξ + (1 − m) θ,  N_c ← c*,  N_q ← q*

So no key is a negative of its own step. Row j of both queues belongs to the same pair, so that their ids together say which keys
are the anchor's own code or question again: these are no negatives (ours).

Deviations. The released code keeps two slow copies, which are always equal; here there is one. It moves after the optimizer step,
there before the keys are encoded, which is the same for a copy that starts from the encoder's weights. Keys are made without
dropout (ours). ``parity: released`` has four queues, those of blocks 1 and 3 holding the trained encoder's own outputs, filled with
random unit rows at the start; cosines are multiplied by 20 and divided by τ; equal pairs are not left out. Fine-tuning is the
recipe ``cocosoda-finetune``: block 3 alone, without keys and queues.

Legend: B pairs of this process and micro-batch, G of all processes, L tokens of the longest, K keys in a queue, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.accumulation import CachedGradients, cache_gradients, first_pass, replay
from mc_core.distributed import gather_rows, gather_rows_with_grad, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.momentum_schedule import horizon_advice
from mc_core.queue import FeatureQueue, PendingKeys
from mc_core.random import BatchRandom, derive_seed
from mc_text_code.data.code_tokens import language_of_hash
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.methods.base import SentenceMethod
from mc_text_code.methods.cocosoda.config import CoCoSoDaConfig
from mc_text_code.methods.cocosoda.loss import cocosoda_loss, same_thing
from mc_text_code.methods.esimcse.loss import unit
from mc_text_code.saving import save_sentence_transformer
from mc_text_code.soft_augment import draw_kinds, hide_names, soft_augment
from mc_text_code.type_tokens import type_token_ids

CITATION = """@inproceedings{shi2023cocosoda,
  title = {{CoCoSoDa}: Effective Contrastive Learning for Code Search},
  author = {Shi, Ensheng and Wang, Yanlin and Gu, Wenchao and Du, Lun and Zhang, Hongyu and Han, Shi and
             Zhang, Dongmei and Sun, Hongbin},
  booktitle = {International Conference on Software Engineering},
  year = {2023}
}"""
_RELEASED_QUEUE_SEED = 3047
_QUERY_STREAM = 1


class CoCoSoDa(SentenceMethod):
    """CoCoSoDa, its fine-tuning, and plain in-batch contrast with its parts switched off.

    Args:
        config: see :class:`CoCoSoDaConfig`.
        encoder: to train instead of the one that ``config.encoder`` describes; its tokenizer knows the type tokens
            (:mod:`mc_text_code.type_tokens`).

    Batches are those of :class:`mc_text_code.data.code_data.CodeData`.

    Raises:
        ConfigError: soft augmentation without a mask token or type tokens.
    """

    config: CoCoSoDaConfig

    def __init__(self, config: CoCoSoDaConfig, encoder: SentenceEncoder | None = None) -> None:
        super().__init__()
        encoder = SentenceEncoder(config.encoder) if encoder is None else encoder
        self.config = config.model_copy(update={"encoder": encoder.config})
        parts: OrderedDict[str, nn.Module] = OrderedDict(encoder=encoder)
        self.online = nn.Sequential(parts)
        self.momentum_encoder: MomentumEncoder | None = None
        self.queues = nn.ModuleDict()
        self._pending: dict[str, PendingKeys] = {}
        if config.momentum_keys:
            self.momentum_encoder = MomentumEncoder(encoder, config.momentum.at(0.0, 256), evaluation_mode=True)
            self.register_buffer("replacements", self._replacements(), persistent=False)
        if config.queue_size:
            names = ("code", "query") if config.parity == "ours" else ("code", "query", "online_code", "online_query")
            random = (config.queue_start or ("random" if config.parity == "released" else "empty")) == "random"
            for place, name in enumerate(names):
                queue = FeatureQueue(config.queue_size, encoder.num_features, with_ids=True)
                if random:
                    queue.enqueue(*_random_rows(place, config.queue_size, encoder.num_features))
                self.queues[name] = queue
                self._pending[name] = PendingKeys()

    def _replacements(self) -> Tensor:
        """(13,) ids of the mask token and of the type tokens; zeros where nothing is augmented."""
        options, tokenizer = self.config.augment, self.encoder.tokenizer
        if options.token_ids is not None:
            return torch.tensor(options.token_ids)
        if not (options.kinds or options.query or options.hide_names):
            return torch.zeros(13, dtype=torch.int64)
        if tokenizer is None:
            raise ConfigError("soft augmentation needs a tokenizer, or the ids of its tokens in augment.token_ids")
        return type_token_ids(tokenizer)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) unit rows c of the code and q of the questions."""
        code = self.encoder(batch["code_input_ids"], batch["code_attention_mask"])
        query = self.encoder(batch["query_input_ids"], batch["query_attention_mask"])
        return unit(code), unit(query)

    @torch.no_grad()
    def augmented(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor]:
        """(B, L) token ids of code* and of question*, another pair of views in each step."""
        options, ids = self.config.augment, self.get_buffer("replacements")
        code, query = batch["code_input_ids"], batch["query_input_ids"]
        random = BatchRandom(progress.run_seed, int(batch.get("epoch", 0)), batch["index"])
        if options.kinds:
            step = progress.step if options.per == "step" else None
            kinds = draw_kinds(options.kinds, random, step=step)
            code = soft_augment(code, batch["code_type_ids"], kinds, random, ids, rate=options.rate)
        if options.hide_names:
            code = hide_names(code, batch["code_own_name"], random, ids, options.hide_names)
        if options.query:
            masking = torch.zeros_like(batch["index"])
            types = batch["query_type_ids"]
            query = soft_augment(query, types, masking, random, ids, rate=options.rate, stream=_QUERY_STREAM)
        return code, query

    @torch.no_grad()
    def keys(self, batch: Batch, progress: Progress) -> tuple[Tensor, Tensor] | None:
        """(B, D) unit rows c* and q* of the slow copy, without dropout; None where there is none."""
        if self.momentum_encoder is None:
            return None
        code, query = self.augmented(batch, progress)
        return (
            unit(self.momentum_encoder(code, batch["code_attention_mask"])),
            unit(self.momentum_encoder(query, batch["query_attention_mask"])),
        )

    def loss(
        self, code: Tensor, query: Tensor, keys: tuple[Tensor, Tensor] | None, code_ids: Tensor, query_ids: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """L of this process's rows among those of all, and figures to log."""
        config = self.config
        same, queue_same = self._left_out(code_ids, query_ids)
        value = cocosoda_loss(
            code,
            query,
            None if keys is None else (gather_rows(keys[0]), gather_rows(keys[1])),
            self._rows("code", "query"),
            temperature=config.true_temperature,
            weights=config.block_weights,
            online=(gather_rows_with_grad(code), gather_rows_with_grad(query)),
            online_queues=self._rows("online_code", "online_query"),
            same=same,
            queue_same=queue_same,
            offset=rank() * len(code),
        )
        cosine = (code.detach() * query.detach()).sum(1).mean()
        return value, {"positive_cosine": cosine, "queue": float(len(self._queue("code"))) if self.queues else 0.0}

    def _left_out(self, code_ids: Tensor, query_ids: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What is no negative, in the batch and in the queues."""
        config = self.config
        if config.parity == "released":
            return None, None
        same = queue_same = None
        if config.exclude_same:
            same = same_thing(code_ids, query_ids, gather_rows(code_ids), gather_rows(query_ids))
        if not self.queues:
            return same, None
        held_code, held_query = self._queue("code").ids, self._queue("query").ids
        assert held_code is not None
        assert held_query is not None
        foreign = None
        if config.same_language:
            foreign = language_of_hash(code_ids)[:, None] != language_of_hash(held_code)
        if config.exclude_same:
            queue_same = same_thing(code_ids, query_ids, held_code, held_query, by_language=foreign)
        else:
            queue_same = foreign
        return same, queue_same

    def _queue(self, name: str) -> FeatureQueue:
        queue = self.queues[name]
        assert isinstance(queue, FeatureQueue)
        return queue

    def _rows(self, code: str, query: str) -> tuple[Tensor, Tensor] | None:
        return (self._queue(code).features, self._queue(query).features) if code in self.queues else None

    def prepare_step(
        self, micro_batches: Sequence[Batch], progress: Progress
    ) -> tuple[CachedGradients, list[tuple[Tensor, Tensor] | None]] | None:
        """With several micro-batches: the gradient of the whole batch's loss at its embeddings, and all keys."""
        if len(micro_batches) == 1:
            return None
        embedded, keys = [], []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                embedded.append(self.embed(batch))
            keys.append(self.keys(batch, progress))
        code_ids, query_ids = (
            torch.cat([batch[name] for batch in micro_batches]) for name in ("code_ids", "query_ids")
        )
        made = [pair for pair in keys if pair is not None]
        joined = (torch.cat([c for c, _ in made]), torch.cat([q for _, q in made])) if made else None
        return cache_gradients(embedded, lambda c, q: self.loss(c, q, joined, code_ids, query_ids)), keys

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """The loss of the batch, or this micro-batch's share of its gradient; its keys wait for :meth:`after_step`."""
        if prepared is None:
            code, query = self.embed(batch)
            keys = self.keys(batch, progress)
            value, metrics = self.loss(code, query, keys, batch["code_ids"], batch["query_ids"])
        else:
            cached, all_keys = prepared
            with replay(progress, batch):
                code, query = self.embed(batch)
            keys = all_keys[int(batch["micro"])]
            value, metrics = cached.surrogate(int(batch["micro"]), (code, query)), dict(cached.metrics)
        if keys is not None and self.queues:
            rows = {"code": keys[0], "query": keys[1], "online_code": code, "online_query": query}
            for name, pending in self._pending.items():
                pending.add(progress.step, rows[name], batch["code_ids" if name.endswith("code") else "query_ids"])
        return StepOutput(value, metrics, {"query": query, "key": code.detach() if keys is None else keys[0]})

    def after_step(self, progress: Progress) -> None:
        """Move the slow copy, then enqueue this step's keys."""
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.config.momentum.at(progress.fraction, progress.batch_size))
        for name, pending in self._pending.items():
            if taken := pending.take():
                self._queue(name).enqueue(*taken)

    def encode(self, batch: Batch) -> Tensor:
        """(B, D) embeddings of ``code_input_ids``, or of ``input_ids`` where there are none, not normalised."""
        kind = "code_" if "code_input_ids" in batch else ""
        return self.encoder(batch[f"{kind}input_ids"], batch[f"{kind}attention_mask"])

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """The encoder as a folder that ``SentenceTransformer`` loads; nothing where it has no tokenizer."""
        if self.encoder.tokenizer is not None:
            told = {"title": "Encoder of questions and code", **card}
            save_sentence_transformer(self.encoder, folder, card=told, citation=CITATION)

    def check(self, micro_batch_size: int) -> None:
        """A single pair without queue has no negatives."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch: there is nothing to contrast it with; "
                "take a larger fit.batch_size or a smaller fit.accumulation"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a copy too fast for its queue, and of queues as long as the data."""
        size = self.config.queue_size
        if not size:
            return []
        found = [horizon_advice(self.config.momentum.at(0.0, batch_size), size, batch_size)]
        if size >= data_size and not self.config.exclude_same:
            found.append(
                f"the queues ({size} keys) are as long as the data ({data_size} pairs), so a function is among its own "
                "negatives: set method.exclude_same, or a smaller method.queue_size"
            )
        return [text for text in found if text]


def _random_rows(place: int, size: int, width: int) -> tuple[Tensor, Tensor]:
    """Unit rows drawn at random, as queues begin in the released code, under ids that nothing else has."""
    generator = torch.Generator().manual_seed(derive_seed(_RELEASED_QUEUE_SEED, place))
    ids = torch.full((size,), -1, dtype=torch.int64)
    return unit(torch.randn(size, width, generator=generator)), ids
