"""What each part of ALBEF is worth on one's own pairs, at equal pairs and steps: the rows of the paper's table 1, contrast
alone, and how hard negatives should be, with captions as they are or some of them wrong. Rows that are done are kept.

The paper's last row, momentum distillation downstream, starts from the full pretraining of the same seed: that model is trained
further for retrieval, without and with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mc_core.errors import CheckpointError, ConfigError, closest
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_vision_language.data.pairs import Pairs, shuffled_captions
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.methods.albef.model import ALBEF
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.tasks.recipe import TaskRecipe, resolve_task_recipe
from mc_vision_language.tasks.training import finetune_task
from mc_vision_language.tokenizers import train_tokenizer
from mc_vision_language.training import pretrain_pairs, untrained_model

COLUMNS = (
    "contrast_mean",
    "contrast_image_to_text_at_1",
    "reranked_image_to_text_at_1",
    "reranked_mean",
    "matching_mean",
)
"""R_m (mean of six recalls) and recall at 1 of contrast alone and of its candidates ranked again by matching, and R_m of matching
over everything."""
UNTRAINED = "random encoder"
_SCORES = "scores.json"
_SHORTER, _SLOWER = 4, 10  # downstream beside pretraining
_KEPT = ("queue_size", "momentum", "alpha", "ids", "hard_negative_strength", "teacher_train_mode", "temperature")


@dataclass(frozen=True)
class Arm:
    """One row.

    Attributes:
        name: as in the table.
        method: changes of the recipe's method.
    """

    name: str
    method: Mapping[str, Any] = field(default_factory=dict)


_PLAIN = {"distil_itc": False, "distil_mlm": False}
ARMS = (
    Arm("MLM + ITM", {"itc": 0.0, "hard_negative_strength": 0.0, **_PLAIN}),
    Arm("ITC alone", {"itm": 0.0, "mlm": 0.0, **_PLAIN}),
    Arm("MLM + ITM + ITC", {"hard_negative_strength": 0.0, **_PLAIN}),
    Arm("+ hard negatives", _PLAIN),
    Arm("+ MoD in ITC", {"distil_itc": True, "distil_mlm": False}),
    Arm("+ MoD in MLM", {"distil_itc": True, "distil_mlm": True}),
)
DOWNSTREAM = (
    Arm("fine-tuned", {"distil_itc": False}),
    Arm("+ MoD downstream", {"distil_itc": True}),
)
"""Rows after the last of ``ARMS``, which both go on from."""
STRENGTHS = (0.25, 0.5, 0.75)
"""Of hard negatives, between 0 (the row MLM + ITM + ITC) and 1 (+ hard negatives)."""


def strength_arm(strength: float) -> Arm:
    """The row with hard negatives of this strength, without momentum distillation."""
    return Arm(f"hard negatives × {strength:g}", {"hard_negative_strength": strength, **_PLAIN})


def arm_of(name: str) -> Arm:
    """The arm of a name.

    Raises:
        ConfigError: no such arm.
    """
    every = (*ARMS, *map(strength_arm, STRENGTHS))
    for arm in every:
        if arm.name == name:
            return arm
    raise ConfigError(f"no row {name!r}; closest: {closest(name, [arm.name for arm in every])}")


def run_arm(
    recipe_name: str | Path,
    changes: Mapping[str, Any],
    arm: Arm,
    seed: int,
    pairs: Pairs,
    folder: Path,
    *,
    noise: float = 0.0,
    k: int = 16,
) -> dict[str, float]:
    """Train one row under one seed and measure it on the test split, whose captions are all right.

    Args:
        recipe_name: to start from.
        changes: of that recipe, the same for all rows.
        arm: the row.
        seed: of weights, order and of which captions are wrong.
        pairs: with splits.
        folder: of the rows; one that is done is read, one that was interrupted goes on.
        noise: share of the training captions that change places among themselves.
        k: candidates of each query that are ranked again.

    Raises:
        CheckpointError: a row that is done under other settings.
    """
    recipe = resolve_recipe(recipe_name, merge(merge(changes, {"method": arm.method}), {"fit": {"seed": seed}}))
    place = _place(folder, arm, seed, noise)
    settings = {**recipe.model_dump(mode="json", exclude={"source"}), "noise": noise, "k": k}
    if (done := _kept(place, settings)) is not None:
        return done
    result = pretrain_pairs(recipe, shuffled_captions(pairs, noise, seed) if noise else pairs, place)
    method = result.method
    assert isinstance(method, ALBEF)
    scores = {**scores_of(method.model, pairs.part("test"), k), "seconds": result.seconds}
    write_json(place / _SCORES, {"scores": scores, "settings": settings})
    return scores


def run_downstream(
    recipe_name: str | Path,
    changes: Mapping[str, Any],
    arm: Arm,
    seed: int,
    pairs: Pairs,
    folder: Path,
    *,
    noise: float = 0.0,
    k: int = 16,
) -> dict[str, float]:
    """Train the last row of ``ARMS`` further for retrieval (:func:`tuned`) and measure it. That row is trained too, if need be.

    Args:
        recipe_name, changes, seed, pairs, folder, noise, k: as for :func:`run_arm`; the same captions are wrong.
        arm: one of ``DOWNSTREAM``.

    Raises:
        CheckpointError: a row that is done under other settings, or whose model was removed.
    """
    full = ARMS[-1]
    run_arm(recipe_name, changes, full, seed, pairs, folder, noise=noise, k=k)
    start = _place(folder, full, seed, noise)
    recipe = tuned(resolve_recipe(recipe_name, merge(changes, {"fit": {"seed": seed}})), arm)
    place = _place(folder, arm, seed, noise)
    before = read_json(start / _SCORES)["settings"]
    settings = {**recipe.model_dump(mode="json", exclude={"source"}), "noise": noise, "k": k, "from": before}
    if (done := _kept(place, settings)) is not None:
        return done
    train = shuffled_captions(pairs, noise, seed) if noise else pairs
    result = finetune_task("retrieval", load_vision_language_model(start), train, recipe, place, draws=0)
    assert isinstance(result.model, VisionLanguageModel)
    scores = {**scores_of(result.model, pairs.part("test"), k), "seconds": result.seconds}
    write_json(place / _SCORES, {"scores": scores, "settings": settings})
    return scores


def tuned(base: Recipe[Any], arm: Arm) -> TaskRecipe[Any]:
    """How a row is trained further: without words to fill in, at a tenth of the rate as in the paper's recipes, in a quarter of the
    steps (ours); all else as in pretraining.

    Args:
        base: of the pretraining.
        arm: one of ``DOWNSTREAM``.

    >>> recipe = tuned(resolve_recipe("albef-laptop"), DOWNSTREAM[0])
    >>> recipe.system, recipe.fit.steps, round(recipe.fit.lr, 6), recipe.method.distils
    ('retrieval', 400, 0.0002, False)
    """
    fit, method = base.fit, base.method
    shorter: dict[str, Any] = {
        "steps": None,
        "epochs": None,
        "warmup_epochs": fit.warmup_epochs / _SHORTER,
        "lr": fit.lr / _SLOWER,
    }
    for name in ("steps", "epochs"):
        if (length := getattr(fit, name)) is not None:
            shorter[name] = max(1, length // _SHORTER)
    kept = {name: getattr(method, name) for name in _KEPT}
    return resolve_task_recipe(
        "albef-retrieval-laptop",
        {
            "method": {
                **kept,
                "alpha_ramp_epochs": method.alpha_ramp_epochs / _SHORTER,
                "mlm": 0.0,
                "text": {"max_length": method.text.max_length, "dropout": method.text.dropout},
                **arm.method,
            },
            "unit": base.unit,
            "augment": base.augment.model_dump(),
            "fit": fit.model_dump() | shorter,
        },
    )


def run_untrained(
    recipe_name: str | Path, changes: Mapping[str, Any], seed: int, pairs: Pairs, folder: Path, *, k: int = 16
) -> dict[str, float]:
    """The same figures for the weights that every row of this seed starts from."""
    recipe = resolve_recipe(recipe_name, merge(changes, {"fit": {"seed": seed}}))
    settings = {**recipe.model_dump(mode="json", exclude={"source"}), "k": k}
    place = folder / f"seed-{seed}-untrained"
    if (done := _kept(place, settings)) is not None:
        return done
    captions = list(dict.fromkeys(pairs.part("train").captions))
    tokenizer = train_tokenizer(captions, recipe.method.text.vocabulary)
    scores = scores_of(untrained_model(recipe, tokenizer), pairs.part("test"), k)
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / _SCORES, {"scores": scores, "settings": settings})
    return scores


def scores_of(model: VisionLanguageModel, test: Pairs, k: int) -> dict[str, float]:
    """The columns of the table, without intervals."""
    found = retrieval(model, test, k=k, everything=True, draws=0)
    assert found.reranked is not None
    assert found.matching is not None
    return {
        "contrast_mean": found.contrast.mean.value,
        "contrast_image_to_text_at_1": found.contrast.image_to_text[1].value,
        "reranked_image_to_text_at_1": found.reranked.image_to_text[1].value,
        "reranked_mean": found.reranked.mean.value,
        "matching_mean": found.matching.mean.value,
    }


def _place(folder: Path, arm: Arm, seed: int, noise: float) -> Path:
    return folder / f"noise-{noise:g}" / f"seed-{seed}" / arm.name.replace(" ", "-")


def _kept(place: Path, settings: Mapping[str, Any]) -> dict[str, float] | None:
    path = place / _SCORES
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("settings") != settings:
        raise CheckpointError(f"{place} holds this row under other settings: name another folder, or remove it")
    return content["scores"]
