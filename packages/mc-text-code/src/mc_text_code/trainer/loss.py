"""ESimCSE as a loss of sentence-transformers: the model stays as it is; head, slow copy and queue live in the loss.

What is written at :mod:`mc_text_code.methods.esimcse.model` holds here too, but for two things that the trainer decides. With
gradient accumulation each micro-batch is a batch of its own, and its keys enter the queue after it (the slow copy still moves
once per optimizer step). And the trainer clips the gradients of the model, not those of the head.

Legend: B sentences of this process, L tokens, D width, M keys in the queue.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from torch import Tensor, nn

from mc_core.distributed import gather_rows, gather_rows_with_grad, is_distributed, rank
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue
from mc_core.random import derive_seed
from mc_text_code.encoders import new_transformer
from mc_text_code.methods.esimcse.loss import esimcse_loss, unit
from mc_text_code.saving import CITATION

_ONLINE = "model."  # in the state dict: what the trainer saves by itself
_MARK = 64  # values of each weight by which a model is recognised


class ESimCSELoss(nn.Module):
    """ESimCSE for ``SentenceTransformerTrainer``; give the trainer an ``ESimCSECollator`` and an ``ESimCSECallback`` too.

    Takes two columns: sentences, and their second views, which :class:`~mc_text_code.trainer.collator.ESimCSECollator` makes
    from one column of sentences. Both go through the model in one pass. Keys are of the first column. In evaluation the loss is
    computed against the queue as it is, and nothing moves.

    The saved model is encoder and pooling alone. What lives here goes into checkpoints through
    :class:`~mc_text_code.trainer.callback.ESimCSECallback`.

    Args:
        model: to train.
        temperature: τ > 0.
        queue_size: M keys, about 2.5 times the batch; 0: no queue and no slow copy, as in SimCSE.
        momentum: how slowly the copy follows, in [0, 1].
        head: a linear layer with tanh behind the model, in training only.
        momentum_init: where the copy starts: at the model's weights, or at random ones as in the released code.
        exclude_same: the same token ids elsewhere in the batch or the queue are no negative (ours).
        manual: you call :meth:`after_step` after each optimizer step yourself, in a loop of your own without the callback.

    Raises:
        ConfigError: a value out of range, or a model that is no ``SentenceTransformer``.

    Source: Wu et al. 2021 (ESimCSE, arXiv:2109.04380); with ``queue_size`` 0 and two equal columns Gao et al. 2021 (SimCSE,
    arXiv:2104.08821).

    Relations: without head and queue the loss is ``MultipleNegativesRankingLoss(scale=1 / temperature)``.
    """

    momentum_model: MomentumEncoder | None
    queue: FeatureQueue | None

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float = 0.05,
        queue_size: int = 160,
        momentum: float = 0.995,
        head: bool = True,
        momentum_init: Literal["checkpoint", "random"] = "checkpoint",
        exclude_same: bool = True,
        manual: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, SentenceTransformer):
            raise ConfigError(f"ESimCSELoss trains a SentenceTransformer, not a {type(model).__name__}")
        if not temperature > 0:
            raise ConfigError(f"temperature is {temperature}; it must be above 0, such as 0.05")
        if queue_size < 0:
            raise ConfigError(f"queue_size is {queue_size}; give 0 for no queue, or about 2.5 times the batch")
        if momentum_init not in ("checkpoint", "random"):
            raise ConfigError(f"momentum_init is {momentum_init!r}; choose checkpoint or random")
        width = int(model.get_embedding_dimension() or 0)
        if not width:
            raise ConfigError("the model does not say how wide its embeddings are: has it a pooling module?")
        self.model = model
        self.temperature, self.momentum, self.momentum_init = temperature, momentum, momentum_init
        self.exclude_same, self.manual = exclude_same, manual
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh()) if head else nn.Identity()
        self.momentum_model = None  # not called `model`: the trainer replaces such parts by the wrapped online model
        self.queue = FeatureQueue(queue_size, width, with_ids=exclude_same) if queue_size else None
        self._online = [model]  # in a list, so that it stays the model itself when the trainer wraps it
        self._attended = manual
        if queue_size:
            self._copy()

    @property
    def online(self) -> SentenceTransformer:
        """The model itself, whatever the trainer has wrapped it in."""
        return self._online[0]

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch; in training its keys then enter the queue.

        Args:
            sentence_features: of both columns, as ``model.preprocess`` returns them.
            labels: not used.

        Returns:
            A scalar.

        Raises:
            DataError: other than two columns.
            ConfigError: in training with a queue, when nothing would move the slow copy.
        """
        columns = [dict(features) for features in sentence_features]  # models write into them
        if len(columns) != 2:
            raise DataError(
                f"ESimCSELoss takes two columns, a sentence and its second view, not {len(columns)}: give the trainer "
                "data_collator=ESimCSECollator.of(model), which makes the second from a data set with one column of text"
            )
        training = self.online.training  # a wrapper in `self.model` keeps its own flag
        if training and self.queue is not None and not self._attended:
            raise ConfigError(
                "nothing would move the slow copy: give the trainer callbacks=[ESimCSECallback(loss)], or call "
                "loss.after_step() after each optimizer step and say so with ESimCSELoss(manual=True)"
            )
        sentences = dict(columns[0])
        ids = self._ids(sentences)
        h, positive = (self._projected(rows) for rows in embed_columns(self.model, columns, separate_first=False))
        value = self._loss(h, positive, ids, across=training)
        if training and self.queue is not None:
            self.queue.enqueue(self._keys(sentences), ids)
        return value

    def _loss(self, anchor: Tensor, positive: Tensor, ids: Tensor | None, *, across: bool) -> Tensor:
        # copies, since the queue's rows change before the backward pass
        queue = None if self.queue is None else self.queue.features.clone()
        queue_ids = None if self.queue is None or self.queue.ids is None else self.queue.ids.clone()
        across = across and is_distributed()  # in evaluation the last batches of processes may differ in size
        return esimcse_loss(
            anchor,
            gather_rows_with_grad(positive) if across else positive,
            queue,
            temperature=self.temperature,
            ids=ids,
            positive_ids=gather_rows(ids) if across and ids is not None else ids,
            queue_ids=queue_ids,
            offset=rank() * len(anchor) if across else 0,
        )

    @torch.no_grad()
    def _keys(self, sentences: Mapping[str, Any]) -> Tensor:
        """(B, D) unit rows of the slow copy, without dropout; through the head as it is."""
        assert self.momentum_model is not None
        return self._projected(self.momentum_model(dict(sentences))["sentence_embedding"])

    def _projected(self, embedding: Tensor) -> Tensor:
        for weight in self.head.parameters():
            embedding = embedding.to(weight.dtype)  # of a model that is loaded in half precision
            break
        return unit(self.head(embedding))

    def _ids(self, features: Mapping[str, Any]) -> Tensor | None:
        if not self.exclude_same:
            return None
        ids = features.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            raise ConfigError("this model has no token ids by which equal sentences are told: set exclude_same=False")
        mask = features.get("attention_mask")
        return token_hashes(ids, mask if isinstance(mask, Tensor) else torch.ones_like(ids))

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the slow copy; once after each optimizer step. The callback does it."""
        if self.momentum_model is not None:
            self.momentum_model.update()

    def begin(self, model: nn.Module | None = None) -> None:
        """Called when training begins: take over the weights that the model has by now, or another model.

        Args:
            model: the trainer's, where it has made a new one.
        """
        self._attended = True
        if isinstance(model, SentenceTransformer) and model is not self.online:
            self._online = [model]
            if self.momentum_model is not None:
                self._copy()
                self._filled().clear()
        elif self.momentum_model is not None and self.momentum_init == "checkpoint" and not len(self._filled()):
            self.momentum_model.synchronise()
        for tensor in self.own_state().values() if is_distributed() else ():
            torch.distributed.broadcast(
                tensor, src=0
            )  # heads are random, and the trainer shares the model's weights alone

    def own_state(self) -> dict[str, Tensor]:
        """Tensors of head, slow copy and queue by name; the model's are not among them."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_ONLINE)}

    def checkpoint(self) -> dict[str, Any]:
        """What a checkpoint of the trainer lacks, for :func:`mc_core.files.save_state`."""
        return {"config": self.get_config_dict(), "model": model_mark(self.online), "state": self.own_state()}

    def restore(self, saved: Mapping[str, Any], source: str) -> None:
        """Go on from what :meth:`checkpoint` returned; the model has its weights already.

        Args:
            saved: as read back.
            source: where it came from, for messages.

        Raises:
            CheckpointError: it was saved with other settings, or beside another model; nothing is changed then.
        """
        own = self.get_config_dict()
        different = [name for name, value in own.items() if saved["config"].get(name) != value]
        if different:
            listed = "; ".join(f"{name}: {saved['config'].get(name)!r} then, {own[name]!r} now" for name in different)
            raise CheckpointError(f"{source} was saved by an ESimCSELoss with other settings ({listed})")
        if saved["model"] != model_mark(self.online):
            raise CheckpointError(
                f"{source} was saved beside another model than the one that training goes on with: name the right folder "
                "with ESimCSECallback(loss, resume_from=...)"
            )
        self.load_state_dict({**self.state_dict(), **saved["state"]})

    def get_config_dict(self) -> dict[str, Any]:
        """Settings, for the model card and for checkpoints."""
        return {
            "temperature": self.temperature,
            "queue_size": 0 if self.queue is None else self.queue.size,
            "momentum": self.momentum,
            "head": not isinstance(self.head, nn.Identity),
            "momentum_init": self.momentum_init,
            "exclude_same": self.exclude_same,
        }

    @property
    def citation(self) -> str:
        """For the model card."""
        return CITATION

    def _filled(self) -> FeatureQueue:
        assert self.queue is not None
        return self.queue

    def _copy(self) -> None:
        self.momentum_model = MomentumEncoder(self.online, self.momentum, evaluation_mode=True)
        if self.momentum_init == "random":
            copied = self.momentum_model.module
            assert isinstance(copied, SentenceTransformer)
            transformer = getattr(copied[0], "model", None)
            if transformer is None or not hasattr(transformer, "config"):
                raise ConfigError("momentum_init random needs a model whose first module is a transformer")
            transformer.load_state_dict(new_transformer(transformer.config).state_dict(), strict=False)
            self.momentum_model.to(self.online.device)


