"""Settings of the downstream tasks. Import no torch."""

from __future__ import annotations

from pydantic import Field

from mc_vision_language.encoders_config import VisionLanguageConfig

ENTAILMENT_LABELS = ("contradiction", "neutral", "entailment")
STATEMENT_LABELS = ("false", "true")
ASSIGNMENT_LABELS = ("first", "second", "neither")


class DistilledConfig(VisionLanguageConfig):
    """What all tasks share: a model that was pretrained, and a slow copy of it that softens the labels.

    >>> DistilledConfig(alpha=0.4).alpha_at(0.25)
    0.1
    """

    momentum: float = Field(default=0.995, ge=0, le=1)
    """Of the teacher, which follows the trained weights once per optimizer step."""
    alpha: float = Field(default=0.4, ge=0, lt=1)
    """Share of the labels that comes from the teacher; 0: none, and no teacher is kept."""
    alpha_ramp_epochs: float = Field(default=1.0, ge=0)
    """Epochs in which that share rises from 0."""
    teacher_train_mode: bool = False
    """Leave the teacher's dropout on, as in the official code."""

    def alpha_at(self, epochs: float) -> float:
        """α after so many epochs."""
        ramp = self.alpha_ramp_epochs
        return self.alpha * (min(epochs / ramp, 1.0) if ramp else 1.0)


class VQAConfig(DistilledConfig):
    """Questions with open answers, by a decoder.

    >>> VQAConfig().answers
    3128
    """

    decoder_layers: int | None = Field(default=None, ge=1)
    """Layers of the decoder; default: as many as there are fusion layers, whose weights they start from."""
    question_length: int = Field(default=25, ge=4)
    """Tokens of a question, special ones included; what is longer is cut."""
    answer_length: int = Field(default=10, ge=3)
    """Tokens of an answer, [CLS] and [SEP] included; what is longer is cut."""
    answers: int = Field(default=3128, ge=1)
    """Without a list of answers: take the most frequent ones of the training questions, at most so many."""
    rank: int | None = Field(default=None, ge=1)
    """How many answers of the list are scored in full; default: 128, or all of a shorter list."""
    double_count: bool = False
    """Count the first token of an answer twice when it is scored, as the official code does."""


class EntailmentConfig(DistilledConfig):
    """Whether a picture confirms a sentence: contradiction, neutral, entailment.

    >>> EntailmentConfig().alpha_at(0.0)
    0.4
    """

    alpha_ramp_epochs: float = Field(default=0.0, ge=0)
    """Epochs in which the teacher's share rises from 0; in the official recipe it does not rise here."""


class TwoImageConfig(DistilledConfig):
    """Sentences about two pictures: every fusion layer is there twice, one for each picture.

    >>> TwoImageConfig().text.fusion_layers
    6
    """


class AssignmentConfig(VisionLanguageConfig):
    """Text assignment: which of two pictures a caption belongs to, or to neither. It prepares for statements; no teacher.

    >>> AssignmentConfig().neither
    0.3333333333333333
    """

    negative_temperature: float = Field(default=0.07, gt=0)
    """Pictures that look more alike are drawn more often as the wrong one; cosines are divided by this."""
    neither: float = Field(default=1 / 3, ge=0, le=1)
    """Share of captions that get two wrong pictures."""
