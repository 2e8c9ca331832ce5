"""What each way of having a large contrastive batch is worth, at equal pairs and optimizer steps.

The paper's own ablations could not be read; these rows answer what a user would ask. Rows that are done are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mc_core.errors import CheckpointError, ConfigError, closest
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_medical.measure import measure
from mc_medical.methods.msd.model import MSD
from mc_medical.model import ImageTextModel
from mc_medical.recipe import resolve_recipe
from mc_medical.training import Cohort, pretrain_pairs, untrained_model

COLUMNS = ("report_to_image_at_5", "image_to_report_at_5", "zero_shot_auroc", "zero_shot_accuracy")
UNTRAINED = "random encoder"


@dataclass(frozen=True)
class Arm:
    """One row.

    Attributes:
        name: as in the table.
        method: changes of the recipe's method.
        whole: the whole batch in the graph at once.
        rate: factor of the learning rate.
    """

    name: str
    method: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    rate: float = 1.0


ARMS = (
    Arm("plain accumulation", {"keys": "batch"}),
    Arm("true batch", {"keys": "batch"}, whole=True),
    Arm("GradCache", {"keys": "grad_cache"}),
    Arm("GradCache, teacher's targets", {"keys": "grad_cache+ema_targets", "alpha": 0.4}),
    Arm("momentum keys, α = 0", {"keys": "ema", "alpha": 0.0}),
    Arm("momentum keys, α = 0.4", {"keys": "ema", "alpha": 0.4}),
    Arm("momentum keys, α = 0.8", {"keys": "ema", "alpha": 0.8}),
    Arm("fresh keys without gradient", {"keys": "ema", "alpha": 0.0, "horizon": 1.0}),
    Arm("momentum keys, α = 0, twice the rate", {"keys": "ema", "alpha": 0.0}, rate=2.0),
)
"""``fresh keys``: the teacher is the student of the step before (m ≈ 0), which tells stale keys from missing gradient."""


def arm_of(name: str) -> Arm:
    """The arm of a name.

    Raises:
        ConfigError: no such arm.
    """
    for arm in ARMS:
        if arm.name == name:
            return arm
    raise ConfigError(f"no row {name!r}; closest: {closest(name, [arm.name for arm in ARMS])}")


def run_arm(
    recipe_name: str, changes: Mapping[str, Any], arm: Arm, seed: int, cohort: Cohort, folder: Path
) -> dict[str, float]:
    """Train one row under one seed and measure it on the test split.

    Micro-batches are drawn at random, not by the length of their texts, so that the negatives of plain accumulation are no
    harder than those of the others.

    Args:
        recipe_name: to start from.
        changes: of that recipe, the same for all rows.
        arm: the row.
        seed: of weights and order.
        cohort: with splits.
        folder: of the rows; one that is done is read, one that was interrupted goes on.

    Raises:
        CheckpointError: a row that is done under other settings.
    """
    base = resolve_recipe(recipe_name, changes)
    fit = {"seed": seed, "lr": base.fit.lr * arm.rate, **({"accumulation": 1} if arm.whole else {})}
    recipe = resolve_recipe(recipe_name, merge(merge(changes, {"method": arm.method}), {"fit": fit}))
    place = folder / f"seed-{seed}" / arm.name.replace(" ", "-").replace("'", "")
    settings = recipe.model_dump(mode="json", exclude={"source"})
    if (done := _kept(place, settings)) is not None:
        return done
    result = pretrain_pairs(recipe, cohort, place, length_buckets=False)
    method = result.method
    assert isinstance(method, MSD)
    scores = {**scores_of(method.model, cohort.part("test")), "seconds": result.seconds}
    write_json(place / "scores.json", {"scores": scores, "settings": settings})
    return scores


def run_untrained(
    recipe_name: str, changes: Mapping[str, Any], seed: int, cohort: Cohort, folder: Path
) -> dict[str, float]:
    """The same figures for the weights that every row of this seed starts from."""
    recipe = resolve_recipe(recipe_name, merge(changes, {"fit": {"seed": seed}}))
    settings = recipe.model_dump(mode="json", exclude={"source"})
    place = folder / f"seed-{seed}" / "untrained"
    if (done := _kept(place, settings)) is not None:
        return done
    from mc_medical.tokenizers import train_tokenizer

    reports = list(dict.fromkeys(cohort.part("train").studies.reports))
    tokenizer = train_tokenizer(reports, recipe.method.text.vocabulary)
    scores = scores_of(untrained_model(recipe, tokenizer), cohort.part("test"))
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / "scores.json", {"scores": scores, "settings": settings})
    return scores


def scores_of(model: ImageTextModel, test: Cohort) -> dict[str, float]:
    """The columns of the table, without intervals."""
    found = measure(model, test, draws=0)
    assert found.retrieval is not None
    assert found.binary is not None
    assert found.classes is not None
    return {
        "report_to_image_at_5": found.retrieval.text_to_image.recall[5].value,
        "image_to_report_at_5": found.retrieval.image_to_text.recall[5].value,
        "zero_shot_auroc": found.binary.macro_auroc.value,
        "zero_shot_accuracy": found.classes.accuracy.value,
    }


def _kept(place: Path, settings: Mapping[str, Any]) -> dict[str, float] | None:
    path = place / "scores.json"
    if not path.is_file():
        return None
    content = read_json(path)
    if content.get("settings") != settings:
        raise CheckpointError(f"{place} holds this row under other settings: name another folder, or remove it")
    return content["scores"]
