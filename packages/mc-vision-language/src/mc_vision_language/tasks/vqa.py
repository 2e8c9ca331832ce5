"""Visual question answering: questions about a picture, answered from a list or freely.

L = 1/B Σ_a weight_a Σ_t ℓ_{a,t} over all answers of the batch; see :mod:`~mc_vision_language.tasks.loss` and
:mod:`~mc_vision_language.tasks.answering`. The teacher's share α is handed on to the decoder, which the official code forgot until
2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mc_core.engine.method import Batch, Progress, StepOutput
from mc_core.errors import ConfigError
from mc_core.files import read_json, write_json
from mc_core.modules import evaluating
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.answering import RANKED, AnswerTokens, VQANet
from mc_vision_language.tasks.config import VQAConfig
from mc_vision_language.tasks.distilled import DistilledTask
from mc_vision_language.tasks.loss import answer_loss, distilled_cross_entropy
from mc_vision_language.tasks.model import Pieces, TaskModel, pooled
from mc_vision_language.tokenizers import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWERS_FILE = "answers.json"


class VQAModel(TaskModel):
    """Answers questions about pictures.

    Args:
        config: of the task.
        tokenizer: of questions and answers.
        answers: the list to choose from.

    Attributes:
        net: :class:`~mc_vision_language.tasks.answering.VQANet`.
        answers: the list to choose from; may be empty, then answers can only be generated.

    >>> from mc_vision_language.encoders_config import ImageEncoderConfig, TextEncoderConfig
    >>> from mc_vision_language.tokenizers import train_tokenizer
    >>> image = ImageEncoderConfig(image_size=16, patch_size=8, width=16, depth=1, heads=2)
    >>> text = TextEncoderConfig(hidden_size=16, heads=2, text_layers=1, fusion_layers=1)
    >>> tokenizer = train_tokenizer(["is it red", "yes", "no"], 64)
    >>> model = VQAModel(VQAConfig(image=image, text=text, dim=8), tokenizer, answers=["yes", "no"]).eval()
    >>> model.answer(torch.rand(1, 3, 16, 16), ["is it red"])[0][0] in ("yes", "no")
    True
    """

    Config = VQAConfig
    title = "Questions about pictures"
    reads = ("view", "input_ids", "attention_mask")
    net: VQANet
    config: VQAConfig

    def __init__(
        self, config: VQAConfig, tokenizer: PreTrainedTokenizerFast | None = None, answers: Sequence[str] = ()
    ) -> None:
        super().__init__(config, tokenizer)
        self.answers = tuple(answers)
        self._listed: tuple[tuple[tuple[str, ...], torch.device, int], AnswerTokens] | None = None

    def build(self, config: VQAConfig) -> VQANet:
        """Question encoder and decoder with random weights."""
        return VQANet(config)

    def start_from(self, model: VisionLanguageModel, pieces: Pieces = ()) -> None:
        """Take the weights of a pretrained model."""
        self.net.start_from(model.backbone, pieces)

    def answer_tokens(self, answers: Sequence[str]) -> AnswerTokens:
        """Ids of answers on the model's device, [SEP] at the end of each; those of the last list are kept."""
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer: load it from its run")
        key = (tuple(answers), self.device, id(self.tokenizer))
        if self._listed is None or self._listed[0] != key:
            ids, mask = encode_texts(self.tokenizer, list(answers), self.config.answer_length, add_sep=True)
            self._listed = (key, AnswerTokens(ids.to(self.device), mask.to(self.device)))
        return self._listed[1]

    def question_keys(self, images: Any, questions: Sequence[str]) -> Any:
        """What the decoder looks at, of B questions."""
        ids, mask = self.tokens_of(list(questions), self.config.question_length)
        return self.net.decoder.keys(self.net.question_states(self.pixels_of(images), ids, mask), mask)

    def ranked(self, answers: int) -> int:
        """How many of a list are scored in full.

        Raises:
            ConfigError: ``rank`` asks for more than there are.
        """
        if self.config.rank is not None and self.config.rank > answers:
            raise ConfigError(
                f"rank {self.config.rank} is more than the list of {answers} answers: set it to {answers} or less, or leave it out"
            )
        return self.config.rank or min(RANKED, answers)

    @torch.inference_mode()
    def answer(
        self, images: Any, questions: Sequence[str], *, answers: Sequence[str] | None = None, top: int = 1
    ) -> list[list[str]]:
        """The best answers of each question, best first.

        Args:
            images: B, as for :meth:`~mc_vision_language.model.VisionLanguageModel.encode_image`.
            questions: B.
            answers: to choose from; default the model's own list.
            top: answers of each question.

        Raises:
            ConfigError: no list of answers.
        """
        return [[answer for answer, _ in found] for found in self.scored(images, questions, answers=answers, top=top)]

    @torch.inference_mode()
    def scored(
        self, images: Any, questions: Sequence[str], *, answers: Sequence[str] | None = None, top: int = 1
    ) -> list[list[tuple[str, float]]]:
        """The same with the log-likelihood of each answer."""
        listed = list(self.answers if answers is None else answers)
        if not listed:
            raise ConfigError("no list of answers to choose from: give one, or generate the answer freely")
        with evaluating(self):
            ranking = self.net.rank(
                self.question_keys(images, questions),
                self.answer_tokens(listed),
                self.ranked(len(listed)),
                double_count=self.config.double_count,
            )
        rows, scores = ranking.rows[:, :top].tolist(), ranking.scores[:, :top].tolist()
        return [[(listed[r], s) for r, s in zip(*both, strict=True)] for both in zip(rows, scores, strict=True)]

    @torch.inference_mode()
    def generate(self, images: Any, questions: Sequence[str]) -> list[str]:
        """A free answer to each question, word by word the most probable."""
        if self.tokenizer is None:
            raise ConfigError("this model has no tokenizer: load it from its run")
        text = self.config.text
        with evaluating(self):
            keys = self.question_keys(images, questions)
            ids = self.net.generate(keys, start=text.cls_id, end=text.sep_id, length=self.config.answer_length)
        return self.tokenizer.batch_decode(ids.cpu(), skip_special_tokens=True)

    def save_extras(self, folder: Path) -> None:
        """The list of answers, beside the weights."""
        write_json(folder / ANSWERS_FILE, list(self.answers))

    def load_extras(self, folder: Path) -> None:
        """The list of answers."""
        if (folder / ANSWERS_FILE).is_file():
            self.answers = tuple(read_json(folder / ANSWERS_FILE))


