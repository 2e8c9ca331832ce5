"""CTP: Zhu et al. 2023 (ICCV), "CTP: Towards Vision-Language Continual Pretraining via Compatible Momentum Contrast and Topology
Preservation", arXiv:2308.07146.

A model goes on learning, domain after domain, without the data of the domains before. Three models take part in a task: θ, which is
trained; θ_old, as it was when the task began; and the compatible momentum model θ_c, which follows both. One step, v, w unit rows
of images and texts of θ, with r those of θ_old, with c those of θ_c; v̄, w̄ those of all processes::

    L_ita     = ½ [ CE( v · w̄ / τ ) + CE( w · v̄ / τ ) ]                              within the batch        continual.base
    L_mlm     = CE( words behind masks )                                                                    continual.base
    L_cmc     = ½ [ CE( v · [w^c ; queue] / τ ) + CE( w · [v^c ; queue] / τ ) ]
    L_mlm-dis = CE( words behind masks, θ_c's opinion )
    L_x       = ½ [ KL( v^r · w̄^r ‖ v · w̄ ) + KL( w^r · v̄^r ‖ w · v̄ ) ]               softmax( cosines / τ )
    L_s       = ½ [ KL( v^r · v̄^r ‖ v · v̄ ) + KL( w^r · w̄^r ‖ w · w̄ ) ]               the same, own columns left out
    then        θ_c ← m θ_c + (1 − m) ( α θ_old + (1 − α) θ );  the batch's v^c, w^c enter the queues                   after_step

In the first task there is no θ_old: L_x and L_s are missing, α is 0 and m is another. θ_old stays as it is within a task, so that
θ_c = α θ_old + (1 − α) u with u the plain moving average of θ started at θ_old: "old model plus moving average". Kept are θ_old and
θ_c, which moves by two interpolations in place, and u never: one copy of the weights less, and a tested identity.

What differs from the official code without effect on what is defined: θ_c moves after the optimizer's step instead of before the
next forward pass, which is the same sequence; the queues have no random rows before they are filled; own columns are left out of
the softmax instead of set to −1000; a batch always has a masked word. Ours are: ``ids``, ``plain_first``, ``plain_later`` and
``restart: false``. The weights of the losses are 1 in the official code.

Legend: B pairs of this process, G of all, K keys of a queue, d width of the shared space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mc_core.continual.contract import Task
from mc_core.distributed import gather_rows
from mc_core.engine.method import Progress
from mc_core.momentum import MomentumEncoder
from mc_core.queue import FeatureQueue, PendingKeys
from mc_vision_language.backbone import Backbone, Encoded
from mc_vision_language.continual.base import Sequential, Step, encode_step
from mc_vision_language.continual.loss import both_ways, soft_words
from mc_vision_language.methods.ctp.config import CTPConfig
from mc_vision_language.methods.ctp.loss import own_columns, topology, without
from mc_vision_language.model import VisionLanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_KINDS = ("text", "image")


class CTP(Sequential):
    """Compatible momentum contrast and topology preservation.

    Args:
        config: see :class:`~mc_vision_language.methods.ctp.config.CTPConfig`.
        tokenizer: of the captions; default: that of ``config.text.name``.
        model: to train instead of the one that ``config`` describes, such as a pretrained one.

    Attributes:
        compatible: θ_c.
        old: θ_old, from the second task on; None in the first.
        queues: keys of θ_c by kind, ``image`` and ``text``.

    Batches: as :class:`~mc_vision_language.continual.base.Sequential`.

    Raises:
        ConfigError: encoders that cannot be had, or a tokenizer that does not fit.
    """

    config: CTPConfig

    def __init__(
        self,
        config: CTPConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: VisionLanguageModel | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        self.task = Task(0, "")
        self.compatible = MomentumEncoder(self.backbone, config.momentum_first, buffers="copy", evaluation_mode=True)
        self.old: MomentumEncoder | None = None
        self.queues = nn.ModuleDict()
        self._pending: dict[str, PendingKeys] = {}
        for kind in _KINDS if config.queue_size and config.contrast else ():
            self.queues[kind] = FeatureQueue(config.queue_size, config.dim, with_ids=True)
            self._pending[kind] = PendingKeys()

    def start_task(self, task: Task) -> None:
        """θ_old and θ_c become what θ is now; the queues stay."""
        self.task = task
        if task.first or self.config.restart:
            self.compatible.synchronise()
        needed = self.config.preserves or (self.config.follows and self.config.interpolation > 0)
        self.old = None if task.first or self.config.plain_later or not needed else self.frozen_copy()

    @property
    def _plain(self) -> bool:
        return self.config.plain_first if self.task.first else self.config.plain_later

    def extra_losses(self, step: Step) -> dict[str, Tensor]:
        """What θ_c and θ_old add."""
        if self._plain:
            return {}
        losses = self._compatible_losses(step) if self.config.follows else {}
        if self.old is not None and self.config.preserves:
            losses |= self._topology_losses(step)
        return losses

    def _compatible_losses(self, step: Step) -> dict[str, Tensor]:
        """L_cmc and L_mlm-dis."""
        config, batch = self.config, step.batch
        with torch.no_grad():
            taught, words = encode_step(
                backbone_of(self.compatible), batch, step.masked if config.distils_words else None
            )
        losses: dict[str, Tensor] = {}
        if config.contrast:
            same = None
            if config.ids:
                same = self.same(batch, (self._key_ids("image", batch), self._key_ids("text", batch)))
            of_images = self._against_keys(step.encoded.image, taught.text, "text")
            of_texts = self._against_keys(step.encoded.text, taught.image, "image")
            losses["cmc"] = config.contrast * both_ways(of_images, of_texts, same)
            self._remember(step, taught)
            step.features["key"] = taught.text
        if words is not None and step.word_log_p is not None:
            losses["mlm_distil"] = config.distil_mlm * soft_words(step.word_log_p, words)
        return losses

    def _topology_losses(self, step: Step) -> dict[str, Tensor]:
        """L_x and L_s; one block of products for each pair of kinds, those of the student's L_ita used again."""
        assert self.old is not None
        config, student, batch = self.config, step.encoded, step.batch
        losses: dict[str, Tensor] = {}
        with torch.no_grad():
            old = backbone_of(self.old)
            old_image = old.embed_images(batch["view"])
            old_text = old.embed_tokens(batch["input_ids"], batch["attention_mask"])
        images, texts = gather_rows(old_image), gather_rows(old_text)
        if config.cross:
            of_images = self.logits(old_image, texts)
            of_texts = of_images.T if len(texts) == len(old_text) else self.logits(old_text, images)
            losses["topology_cross"] = (
                config.cross * 0.5 * (topology(of_images, step.of_images) + topology(of_texts, step.of_texts))
            )
        if config.same:
            own = own_columns(len(old_image), len(images), step.first, images.device) if config.mask_own else None

            def one_kind(before: Tensor, all_before: Tensor, now: Tensor, all_now: Tensor) -> Tensor:
                pair = self.logits(before, all_before), self.logits(now, all_now)
                return topology(*pair) if own is None else topology(*(without(one, own) for one in pair))

            losses["topology_same"] = (
                config.same
                * 0.5
                * (
                    one_kind(old_image, images, student.image, step.images)
                    + one_kind(old_text, texts, student.text, step.texts)
                )
            )
        return losses

    def _against_keys(self, query: Tensor, keys: Tensor, kind: str) -> Tensor:
        """(B, B + K) logits against the batch's own keys and those of the queue."""
        logits = self.logits(query, keys)
        queue = self._queue(kind)
        # the products are joined, not the keys: a queue is not copied
        return (
            logits if queue is None else torch.cat([logits, self.logits(query, queue.features.to(query.dtype))], dim=1)
        )

    def _key_ids(self, kind: str, batch: dict[str, Tensor]) -> Tensor:
        own, queue = batch[f"{kind}_ids"], self._queue(kind)
        if queue is None:
            return own
        assert queue.ids is not None
        return torch.cat([own, queue.ids])

    def _remember(self, step: Step, taught: Encoded) -> None:
        for kind, keys in (("image", taught.image), ("text", taught.text)):
            if kind in self._pending:
                self._pending[kind].add(step.progress.step, keys, step.batch[f"{kind}_ids"])

    def after_step(self, progress: Progress) -> None:
        """Move θ_c, then enqueue this step's keys."""
        if self._plain or not self.config.follows:
            return
        if self.task.first:
            self.compatible.update(self.config.momentum_first)
        else:
            follow_both(self.compatible, self.old, self.config.momentum, self.config.interpolation)
        for kind, pending in self._pending.items():
            queue = self._queue(kind)
            if queue is not None and (taken := pending.take()):
                queue.enqueue(*taken)

    def _queue(self, kind: str) -> FeatureQueue | None:
        if kind not in self.queues:
            return None
        queue = self.queues[kind]
        assert isinstance(queue, FeatureQueue)
        return queue


@torch.no_grad()
def follow_both(copy: MomentumEncoder, old: MomentumEncoder | None, momentum: float, interpolation: float) -> None:
    """θ_c ← m θ_c + (1 − m) ( α θ_old + (1 − α) θ ), by two interpolations in place.

    Weights that are equal in all three stay as they are, to the bit.

    Args:
        copy: holds θ_c, its ``online`` is θ.
        old: holds θ_old; needed with α > 0.
        momentum: m.
        interpolation: α.
    """
    towards_online = (1 - momentum) * (1 - interpolation)
    if interpolation and momentum < 1:
        assert old is not None
        pull = (1 - momentum) * interpolation / (1 - towards_online)
        ours: list[Tensor] = list(copy.module.parameters())
        theirs: list[Tensor] = list(old.module.parameters())
        torch._foreach_lerp_(ours, theirs, pull)
    copy.update(1 - towards_online)


def backbone_of(copy: MomentumEncoder) -> Backbone:
    """The backbone that a copy holds."""
    assert isinstance(copy.module, Backbone)
    return copy.module
