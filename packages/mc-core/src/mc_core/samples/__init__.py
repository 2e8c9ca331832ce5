"""Scenes of real handwritten digits with captions, questions, statements and phrases: data that needs no download.

>>> scenes = digit_scenes(4, size=32, digits=(1, 3))
>>> len(scenes.captions), len(questions(scenes, per_scene=2)), phrases(scenes).box.shape[1]
(4, 7, 4)
"""

from mc_core.samples.questions import (
    FURTHER_KINDS,
    QUESTION_KINDS,
    Questions,
    question_only_accuracy,
    questions,
)
from mc_core.samples.scenes import (
    COLORS,
    DIGITS,
    MAX_OBJECTS,
    RELATIONS,
    SIZES,
    DigitScenes,
    SceneConfig,
    SceneObjects,
    Split,
    digit_scenes,
)
from mc_core.samples.statements import (
    ENTAILMENT_LABELS,
    Entailments,
    Phrases,
    StatementPairs,
    entailments,
    phrases,
    statement_pairs,
)

__all__ = [
    "COLORS",
    "DIGITS",
    "ENTAILMENT_LABELS",
    "FURTHER_KINDS",
    "MAX_OBJECTS",
    "QUESTION_KINDS",
    "RELATIONS",
    "SIZES",
    "DigitScenes",
    "Entailments",
    "Phrases",
    "Questions",
    "SceneConfig",
    "SceneObjects",
    "Split",
    "StatementPairs",
    "digit_scenes",
    "entailments",
    "phrases",
    "question_only_accuracy",
    "questions",
    "statement_pairs",
]
