"""What each part of Astrea is worth on one's own pictures, at equal updates: each expert away or alone, the ways to fuse them, the
momentum queue, pre-alignment, the shortcut. Rows that are done are kept.

Experts are trained once for each seed, and their maps are shared by all rows of it. Pre-alignment takes its updates from those of
joint training. The abstract of the paper claims gains of pre-alignment, shortcut and momentum contrast; tables of its ablations
could not be read, so these rows are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mc_core.data import StepPlan
from mc_core.errors import CheckpointError, ConfigError, closest
from mc_core.files import read_json, write_json
from mc_core.recipes import merge, validated
from mc_core.runs import folder_name
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.experts.config import KINDS, Kind
from mc_vision_language.methods.astrea.config import AstreaConfig
from mc_vision_language.methods.astrea.model import AstreaModel
from mc_vision_language.recipe import Recipe
from mc_vision_language.staged.evaluating import measure_answers
from mc_vision_language.staged.inspecting import inspect_router
from mc_vision_language.staged.running import StageKind, run_astrea

FULL = "all experts"
COLUMNS = ("mean_recall", "image_to_text_at_1", "text_to_image_at_1")
PREALIGN_SHARE = 0.25
"""Of the updates of joint training that pre-alignment takes, all experts together."""
_SCORES, _EXPERTS, _MAPS = "scores.json", "experts", "maps"


@dataclass(frozen=True)
class Arm:
    """One row.

    Attributes:
        name: as in the table.
        method: changes of the recipe's method.
        without: the expert that is away.
        only: the expert that is alone.
    """

    name: str
    method: Mapping[str, Any] = field(default_factory=dict)
    without: Kind | None = None
    only: Kind | None = None


def arms_of(kinds: Sequence[Kind] = KINDS) -> tuple[Arm, ...]:
    """All rows for these experts, the full model first.

    >>> [arm.name for arm in arms_of(("captioning", "detection"))][:5]
    ['all experts', 'without captioning', 'without detection', 'only captioning', 'only detection']
    """
    several = kinds if len(kinds) > 1 else ()
    return (
        Arm(FULL),
        *(Arm(f"without {kind}", without=kind) for kind in several),
        *(Arm(f"only {kind}", {"fusion": "single", "single": kind}, only=kind) for kind in several),
        Arm("uniform weights", {"fusion": "uniform"}),
        Arm("channels side by side", {"fusion": "concat"}),
        Arm("no queue", {"queue_size": 0}),
        Arm("no momentum contrast", {"queue_size": 0, "momentum": 0.0}),
        Arm("pre-aligned one by one", {"prealign": {"mode": "sequential"}}),
        Arm("pre-aligned together", {"prealign": {"mode": "parallel"}}),
        Arm("with shortcut", {"residual": {"probability": 0.5}}),
    )


def arm_of(name: str, kinds: Sequence[Kind] = KINDS) -> Arm:
    """The row of a name.

    Raises:
        ConfigError: no such row.
    """
    every = {arm.name: arm for arm in arms_of(kinds)}
    if name not in every:
        raise ConfigError(f"no row '{name}': did you mean {closest(name, every)}?")
    return every[name]


def recipe_of(base: Recipe[Any], arm: Arm, seed: int, pictures: int) -> Recipe[Any]:
    """The recipe of a row: as many updates in all as joint training has in ``base``.

    Args:
        base: of the system ``astrea``, for the full model; pre-alignment and shortcut are off in it.
        arm: the row.
        seed: of weights and order.
        pictures: to train on.

    >>> from mc_vision_language.recipe import resolve_recipe
    >>> made = recipe_of(resolve_recipe("astrea-laptop"), arm_of("pre-aligned one by one"), 1, 4000)
    >>> made.fit.seed, made.fit.steps + 4 * made.method.stages.prealign.steps
    (1, 1000)
    """
    if not isinstance(base.method, AstreaConfig):
        raise ConfigError(f"'{base.system}' has no such rows: give a recipe of astrea")
    plain = {"prealign": {"mode": "none"}, "residual": {"probability": 0.0}, "fusion": "routed", "single": None}
    content = merge(merge(base.method.model_dump(mode="json"), plain), arm.method)
    kinds = [kind for kind in base.method.kinds if kind != arm.without]
    content["experts"] = [one for one in content["experts"] if one["kind"] in kinds]
    content["expert_features"] = {}
    steps = _steps(base, pictures)
    mode = content["prealign"]["mode"]
    if mode != "none":
        each = max(1, round(PREALIGN_SHARE * steps / (len(kinds) if mode == "sequential" else 1)))
        content["stages"]["prealign"] = {"steps": each}
        steps -= each * (len(kinds) if mode == "sequential" else 1)
    method = validated(AstreaConfig, content, source=f"settings of the row '{arm.name}'")
    fit = base.fit.model_copy(update={"seed": seed, "steps": max(1, steps), "epochs": None})
    return base.model_copy(update={"method": method, "fit": fit})


def run_arm(
    base: Recipe[Any],
    arm: Arm,
    seed: int,
    data: AnnotatedPairs,
    folder: Path | str,
    *,
    answers: bool = False,
    part: str = "test",
    expert_data: AnnotatedPairs | None = None,
    source: str = "",
) -> dict[str, float]:
    """Train one row under one seed and measure it on pictures held out.

    Args:
        base: see :func:`recipe_of`.
        arm: the row.
        seed: of experts, weights and order.
        data: with splits.
        folder: of the rows; one that is done is read, one that was interrupted goes on.
        answers: also train the language model, and measure answers.
        part: the split that is measured; validation where settings are chosen.
        expert_data: what the experts are trained on, where that is more than ``data``.
        source: what to call the data.

    Returns:
        :data:`COLUMNS`, ``vqa_accuracy`` with ``answers``, mean weight of each expert and their entropy where there are weights.

    Raises:
        CheckpointError: a row that is done under other settings.
        ConfigError: an expert that the pictures have no annotations for, or settings that cannot work.
    """
    place = Path(folder) / f"seed-{seed}"
    pictures = int((data.pairs.splits == "train").sum())
    recipe = recipe_of(base, arm, seed, pictures)
    at = place / folder_name(arm.name)
    settings = {**recipe.model_dump(mode="json", exclude={"source"}), "answers": answers, "part": part}
    if (done := _kept(at, settings)) is not None:
        return done
    shared = recipe_of(base, Arm(FULL), seed, pictures)
    learned = data if expert_data is None else expert_data
    trained = run_astrea(shared, learned, place / _EXPERTS, stages=["experts"], source=source)
    wanted = arm.only or arm.without
    if wanted is not None and wanted not in trained.experts:
        raise ConfigError(f"row '{arm.name}': the pictures have nothing to train a {wanted} expert on")
    every = {kind: place / _EXPERTS / "stages" / f"0-{kind}" / "train" for kind in trained.experts}
    ready: dict[str, Path] = {
        kind: where for kind, where in every.items() if where.is_dir() and kind in recipe.method.kinds
    }
    stages: list[StageKind] = ["prealign", "joint", *(("instruct",) if answers else ())]
    result = run_astrea(recipe, data, at, stages=stages, experts=ready, maps=place / _MAPS, source=source)
    assert result.model is not None
    scores = scores_of(result.model, data.part(part))
    write_json(at / _SCORES, {"scores": {**scores, "seconds": result.seconds}, "settings": settings})
    return {**scores, "seconds": result.seconds}


def scores_of(model: AstreaModel, test: AnnotatedPairs) -> dict[str, float]:
    """The columns of the table, without intervals, and how experts are weighed."""
    shown = test.having("captions")
    found = retrieval(model, shown.pairs, draws=0).contrast
    scores = {
        "mean_recall": found.mean.value,
        "image_to_text_at_1": found.image_to_text[1].value,
        "text_to_image_at_1": found.text_to_image[1].value,
    }
    if model.answers and test.questions is not None:
        scores["vqa_accuracy"] = measure_answers(model, test.questions, draws=0).value
    if model.config.routes:
        report = inspect_router(model, shown.pairs.images)
        scores |= {f"weight/{kind}": float(w) for kind, w in zip(report.kinds, report.weight, strict=True)}
        scores |= {"entropy": report.entropy, "entropy_each": report.entropy_each}
    return scores


def _steps(base: Recipe[Any], pictures: int) -> int:
    if base.fit.steps is not None:
        return base.fit.steps
    return (base.fit.epochs or 1) * StepPlan(pictures, base.fit.batch_size, 0).steps_per_epoch


def _kept(place: Path, settings: Mapping[str, Any]) -> dict[str, float] | None:
    path = place / _SCORES
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("settings") != settings:
        raise CheckpointError(f"{place} holds this row under other settings: name another folder, or remove it")
    return content["scores"]
