"""What growing is worth beside a small model that stays as it is and beside beginning anew, at equal updates, over seeds: digits
that arrive in four slices, told apart by words."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from mc_benchmarks.contract import Report, Row, environment
from mc_core.errors import CheckpointError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_core.samples.scenes import DIGITS
from mc_core.seeds import Spread
from mc_vision_language.data import ArrayImages, Pairs, text_key
from mc_vision_language.evaluation.zero_shot import class_embeddings
from mc_vision_language.growing.running import ARMS, run_growth
from mc_vision_language.growing.slices import Slices
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import resolve_recipe

_log = logging.getLogger("mc_core")
RECIPE = "growclip-laptop"
TEMPLATES = ("a photo of a {}", "the digit {}", "a handwritten {}", "{} on paper")
SHARES = (0.04, 0.06, 0.2, 0.7)
"""Of the digits to train on, slice after slice: 4, 10, 30 and 100 % have arrived."""
_VALIDATION, _TEST = 128, 597
SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        "image": {
            "image_size": 16,
            "patch_size": 4,
            "stem": "patch",  # with a convolution stem the small model tells all digits apart
            "mean": (0.3, 0.3, 0.3),
            "std": (0.38, 0.38, 0.38),
        },
        "text": {"vocabulary": 100, "max_length": 12, "pooling": "cls"},
        "width": 32,
        "head_width": 16,
        "image_part": {"blocks": 1, "heads": 2, "hidden": 64},
        "text_part": {"blocks": 1, "heads": 2, "hidden": 64},
        "shared_part": {"blocks": 1, "heads": 2, "hidden": 64},
        "dim": 32,
        "temperature": 0.07,
        "momentum": 0.9,
        "ids": True,
        "growth": {
            "search_share": 0.1,
            "evaluations": 2,
            "batches": 3,
            "blocks": 2,
            "heads": 0.5,
            "hidden": 0.5,
            "pairs": 6,
            "budget": 1.5,
            "beta": 0.5,
            "inherit": 1.0,
            "inherit_from": "supernet",
            "warmup": 0.1,
            "optimizer": "reset",
        },
    },
    "unit": "image",
    "augment": {"size": 16, "scale": (0.85, 1.0), "ratio": (0.9, 1.1), "flip": 0.0, "rand_augment": 0},
    "fit": {
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 2e-3,
        "betas": (0.9, 0.98),
        "weight_decay": 0.05,
        "decay_1d": False,
        "schedule": "cosine",
        "clip_norm": 1.0,
        "accumulation": 1,
        "device": "cpu",
        "stop_on_collapse": False,  # a row that learns nothing is a result here
    },
}
FIXED, ANEW, GROWN, SEARCHED = (
    "small, as it is",
    "begun anew with each slice",
    "grown to the budget, m = 1",
    "searched, m = 1",
)
ROWS: dict[str, str] = {
    FIXED: "fixed",
    GROWN: "largest, m=1",
    "grown to the budget, m = 0.9": "largest, m=0.9",
    "grown to the budget, m = 0.7": "largest, m=0.7",
    "grown to the budget, m = 0.5": "largest, m=0.5",
    "grown to the budget, m = 0": "largest, m=0",
    SEARCHED: "grown, m=1",
    "grown at random, m = 1": "random",
    ANEW: "restarting",
}
"""Name in the table → arm of :data:`mc_vision_language.growing.running.ARMS`."""
STEPS = ("after slice 1", "2", "3", "4")
BEFORE, SIZE, FLOPS, OVERHEAD = (
    "right after the last growth",
    "parameters, thousand",
    "training, GFLOP",
    "search and growth, share of training",
)
COLUMNS = [*STEPS, BEFORE, SIZE, FLOPS, OVERHEAD]


def digit_slices(seed: int) -> Slices:
    """The 1,797 digits of scikit-learn at 16 pixels with captions of four kinds; a seed draws which arrive when.

    The last third of the file is held out for testing. Pairs to choose sizes by are there from the beginning, never trained on.
    """
    pixels_NP, digit_N = (np.asarray(one, dtype=np.float64) for one in load_digits(return_X_y=True))
    count = len(pixels_NP)
    captions = tuple(
        TEMPLATES[row % len(TEMPLATES)].replace("{}", DIGITS[d]) for row, d in enumerate(digit_N.astype(int).tolist())
    )
    pixels = np.round(pixels_NP.reshape(-1, 1, 8, 8) / 16 * 255).astype(np.uint8).repeat(2, 2).repeat(2, 3).repeat(3, 1)
    splits = np.repeat(["train", "test"], [count - _TEST, _TEST]).astype("<U10")
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(count - _TEST)
    splits[order[:_VALIDATION]] = "validation"
    slice_of = np.zeros(count, dtype=np.int64)
    train = order[_VALIDATION:]
    edges = np.round(np.cumsum(SHARES)[:-1] * len(train))
    slice_of[train] = np.searchsorted(edges, np.arange(len(train)), side="right")
    pairs = Pairs(
        ArrayImages(pixels, location="digits"),
        captions,
        np.arange(count),
        image_ids=np.arange(count),
        text_ids=np.array([text_key(one) for one in captions]),
        splits=splits,
        location="digits",
    )
    return Slices(pairs, slice_of, tuple(f"slice-{number + 1}" for number in range(len(SHARES))))


def zero_shot_digits(model: VisionLanguageModel, pairs: Pairs) -> dict[str, float]:
    """Accuracy among ten words, each said in four ways."""
    test = pairs.part("test")
    words = np.array([next(DIGITS.index(word) for word in text.split() if word in DIGITS) for text in test.captions])
    assert isinstance(test.images, ArrayImages)
    images = model.encode_image(test.images.array)
    return {"accuracy": float(((images @ class_embeddings(model, DIGITS, TEMPLATES).T).argmax(1) == words).mean())}


def run_growclip_claims(*, seeds: int, steps: int, keep: Path, only_seed: int | None = None) -> Report | None:
    """Every row under every seed; those that are done are kept.

    Args:
        seeds: how many, each with weights, slices and order of its own.
        steps: optimizer steps for each slice.
        keep: where finished rows are kept.
        only_seed: compute the rows of this seed alone and report nothing, for several processes.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds) if only_seed is None else (only_seed,):
        slices = digit_slices(seed)
        for row, arm in ROWS.items():
            place = keep / f"growclip-claims-{steps}" / f"seed-{seed}" / arm.replace(" ", "-").replace(",", "")
            scores = _row(arm, slices, seed, steps, place)
            found.setdefault(row, []).append(scores)
            _log.info("seed %d, %s: %s", seed, row, {name: round(value, 3) for name, value in scores.items()})
    if only_seed is not None:
        return None
    given = (("seeds", seeds, 5), ("steps", steps, 120))
    report = Report(
        benchmark="growclip_claims" + ("" if steps == 120 else f"_{steps}"),
        command="uv run mc-benchmark growclip-claims" + "".join(f" --{n} {v}" for n, v, usual in given if v != usual),
        question=f"What growing is worth on digits that arrive in four slices, zero-shot accuracy, {seeds} seeds",
        settings=_plain({"seeds": seeds, "steps": steps, "settings": SETTINGS, "each": found}),
        environment=environment(),
        columns=COLUMNS,
        rows=[
            Row(
                name=row,
                values={
                    column: _shown(column, values)
                    if (values := [one[column] for one in each if column in one])
                    else None
                    for column in COLUMNS
                },
            )
            for row, each in found.items()
        ],
        reading=_reading(found, steps),
    )
    report.save()
    report.show()
    return report