def token_hashes(input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """(B,) int64, equal for equal sentences whatever their padding: a sum over tokens of the token times a random number for
    its place, modulo 2⁶⁴.

    Args:
        input_ids: (B, L).
        attention_mask: (B, L), 0 for padding on either side.

    >>> ids, mask = torch.tensor([[2, 7, 3, 0], [0, 2, 7, 3]]), torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]])
    >>> a, b = token_hashes(ids, mask).tolist()
    >>> a == b, a == token_hashes(torch.tensor([[2, 3, 7]]), torch.ones(1, 3)).item()
    (True, False)
    """
    mask = attention_mask.bool()
    generator = torch.Generator().manual_seed(derive_seed(0x5E))
    factor = torch.randint(-(1 << 62), 1 << 62, (input_ids.shape[1],), generator=generator) * 2 + 1
    place = (mask.cumsum(1) - 1).clamp_min(0)
    return ((input_ids.long() + 1) * factor.to(input_ids.device)[place] * mask).sum(1)


def model_mark(model: nn.Module) -> int:
    """By which a model's weights are recognised, from the first values of each."""
    mark = 0
    for name, weight in model.state_dict().items():
        first = weight.detach().flatten()[:_MARK].float().cpu().tolist()
        mark = zlib.crc32(json.dumps([name, first]).encode(), mark)
    return mark
