"""What Astrea's parts are worth on annotated digit scenes, over seeds: each expert away or alone, the ways to fuse them, the
momentum queue, pre-alignment and the shortcut; with all captions, and in regimes where pre-alignment may pay. And what the ways to
fuse experts are worth that have learned from different pictures.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_core.recipes import merge
from mc_core.samples.scenes import shown_together
from mc_core.seeds import Spread
from mc_vision_language.data.annotated import AnnotatedPairs, Boxes
from mc_vision_language.data.class_masks import UNKNOWN, ArrayMasks
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.staged.ablation import FULL, Arm, arms_of, run_arm
from mc_vision_language.staged.sample import staged_sample

_log = logging.getLogger("mc_core")

RECIPE = "astrea-laptop"
FIT: dict[str, Any] = {
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 2e-3,
    "betas": [0.9, 0.98],
    "weight_decay": 0.05,
    "decay_1d": False,
    "schedule": "cosine",
    "warmup_epochs": 0.25,
    "clip_norm": 1.0,
    "device": "cpu",
}
ROUTING: dict[str, Any] = {
    "router": {"per": "token", "floor": 0.05, "lr_scale": 0.1},
    "balance": {"kind": "loss", "loss": 0.01, "z": 0.001},
}
_SMALL_LANGUAGE: dict[str, Any] = {"hidden_size": 96, "heads": 4, "layers": 2, "positions": 64, "answer_length": 16}
SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        "experts": [
            {"kind": "classification", "image_size": 32, "family": "resnet", "width": 24, "stages": 3},
            {
                "kind": "captioning",
                "image_size": 32,
                "family": "resnet",
                "width": 32,
                "stages": 3,
                "lr_scale": 0.25,
                "captioning": {"language": {**_SMALL_LANGUAGE, "question_length": 8}},
            },
            {
                "kind": "detection",
                "image_size": 32,
                "family": "resnet",
                "width": 20,
                "stages": 3,
                "levels": 2,
                "detection": {"width": 48, "depth": 1, "scale": 0.35},
            },
            {
                "kind": "segmentation",
                "image_size": 32,
                "family": "convnext",
                "width": 24,
                "stages": 3,
                "levels": 3,
                "segmentation": {"width": 48, "depth": 1, "upsample": 1, "background": 0.3},
            },
        ],
        "image": {"image_size": 32},
        "grid": 4,
        "width": 64,
        "dim": 64,
        "text": {
            "text_layers": 1,
            "hidden_size": 64,
            "heads": 4,
            "vocabulary": 200,
            "max_length": 16,
            "dropout": 0.0,
        },
        "language": {**_SMALL_LANGUAGE, "question_length": 12},
        **ROUTING,
        "momentum": 0.98,
        "queue_size": 512,
        "stages": {"experts": {"steps": 400, "lr": 4e-3}, "instruct": {"steps": 600, "lr": 2e-3}},
    },
    "augment": {"size": 32, "resize": "squash", "flip": 0.0, "rand_augment": 0},
    "fit": FIT,
}
_ALIGNED = {"prealign": {"mode": "parallel"}}
ONE_BY_ONE, TOGETHER, SHORTCUT = "pre-aligned one by one", "pre-aligned together", "with shortcut"
BOTH = "pre-aligned together, with shortcut"
BOTH_NO_QUEUE = "no queue, pre-aligned together, with shortcut"
UNIFORM, CONCAT, NO_QUEUE, NO_MOMENTUM = "uniform weights", "channels side by side", "no queue", "no momentum contrast"
ONLY = "only "
COLUMNS = {
    "mean_recall": "R_m, mean of six recalls",
    "image_to_text_at_1": "image → text at 1",
    "text_to_image_at_1": "text → image at 1",
    "least_weight": "least mean weight of an expert",
}


@dataclass(frozen=True)
class Regime:
    """How much there is to learn from.

    Attributes:
        name: before each row; empty for the whole sample.
        captions: pictures with captions; experts are trained on all.
        share: of the updates.
        rows: which; None: all.
    """

    name: str
    captions: int | None = None
    share: float = 1.0
    rows: tuple[str, ...] | None = None


_FEW = (FULL, UNIFORM, CONCAT, NO_QUEUE, ONE_BY_ONE, TOGETHER, SHORTCUT, BOTH, BOTH_NO_QUEUE)
REGIMES = (
    Regime(""),
    Regime("a quarter of the updates: ", share=0.25, rows=_FEW),
    Regime("a tenth of the captions: ", captions=400, rows=_FEW),
    Regime("four times the updates: ", share=4.0, rows=(FULL, UNIFORM, CONCAT)),
)


APART = Regime("", rows=(FULL, "only detection", "only segmentation", UNIFORM, CONCAT))
"""Rows of experts that have learned from different pictures."""
_DARK = shown_together("white")  # inks of dark grounds


def claimed_arms() -> tuple[Arm, ...]:
    """The rows of the ablation, and pre-alignment with the shortcut."""
    both = {**_ALIGNED, "residual": {"probability": 0.5}}
    return (*arms_of(), Arm(BOTH, both), Arm(BOTH_NO_QUEUE, {**both, "queue_size": 0}))


def base_recipe(steps: int) -> Recipe[Any]:
    """The settings of all rows."""
    return resolve_recipe(RECIPE, merge(SETTINGS, {"fit": {"steps": steps}}))


def fewer_captions(whole: AnnotatedPairs, count: int | None) -> AnnotatedPairs:
    """The first training pictures, and all of the other splits."""
    if count is None:
        return whole
    train = np.flatnonzero(whole.pairs.splits == "train")[:count]
    return whole.take(np.concatenate([train, np.flatnonzero(whole.pairs.splits != "train")]))


def apart(whole: AnnotatedPairs) -> AnnotatedPairs:
    """The same pictures; those with dark grounds have captions and boxes alone, those with light ones classes and masks.

    Args:
        whole: scenes of digits with all annotations.
    """
    pairs, boxes, masks, labels = whole.pairs, whole.boxes, whole.masks, whole.labels_known
    assert boxes is not None
    assert isinstance(masks, ArrayMasks)
    assert labels is not None
    dark = np.zeros(len(whole), dtype=bool)
    dark[pairs.image_of[[any(ink in text.split() for ink in _DARK) for text in pairs.captions]]] = True
    told = dark[pairs.image_of]
    shown = replace(
        pairs,
        captions=tuple(text for text, kept in zip(pairs.captions, told, strict=True) if kept),
        image_of=pairs.image_of[told],
        text_ids=pairs.text_ids[told],
    )
    found = [boxes.all_boxes[first:last] for first, last in itertools.pairwise(boxes.box_offsets)]
    classes = [boxes.box_class[first:last] for first, last in itertools.pairwise(boxes.box_offsets)]
    some = Boxes.of(
        [one.tolist() if kept else None for one, kept in zip(found, dark, strict=True)],
        [one.tolist() if kept else [] for one, kept in zip(classes, dark, strict=True)],
    )
    unseen = np.where(dark[:, None, None], UNKNOWN, masks.array)
    return replace(
        whole, pairs=shown, boxes=some, masks=ArrayMasks(unseen), labels_known=labels & ~dark, questions=None
    )


def run_astrea_claims(
    *, seeds: int, steps: int, keep: Path, only_seed: int | None = None, experts_apart: bool = False
) -> Report | None:
    """Scenes, experts, weights and order of its own for each seed; every row on each. Rows that are done are kept.

    Experts that learned from different pictures are held to other writers in each seed: few seeds with the same three would say
    little of all.

    Args:
        seeds: how many.
        steps: updates of a row, pre-alignment and joint training together.
        keep: where finished rows are kept.
        only_seed: train the rows of this seed alone and report nothing, for several processes.
        experts_apart: experts learn from different pictures, see :func:`apart`; fewer rows.
    """
    found: dict[str, list[dict[str, float]]] = {}
    name = "astrea_apart" if experts_apart else "astrea_claims"
    regimes = (APART,) if experts_apart else REGIMES
    for seed in range(seeds) if only_seed is None else (only_seed,):
        whole = staged_sample(seed=seed, held_out=seed % 5 if experts_apart else 0)
        learned = apart(whole) if experts_apart else whole
        for number, regime in enumerate(regimes):
            data = fewer_captions(whole, regime.captions)
            base = base_recipe(max(1, round(steps * regime.share)))
            for arm in claimed_arms():
                if regime.rows is not None and arm.name not in regime.rows:
                    continue
                place = keep / name.replace("_", "-") / f"regime-{number}"
                scores = run_arm(base, arm, seed, data, place, expert_data=learned)
                found.setdefault(regime.name + arm.name, []).append(scores)
                _log.info("seed %d, %s%s: R_m %.3f", seed, regime.name, arm.name, scores["mean_recall"])
    if only_seed is not None:
        return None
    report = Report(
        benchmark=name,
        command=f"uv run mc-benchmark {name.replace('_', '-')}"
        + "".join(f" --{n} {v}" for n, v, usual in (("seeds", seeds, 5), ("steps", steps, 1000)) if v != usual),
        question="What the ways to fuse experts are worth that have learned from different scenes of two digits, "
        f"{seeds} seeds"
        if experts_apart
        else f"What Astrea's parts are worth on scenes of two digits with four kinds of annotations, {seeds} seeds",
        settings={
            "seeds": seeds,
            "steps": steps,
            "settings": SETTINGS,
            "each": {row: [{c: round(v, 4) for c, v in one.items()} for one in rows] for row, rows in found.items()},
        },
        environment=environment(),
        columns=list(COLUMNS.values()),
        rows=[
            Row(name=row, values={title: _spread(rows, column) for column, title in COLUMNS.items()})
            for row, rows in found.items()
        ],
        reading=_reading(found, steps, regimes, _TOLD_APART if experts_apart else ""),
    )
    report.save()
    report.show()
    return report


def _spread(rows: Sequence[Mapping[str, float]], column: str) -> str | None:
    if column == "least_weight":
        weights = [[v for name, v in one.items() if name.startswith("weight/")] for one in rows]
        return f"{Spread.of([min(one) for one in weights]):.3f}" if all(weights) else None
    return f"{Spread.of([one[column] for one in rows]):.3f}"


def best_single(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str | None:
    """The row of one expert whose mean is highest."""
    alone = {row: np.mean([one["mean_recall"] for one in rows]) for row, rows in found.items() if row.startswith(ONLY)}
    return max(alone, key=lambda row: alone[row]) if alone else None


_TOLD_APART = (
    "The captioning and the detection expert have learned from scenes on dark grounds alone, the classification and the "
    "segmentation expert from those on light grounds; what fuses them learns from all. "
    "Each seed holds out another fifth of the scans. "
)


def _reading(
    found: Mapping[str, Sequence[Mapping[str, float]]], steps: int, regimes: Sequence[Regime], before: str
) -> str:
    pairs = [(FULL, less) for less in (best_single(found), UNIFORM, CONCAT, NO_QUEUE, NO_MOMENTUM) if less is not None]
    pairs += [(FULL, row) for row in found if row.startswith("without ")]
    pairs += [(more, FULL) for more in (ONE_BY_ONE, TOGETHER, SHORTCUT, BOTH)] + [(BOTH_NO_QUEUE, NO_QUEUE)]
    parts = []
    for regime in regimes:
        said = []
        for more, less in pairs:
            if regime.name + more not in found or regime.name + less not in found:
                continue
            both = zip(found[regime.name + more], found[regime.name + less], strict=True)
            gain = Spread.of([a["mean_recall"] - b["mean_recall"] for a, b in both])
            sd = "" if gain.sd is None else f" ± {gain.sd:.3f}"
            said.append(f"{more} − {less} {gain.mean:+.3f}{sd}{_every(found, regime, more, less) if before else ''}")
        parts.append(f"{regime.name or ('' if before else 'all captions, all updates: ')}{', '.join(said)}")
    aligned = "" if before else ", of which pre-alignment takes a quarter"
    return (
        f"{before}{steps} updates of batches of 32 in each row{aligned}; the same frozen experts in all rows of a seed. Scenes of "
        "digits of other writers held out, one gallery. Differences of R_m within a seed, mean ± deviation. "
        f"{'; '.join(parts)}."
    )


def _every(found: Mapping[str, Sequence[Mapping[str, float]]], regime: Regime, more: str, less: str) -> str:
    """In how many seeds a row is above another."""
    both = list(zip(found[regime.name + more], found[regime.name + less], strict=True))
    return f" (above in {sum(a['mean_recall'] > b['mean_recall'] for a, b in both)} of {len(both)} seeds)"