class VQA(DistilledTask):
    """Trains a :class:`VQAModel`.

    Args:
        config: of the task.
        tokenizer: of questions and answers.
        model: to train instead of the one that ``config`` describes.

    Batches are those of :class:`mc_vision_language.data.task_data.QuestionData`: ``view`` (B, 3, S, S), ``input_ids`` and
    ``attention_mask`` (B, L), ``answer_ids`` and ``answer_mask`` (A, L), ``answer_of`` and ``answer_weights`` (A,).
    """

    config: VQAConfig

    def __init__(
        self, config: VQAConfig, tokenizer: PreTrainedTokenizerFast | None = None, model: VQAModel | None = None
    ) -> None:
        model = VQAModel(config, tokenizer) if model is None else model
        super().__init__(model.config, model)

    def training_step(self, batch: Batch, progress: Progress, prepared: Any = None) -> StepOutput:
        """L of a micro-batch."""
        answers = AnswerTokens(batch["answer_ids"], batch["answer_mask"])
        inputs = (*(batch[name] for name in self.model.reads), answers, batch["answer_of"])
        alpha = self.alpha(progress)
        logits, features = self.net(*inputs)
        follows = answers.mask[:, 1:].bool()
        targets = answers.ids[:, 1:][follows]
        losses = distilled_cross_entropy(logits, targets, self.teach(alpha, *inputs), alpha)
        answer = torch.arange(len(follows), device=follows.device)[:, None].expand_as(follows)[follows]
        loss = answer_loss(losses, answer, batch["answer_weights"], len(batch["view"]))
        right = (logits.detach().argmax(1) == targets).float().mean()
        return StepOutput(loss, {"token_accuracy": right, "alpha": alpha}, {"query": features})

    def encode(self, batch: Batch) -> Tensor:
        """(B, h) states of each question after the picture was seen, averaged."""
        states = self.net.question_states(*(batch[name] for name in self.model.reads))
        return pooled(states, batch["attention_mask"])

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """With the number of answers in the card."""
        super().save(folder, {**card, "answers": len(self.model.answers)})
