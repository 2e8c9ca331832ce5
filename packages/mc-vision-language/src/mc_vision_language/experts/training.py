"""From annotated pictures to a trained expert, alone; a run folder holds what :func:`mc_core.fit` leaves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from mc_core.engine.config import Fit
from mc_core.engine.loop import RunResult, fit
from mc_core.files import StrPath
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs, annotated
from mc_vision_language.data.annotated_data import AnnotatedData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.experts.base import Expert, ExpertMethod, build_expert
from mc_vision_language.experts.config import ExpertConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def with_classes(config: ExpertConfig, data: AnnotatedPairs) -> ExpertConfig:
    """With the names of the data's classes, where none are named."""
    return config if config.class_names else config.model_copy(update={"class_names": data.class_names})


def expert_for(
    config: ExpertConfig,
    data: Pairs | AnnotatedPairs,
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    seed: int = 0,
) -> Expert:
    """An untrained expert for these pictures: with their classes or, of captions, with a tokenizer made from those to train on.

    Args:
        config: of the expert.
        data: pictures; captions of other splits than ``train`` are not looked at, where there is such a split.
        tokenizer: of captions; default: that of ``captioning.language.name``, or a new one.
        seed: of the weights.
    """
    pairs = annotated(data)
    if config.kind == "captioning" and tokenizer is None:
        tokenizer = _tokenizer(config, pairs.pairs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_expert(with_classes(config, pairs), tokenizer if config.kind == "captioning" else None)


def _tokenizer(config: ExpertConfig, pairs: Pairs) -> PreTrainedTokenizerFast:
    from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer

    language = config.captioning.language
    if language.name is not None:
        return load_tokenizer(language.name, download=language.download)
    seen = pairs.part("train") if (pairs.splits == "train").any() else pairs
    return train_tokenizer(seen.captions, language.vocabulary)


def expert_data(
    expert: Expert, data: Pairs | AnnotatedPairs, augment: AugmentConfig | None, *, size: int | None = None
) -> AnnotatedData:
    """The pictures that an expert can learn from or be measured by, as it takes them.

    Args:
        expert: says what it needs.
        data: pictures.
        augment: random changes; None: none.
        size: side of a view; default: that of the expert.

    Raises:
        DataError: no picture has what it needs.
    """
    pairs = annotated(data).having(expert.config.needs)
    language = expert.config.captioning.language
    return AnnotatedData(
        pairs,
        expert.tokenizer,
        augment=augment,
        size=size or expert.image_size,
        max_length=language.answer_length - 1 + (language.start_id is not None),  # and the end, which is added
    )


def train_expert(
    config: ExpertConfig,
    data: Pairs | AnnotatedPairs,
    run_dir: StrPath,
    *,
    fit_config: Fit,
    augment: AugmentConfig | None = None,
    tokenizer: PreTrainedTokenizerFast | None = None,
    resume: Literal["auto", "never", "must"] = "auto",
) -> RunResult:
    """Train one expert alone, on the pictures that have what it needs. ``load_expert(run_dir)`` gives it back.

    Args:
        config: of the expert.
        data: pictures to train on, those of one split.
        run_dir: of the run, which resumes where it stopped.
        fit_config: how it is trained.
        augment: random changes of views.
        tokenizer: of captions; see :func:`expert_for`.
        resume: see :func:`mc_core.fit`.

    Raises:
        DataError: no picture has what it needs; see :func:`~mc_vision_language.experts.base.trainable_kinds`.
    """
    annotated(data).having(config.needs)
    expert = expert_for(config, data, tokenizer, seed=fit_config.seed)
    given = expert_data(expert, data, augment)
    recipe = {
        "expert": expert.config.model_dump(mode="json"),
        "augment": None if augment is None else augment.model_dump(mode="json"),
        "fit": fit_config.model_dump(mode="json"),
    }
    return fit(ExpertMethod(expert), given, fit=fit_config, run_dir=Path(run_dir), resume=resume, recipe=recipe)
