"""What the loss of ESimCSE needs of the trainer's loop: moves of the slow copy, a place in checkpoints, shared gradients."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mc_core.distributed import is_distributed, world_size
from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import StrPath, load_state, save_state
from mc_text_code.trainer.collator import ESimCSECollator

if TYPE_CHECKING:
    from mc_text_code.trainer.loss import ESimCSELoss

STATE_FILE = "esimcse.safetensors"
"""In each checkpoint of the trainer: head, slow copy and queue."""
_log = logging.getLogger("mc_core")


class ESimCSECallback(TrainerCallback):
    """Give it to the trainer beside an :class:`~mc_text_code.trainer.loss.ESimCSELoss`.

    The slow copy moves once per optimizer step. Head, slow copy and queue are written into each checkpoint and taken up again
    when training is resumed, to the same bits; with ``load_best_model_at_end`` they go back together with the model. Under
    DistributedDataParallel the gradients of the head are averaged over processes. The collator learns which epoch it is.

    Args:
        loss: that is trained.
        resume_from: the checkpoint that ``trainer.train(resume_from_checkpoint=…)`` names, where it is not
            ``output_dir/checkpoint-STEP``.

    Raises:
        ConfigError: when training begins under FSDP or DeepSpeed, which split the model that the copy follows.
        CheckpointError: when training is resumed from a checkpoint without a state that fits.
    """

    def __init__(self, loss: ESimCSELoss, *, resume_from: StrPath | None = None) -> None:
        self.loss = loss
        self.resume_from = None if resume_from is None else Path(resume_from)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.fsdp or args.deepspeed:
            raise ConfigError(
                "ESimCSELoss follows the whole model: train with DistributedDataParallel, not FSDP or DeepSpeed"
            )
        self.loss.begin(kwargs.get("model"))
        if state.global_step:
            self._restore(self._resumed(args, state))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        collator = getattr(kwargs.get("train_dataloader"), "collate_fn", None)
        if isinstance(collator, ESimCSECollator):
            collator.epoch = int(state.epoch or 0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for weight in self.loss.head.parameters() if is_distributed() else ():
            if weight.grad is not None:
                dist.all_reduce(weight.grad)
                weight.grad /= world_size()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.loss.after_step()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = _checkpoint(args, state.global_step)
        if args.should_save and not args.save_only_model and folder.is_dir():
            save_state({"step": state.global_step, **self.loss.checkpoint()}, folder / STATE_FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        best = state.best_model_checkpoint
        if args.load_best_model_at_end and best is not None and (Path(best) / STATE_FILE).exists():
            self._restore(Path(best))

    def _resumed(self, args: TrainingArguments, state: TrainerState) -> Path:
        if self.resume_from is not None:
            return self.resume_from
        given = args.resume_from_checkpoint
        if isinstance(given, str) and Path(given).is_dir():
            return Path(given)
        return _checkpoint(args, state.global_step)

    def _restore(self, folder: Path) -> None:
        if not (folder / STATE_FILE).exists():
            raise CheckpointError(
                f"{folder} has no {STATE_FILE}, without which head, slow copy and queue cannot go on: resume from another "
                "checkpoint, or name the folder with ESimCSECallback(loss, resume_from=...)"
            )
        self.loss.restore(load_state(folder / STATE_FILE), str(folder / STATE_FILE))
        _log.info("head, slow copy and queue go on from %s", folder)


def _checkpoint(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"
