"""Stage 3 of Astrea: a language model learns to read the visual tokens, while contrast goes on at a low weight.

::

    L = L_LM( projector( ỹ ), question, answer ) + 0.1 L_mc + λ_bal L_bal + λ_z L_z

First the projector moves alone, then the language model with it; adapters and fusion follow at a tenth of the rate. All of it is
this project's choice (the paper, arXiv:2503.09445, could not be read beyond its abstract).

With a router that reads questions, what the language model reads is routed by the question, and what is contrasted is not.

Legend: B rows of question and answer, L tokens of the longest, N visual tokens, h features of a text's state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import DataError
from mc_vision_language.methods.astrea.joint import AstreaJoint, Keys

READS = ("answer_ids", "answer_mask", "target_mask")
"""What a batch holds for the language model, in its ids: question and answer in one row, and which tokens are to be predicted."""


class AstreaInstruct(AstreaJoint):
    """Trains projector and language model, and the fusion a little.

    Args:
        config: see :class:`~mc_vision_language.methods.astrea.config.AstreaConfig`.
        tokenizer: of the captions.
        model: of joint training; it gets its language model here, if it has none.

    Batches: those of :class:`~mc_vision_language.methods.astrea.joint.AstreaJoint`, and ``answer_ids``, ``answer_mask`` and
    ``target_mask`` (B, L), see :data:`READS` and :meth:`mc_vision_language.language_text.Examples.batch`; for a router that reads
    questions also ``question_ids`` and ``question_mask`` (B, L) in the text tower's ids, an empty mask where a row has none.
    Without contrast (``instruct.contrast`` or ``instruct.fusion_lr`` 0) captions and their ids are not read.

    Raises:
        ConfigError: settings that do not fit the model, or parts that cannot be had.
    """

    def complete_model(self) -> None:
        """The language model, where there is none yet."""
        if not self.model.answers:
            self.model.add_language()

    def start_shortcut(self) -> None:
        """The shortcut stays what it was in joint training."""

    @property
    def contrast_weight(self) -> float:
        """Of L_mc; 0 where it would train nothing."""
        return self.config.instruct.contrast if self.config.instruct.fusion_lr else 0.0

    def trained_parts(self) -> list[nn.Module | nn.Parameter]:
        """Projector, language model, and of the fusion what a loss reaches."""
        settings, model = self.config.instruct, self.model
        assert model.projector is not None
        assert model.language is not None
        parts: list[nn.Module | nn.Parameter] = [model.projector]
        if settings.language_lr:
            parts.append(model.language)
        if settings.fusion_lr:
            parts.append(self.fusion if self.contrast_weight else self.fusion.block)
        return parts

    def rate_of(self, name: str) -> float:
        """Of projector, language model and fusion."""
        if name.startswith("projector."):
            return 1.0
        if name.startswith("language."):
            return self.config.instruct.language_lr
        return self.config.instruct.fusion_lr * super().rate_of(name)

    def training_step(self, batch: Batch, progress: Progress, prepared: Keys | None = None) -> StepOutput:
        """L of one micro-batch."""
        if missing := [name for name in READS if name not in batch]:
            raise DataError(
                f"instruction tuning reads {', '.join(READS)}; the batch lacks {', '.join(missing)}: give questions or captions in "
                "the language model's ids (mc_vision_language.language_text.Examples)"
            )
        prepared, micro = self.prepared(batch, progress, prepared)
        chance = {"residual": prepared.residuals[micro], "draws": self.draws(batch, progress)}
        maps = prepared.maps[micro]
        question = self.model.question_states(batch.get("question_ids"), batch.get("question_mask"))
        seen = None
        if self.contrast_weight:
            seen = self.fusion(maps, batch["input_ids"], batch["attention_mask"], **chance)
        if seen is not None and question is None:
            fused = seen.fused
        else:
            fused = self.fusion.tokens(maps, question, **chance)
            if seen is not None:
                self.watch(seen.fused, micro, "contrast")
        self.watch(fused, micro)

        assert self.model.language is not None
        prefix = self.model.prefix(fused.tokens)
        losses = {"language": self.model.language.loss(prefix, *(batch[name] for name in READS))}
        features: dict[str, Tensor] = {}
        if seen is not None:
            losses["contrast"] = self.contrast(seen, prepared, micro)
            features = {"query": seen.image, "key": self._own(prepared, "text", micro, len(seen.image))}
        if self.config.instruct.fusion_lr:
            losses |= self.balance(fused)
        metrics: dict[str, Tensor | float] = {name: loss.detach() for name, loss in losses.items()}
        return StepOutput(
            torch.stack([self.weight_of(name) * loss for name, loss in losses.items()]).sum(),
            metrics | self.router_metrics(fused),
            features,
        )

    def weight_of(self, name: str) -> float:
        """λ of a part of the loss."""
        return 1.0 if name == "language" else super().weight_of(name)

    def before_optimizer_step(self, progress: Progress) -> None:
        """In the first share of the updates the projector alone moves."""
        if progress.fraction >= self.config.instruct.projector_share:
            return
        for name, parameter in self.model.named_parameters():
            if not name.startswith("projector."):
                parameter.grad = None

    def check(self, micro_batch_size: int) -> None:
        """As joint training, where there is contrast."""
        if self.contrast_weight:
            super().check(micro_batch_size)