def _shown(column: str, values: Sequence[float]) -> str:
    return f"{Spread.of(values):.0f}" if column == SIZE else f"{Spread.of(values):.3f}"


def _row(arm: str, slices: Slices, seed: int, steps: int, place: Path) -> dict[str, float]:
    """Train and measure, or read what was kept."""
    changes = merge(SETTINGS, {"fit": {"steps": steps, "seed": seed}})
    wanted = _plain({"arm": ARMS[arm].describe(), "recipe": changes})
    kept = place / "row.json"
    if kept.is_file():
        content = read_json(kept)
        if content["settings"] != wanted:
            raise CheckpointError(f"{place} holds this row under other settings: name another --keep, or remove it")
        return content["scores"]
    run = run_growth(
        resolve_recipe(RECIPE, changes),
        slices,
        place,
        arm=arm,
        measure=lambda model: zero_shot_digits(model, slices.pairs),
    )
    last = run.steps[-1]
    scores = {
        **{name: step["end"]["accuracy"] for name, step in zip(STEPS, run.steps, strict=True)},
        BEFORE: last["start"]["accuracy"],
        SIZE: last["parameters"] / 1e3,
        FLOPS: last["cumulative_training_flops"] / 1e9,
    }
    if shares := run.overhead():
        scores[OVERHEAD] = float(np.mean(shares))
    write_json(kept, {"scores": scores, "settings": wanted})
    return scores


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _reading(found: Mapping[str, Sequence[Mapping[str, float]]], steps: int) -> str:
    parts = []
    for more, less in (
        (GROWN, FIXED),
        (SEARCHED, FIXED),
        (GROWN, ANEW),
        ("grown to the budget, m = 0.9", GROWN),
        ("grown to the budget, m = 0.7", GROWN),
        (SEARCHED, "grown at random, m = 1"),
    ):
        gains = [
            f"{Spread.of([a[column] - b[column] for a, b in zip(found[more], found[less], strict=True)]):.3f}"
            for column in STEPS[1:]
        ]
        parts.append(f"{more} − {less}: {', '.join(gains)}")
    return (
        f"{steps} updates for each slice in every row, those of a search among them; 4, 10, 30 and 100 % of the digits have "
        "arrived. Accuracy among ten words on digits of the last third of the file, mostly of other writers. Differences within "
        f"a seed after slices 2, 3 and 4, mean ± deviation. {'; '.join(parts)}."
    )
