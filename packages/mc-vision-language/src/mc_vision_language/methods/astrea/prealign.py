"""Stage 1 of Astrea: the adapters of single experts are aligned with texts by contrast, before there is a router.

The abstract (arXiv:2503.09445) says "progressive pre-alignment" by contrast; how is this project's choice: experts join one after
another, from what a picture means to where its parts lie. While expert k joins::

    v^(j) = n( pool( Z_j ) ),  j ≤ k                                      no router, no fusion MLP
    L     = L_pre(k) + mean_{j<k} L_pre(j)                                loss.prealign_loss
    rates   1 for adapter k, pooling and positions; ρ for adapters j < k, and for the text tower after the first expert

All at once (``parallel``) it is the mean of sym( v^(k), t ) over experts. Contrast is within the batch of all processes;
micro-batches have their own.

Legend: B pairs, e width of the shared space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_vision_language.backbone import unit
from mc_vision_language.methods.astrea.base import AstreaMethod
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.loss import prealign_loss
from mc_vision_language.methods.growclip.loss import same_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class AstreaPrealign(AstreaMethod):
    """Aligns one expert more with texts, or all at once.

    Args:
        config: ``prealign.expert`` says which expert joins, by default the first; those before it have joined.
        tokenizer: of the captions.
        model: to train, such as that of the expert before.

    Attributes:
        kinds: the experts that are aligned, the newcomer last.

    Batches: as those of :class:`~mc_vision_language.methods.astrea.joint.AstreaJoint`.

    Raises:
        ConfigError: pre-alignment is off, there is no such expert, or settings that do not fit the model.
    """

    def __init__(
        self,
        config: AstreaConfig,
        tokenizer: PreTrainedTokenizerFast | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(config, tokenizer, model)
        mode, kinds = config.prealign.mode, self.config.kinds
        if mode == "none":
            raise ConfigError("prealign.mode is none: set sequential or parallel, or leave this stage out")
        newcomer = config.prealign.expert or kinds[0]
        if newcomer not in kinds:
            raise ConfigError(f"prealign.expert: there is no {newcomer} expert, only {', '.join(kinds)}")
        self.kinds = kinds if mode == "parallel" else kinds[: kinds.index(newcomer) + 1]
        self.model.train_only(*self._trained_parts())

    @property
    def sequential(self) -> bool:
        """Whether experts join one after another."""
        return self.config.prealign.mode == "sequential"

    def _trained_parts(self) -> list[nn.Module | nn.Parameter]:
        fusion, adapters = self.fusion, self.fusion.adapters
        assert adapters is not None
        parts: list[nn.Module | nn.Parameter] = [adapters.positions, fusion.pooling]
        parts += [adapters.by_kind[kind] for kind in self.kinds if self._adapter_rate(kind)]
        if self._text_rate:
            parts += [fusion.text, fusion.text_projection, fusion.logit_scale]
        return parts

    def _adapter_rate(self, kind: str) -> float:
        return self.config.prealign.joined_lr if self.sequential and kind != self.kinds[-1] else 1.0

    @property
    def _text_rate(self) -> float:
        return self.config.prealign.joined_lr if self.sequential and len(self.kinds) > 1 else 1.0

    def rate_of(self, name: str) -> float:
        """ρ for what has joined before."""
        parts = name.split(".")
        if "by_kind" in parts:
            return self._adapter_rate(parts[parts.index("by_kind") + 1])
        if "pooling" in parts or "positions" in parts:
            return 1.0
        return self._text_rate

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """L of one micro-batch."""
        fusion, settings = self.fusion, self.config.prealign
        maps = self.maps(batch)
        text = fusion.embed_text(batch["input_ids"], batch["attention_mask"])
        rows = [fusion.embed_expert(kind, maps) for kind in self.kinds]
        same = same_pairs(batch["image_ids"], batch["text_ids"]) if self.config.ids else None
        cross = settings.cross if self.sequential else 0.0
        losses = [
            prealign_loss(row, text, fusion.logit_scale, rows[:place], cross=cross, same=same)
            for place, row in enumerate(rows)
        ]
        each = torch.stack(losses)
        if self.sequential:
            loss = each[-1] + (each[:-1].mean() if len(each) > 1 and settings.joined_lr else 0.0)
        else:
            loss = each.mean()
        metrics: dict[str, Tensor | float] = {
            f"prealign/{kind}": one.detach() for kind, one in zip(self.kinds, losses, strict=True)
        }
        metrics["logit_scale"] = fusion.logit_scale.detach()
        return StepOutput(loss, metrics, {"query": rows[-1], "key": text.detach()})

    def after_step(self, progress: Progress) -> None:
        """Keep s within its bounds; the shortcut takes the adapters as they are."""
        self.fusion.clamp_temperature()
        if self.config.reference and self.fusion.adapters is not None:
            self.model.own.follow(self.fusion.adapters)

    def encode(self, batch: Batch) -> Tensor:
        """(B, e) unit rows: the mean of the experts that are aligned."""
        maps = self.maps(batch)
        return unit(torch.stack([self.fusion.embed_expert(kind, maps) for kind in self.kinds]).mean(0))

    def check(self, micro_batch_size: int) -> None:
        """Refuse a batch of one, which has no negatives."""
        if micro_batch_size < 2:
            raise ConfigError(
                f"{micro_batch_size} pair per process and micro-batch has no other to be told from: take a larger "
                "fit.batch_size or a smaller fit.accumulation"
            )
