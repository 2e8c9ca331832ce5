"""ESimCSE: Wu, Gao, Zang, Han, Wang, Hu 2021, arXiv:2109.04380; and SimCSE (Gao, Yao, Chen 2021, arXiv:2104.08821), its base.

With f the encoder, g a head that exists in training only, f_ξ a slow copy of the encoder, x⁺ a sentence x with some of its
tokens repeated (:mod:`mc_text_code.augment`)::

    h = g(f(x)),  h⁺ = g(f(x⁺))                                 two dropout masks, one pass over 2B rows
    L = mean_i l_i(h, h⁺, Q)                                    equation 7, see :mod:`~mc_text_code.methods.esimcse.loss`
    k = sg g(f_ξ(x))                                            no dropout, the sentence as it is
    then, once per optimizer step:  ξ ← λ ξ + (1 − λ) θ  (equation 6),  Q ← the last M rows of Q and k

So no key is a negative of its own step. With ``queue_batches`` 0 and ``augment.kind`` none this is SimCSE.

Deviations. The copy starts from the encoder's weights; in the released code it is made before these are loaded and starts
random (``momentum_init: random``). It moves after the optimizer step, there before the keys are encoded: for a copy that
starts from the encoder's weights the keys are the same, since the first of its moves is from equal weights to equal weights.
Under accumulation the released code moves and enqueues per micro-batch, here per step, and the gradient is that of the whole
batch. Ours are keys of all processes in every queue, and equal sentences that are no negatives of each other.

Legend: B sentences of this process and micro-batch, M keys in the queue, D width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from mc_core.accumulation import CachedGradients, cache_gradients, first_pass, replay
from mc_core.distributed import gather_rows, gather_rows_with_grad, rank
from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.momentum import MomentumEncoder
from mc_core.momentum_schedule import horizon_advice
from mc_core.queue import FeatureQueue, PendingKeys
from mc_text_code.encoders import SentenceEncoder, new_transformer
from mc_text_code.methods.base import SentenceMethod
from mc_text_code.methods.esimcse.config import ESimCSEConfig
from mc_text_code.methods.esimcse.loss import esimcse_loss, unit

_PUBLISHED_BATCH = 64


class ESimCSE(SentenceMethod):
    """ESimCSE, and SimCSE with repetition and queue switched off.

    Args:
        config: see :class:`ESimCSEConfig`.
        encoder: to train instead of the one that ``config.encoder`` describes, such as one that has had its warm start.

    Batches need ``input_ids`` and ``attention_mask``, ``positive_input_ids`` and ``positive_attention_mask``, (B, L) each,
    and may have ``ids``, (B,): equal sentences are then no negatives of each other. The queue takes its size from the batch of
    the run: ``config.queue_batches`` times as many keys.
    """

    config: ESimCSEConfig

    def __init__(self, config: ESimCSEConfig, encoder: SentenceEncoder | None = None) -> None:
        super().__init__()
        encoder = SentenceEncoder(config.encoder) if encoder is None else encoder
        self.config = config.model_copy(update={"encoder": encoder.config})
        width = encoder.num_features
        head = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if config.head else nn.Identity()
        parts: OrderedDict[str, nn.Module] = OrderedDict(encoder=encoder, head=head)
        self.online = nn.Sequential(parts)
        self.momentum_encoder: MomentumEncoder | None = None
        self.queue: FeatureQueue | None = None
        self._pending = PendingKeys()
        if config.queue_batches:
            self.momentum_encoder = MomentumEncoder(encoder, config.momentum.at(0.0, 256), evaluation_mode=True)
            self.queue = FeatureQueue(config.queue_size(_PUBLISHED_BATCH), width, with_ids=config.exclude_same)
            if config.momentum_init == "random":
                self._start_copy_at_random()
        self.register_load_state_dict_pre_hook(_match_queue)

    def _start_copy_at_random(self) -> None:
        assert self.momentum_encoder is not None
        fresh = new_transformer(self.encoder.architecture)
        copied = self.momentum_encoder.module
        assert isinstance(copied, SentenceEncoder)
        copied.transformer.load_state_dict(fresh.state_dict())

    @property
    def head(self) -> nn.Module:
        """g, or the identity."""
        head = self.online.head
        assert isinstance(head, nn.Module)
        return head

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, D) unit rows of the sentences h and of their second views h⁺, by one pass over both."""
        ids, mask = stacked(batch, self.encoder.pad_id)
        anchor, positive = unit(self.head(self.encoder(ids, mask))).chunk(2)
        return anchor, positive

    @torch.no_grad()
    def keys(self, batch: Batch) -> Tensor | None:
        """(B, D) unit rows k of the slow copy, without dropout; None where there is no queue."""
        if self.momentum_encoder is None:
            return None
        features = self.momentum_encoder(batch["input_ids"], batch["attention_mask"])
        return unit(self.head(features))

    def loss(self, anchor: Tensor, positive: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """L of this process's rows among those of all, and figures to log."""
        known = ids if self.config.exclude_same else None
        queue = self.queue
        value = esimcse_loss(
            anchor,
            gather_rows_with_grad(positive),
            None if queue is None else queue.features,
            temperature=self.config.temperature,
            ids=known,
            positive_ids=None if known is None else gather_rows(known),
            queue_ids=None if queue is None else queue.ids,
            offset=rank() * len(anchor),
        )
        cosine = (anchor.detach() * positive.detach()).sum(1).mean()
        return value, {"positive_cosine": cosine, "queue": float(len(queue)) if queue is not None else 0.0}

    def prepare_step(self, micro_batches: Sequence[Batch], progress: Progress) -> CachedGradients | None:
        """With several micro-batches: the gradient of the whole batch's loss at its embeddings, each encoded once before."""
        if len(micro_batches) == 1:
            return None
        self._size_queue(progress.batch_size)
        embedded = []
        for batch in micro_batches:
            with first_pass(self), replay(progress, batch):
                embedded.append(self.embed(batch))
        ids = torch.cat([ids_of(batch) for batch in micro_batches])
        return cache_gradients(embedded, lambda anchor, positive: self.loss(anchor, positive, ids))

    def training_step(self, batch: Batch, progress: Progress, prepared: CachedGradients | None = None) -> StepOutput:
        """The loss of the batch, or this micro-batch's share of its gradient; its keys wait for :meth:`after_step`."""
        self._size_queue(progress.batch_size)
        if prepared is None:
            anchor, positive = self.embed(batch)
            value, metrics = self.loss(anchor, positive, ids_of(batch))
        else:
            with replay(progress, batch):
                anchor, positive = self.embed(batch)
            value, metrics = prepared.surrogate(int(batch["micro"]), (anchor, positive)), dict(prepared.metrics)
        key = self.keys(batch)
        if key is not None:
            self._pending.add(progress.step, key, ids_of(batch) if self.config.exclude_same else None)
        other = positive.detach() if key is None else key
        return StepOutput(value, metrics, {"query": anchor, "key": other})

    def after_step(self, progress: Progress) -> None:
        """Move the slow copy, then enqueue this step's keys."""
        if self.momentum_encoder is None or self.queue is None:
            return
        self.momentum_encoder.update(self.config.momentum.at(progress.fraction, progress.batch_size))
        if pending := self._pending.take():
            self.queue.enqueue(*pending)

    def _size_queue(self, batch_size: int) -> None:
        """Before the first keys: as many rows as the run's batch asks for."""
        if self.queue is not None and not len(self.queue):
            self.queue.resize(self.config.queue_size(batch_size))

    def check(self, micro_batch_size: int) -> None:
        """A single sentence has no negatives."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} sentence per process and micro-batch: there is nothing to contrast it with; "
                "take a larger fit.batch_size or a smaller fit.accumulation"
            )

    def advice(self, batch_size: int, data_size: int) -> list[str]:
        """Warn of a copy too fast for its queue, and of a queue as long as the data."""
        if not self.config.queue_batches:
            return []
        size = self.config.queue_size(batch_size)
        found = [horizon_advice(self.config.momentum.at(0.0, batch_size), size, batch_size)]
        if size >= data_size and not self.config.exclude_same:
            found.append(
                f"the queue ({size} keys) is as long as the data ({data_size} sentences), so a sentence is among its own "
                "negatives: set method.exclude_same, or a smaller method.queue_batches"
            )
        return [text for text in found if text]


def ids_of(batch: Batch) -> Tensor:
    """(B,) int64, equal for equal sentences where the data knows; else the positions in the data."""
    return batch["ids"] if "ids" in batch else batch["index"]


def stacked(batch: Batch, pad_id: int) -> tuple[Tensor, Tensor]:
    """(2B, L) ids and mask of the sentences, then of their second views, padded to the longest of both."""
    ids, positive = batch["input_ids"], batch["positive_input_ids"]
    mask, positive_mask = batch["attention_mask"], batch["positive_attention_mask"]
    width = max(ids.shape[1], positive.shape[1])

    def joined(a: Tensor, b: Tensor, fill: int) -> Tensor:
        return torch.cat([pad(part, (0, width - part.shape[1]), value=fill) for part in (a, b)])

    return joined(ids, positive, pad_id), joined(mask, positive_mask, 0)


def _match_queue(method: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A saved queue has the size of its run's batch: take it over before it is loaded."""
    ring = state.get(f"{prefix}queue.ring")
    assert isinstance(method, ESimCSE)
    if method.queue is not None and ring is not None and len(ring) != method.queue.size:
        method.queue.resize(len(ring))
