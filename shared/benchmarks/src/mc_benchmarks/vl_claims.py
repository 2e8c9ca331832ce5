"""What each part of ALBEF is worth on digits with captions of their measured features, right or partly wrong, over seeds."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from mc_benchmarks.contract import Report, Row, environment
from mc_core.recipes import merge
from mc_core.seeds import Spread
from mc_vision_language.ablation import (
    ARMS,
    COLUMNS,
    DOWNSTREAM,
    STRENGTHS,
    UNTRAINED,
    run_arm,
    run_downstream,
    run_untrained,
    strength_arm,
)
from mc_vision_language.data import ArrayImages, Pairs, text_key

_log = logging.getLogger("mc_core")

RECIPE = "albef-laptop"
SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        "image": {
            "image_size": 16,
            "patch_size": 4,
            "width": 64,
            "depth": 2,
            "heads": 4,
            "stem": "convolution",
            "mean": (0.3, 0.3, 0.3),
            "std": (0.38, 0.38, 0.38),
        },
        "text": {
            "hidden_size": 64,
            "heads": 4,
            "text_layers": 1,
            "fusion_layers": 1,
            "max_length": 8,
            "dropout": 0.0,
            "vocabulary": 100,
        },
        "dim": 64,
        "queue_size": 512,
        "momentum": 0.99,
        "alpha": 0.4,
        "alpha_ramp_epochs": 1.0,
        "temperature": 0.07,
        "mask_rate": 0.15,
        "itc": 1.0,
        "itm": 1.0,
        "mlm": 1.0,
        "teacher_train_mode": False,
        "ids": True,
    },
    "unit": "image",
    "augment": {"size": 16, "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0, "rand_augment": 0},
    "fit": {
        "batch_size": 64,
        "optimizer": "adamw",
        "lr": 2e-3,
        "weight_decay": 0.02,
        "decay_1d": False,
        "schedule": "cosine",
        "warmup_epochs": 2,
        "decay_to": 0.01,
        "clip_norm": 1.0,
        "accumulation": 1,
        "device": "cpu",
    },
}
K = 16
TABLE = {
    "contrast_mean": "contrast, mean of six recalls",
    "contrast_image_to_text_at_1": "contrast, image → text at 1",
    "reranked_image_to_text_at_1": f"best {K} ranked again, image → text at 1",
    "reranked_mean": f"best {K} ranked again, mean",
    "matching_mean": "matching alone, mean",
}
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_INKS, _SLANTS = ("light", "medium", "bold"), ("left", "straight", "right")
_TEST = 360


def captioned_digits() -> Pairs:
    """The 1,797 digits of scikit-learn at 16 pixels, each with a caption of what was measured: ink, which digit, slant.

    Equal captions say the same thing. The last pictures of the file, mostly of other writers, are held out.
    """
    pixels_NP, digit_N = load_digits(return_X_y=True)
    ink_NHW = pixels_NP.reshape(-1, 8, 8) / 16
    y, x = np.mgrid[:8, :8]
    mass = ink_NHW.sum((1, 2))
    dx = x - ((ink_NHW * x).sum((1, 2)) / mass)[:, None, None]
    dy = y - ((ink_NHW * y).sum((1, 2)) / mass)[:, None, None]
    slant = (ink_NHW * dx * dy).sum((1, 2)) / (ink_NHW * dy**2).sum((1, 2))
    inks, slants = _third(ink_NHW.mean((1, 2))), _third(slant)
    captions = tuple(
        f"a {_INKS[i]} {_WORDS[d]} leaning {_SLANTS[s]}" for i, d, s in zip(inks, digit_N, slants, strict=True)
    )
    pixels = np.round(ink_NHW * 255).astype(np.uint8).repeat(2, 1).repeat(2, 2)[:, None].repeat(3, 1)
    count = len(pixels)
    return Pairs(
        ArrayImages(pixels, location="digits"),
        captions,
        np.arange(count),
        image_ids=np.arange(count),
        text_ids=np.array([text_key(one) for one in captions]),
        splits=np.repeat(["train", "test"], [count - _TEST, _TEST]),
        location="digits",
    )


def _third(values: np.ndarray) -> np.ndarray:
    return np.digitize(values, np.quantile(values, [1 / 3, 2 / 3]))


def run_vl_claims(
    *,
    seeds: int,
    keep: Path,
    steps: int,
    noises: tuple[float, ...] = (0.0, 0.4),
    downstream: bool = False,
    only_seed: int | None = None,
) -> Report | None:
    """Weights, order and wrong captions of its own for each seed; every row on each.

    Args:
        seeds: how many.
        keep: where finished rows are kept.
        steps: optimizer steps of each row.
        noises: shares of wrong training captions.
        downstream: also train the last row further for retrieval, without and with momentum distillation.
        only_seed: train the rows of this seed alone and report nothing: for several processes.
    """
    changes = merge(SETTINGS, {"fit": {"steps": steps}})
    folder = keep / "vl-claims"
    found: dict[tuple[float, str], list[dict[str, float]]] = {}
    for seed in range(seeds) if only_seed is None else (only_seed,):
        pairs = captioned_digits()
        found.setdefault((0.0, UNTRAINED), []).append(run_untrained(RECIPE, changes, seed, pairs, folder, k=K))
        for noise in noises:
            further = DOWNSTREAM if downstream else ()
            for arm in (*ARMS, *further, *(map(strength_arm, STRENGTHS) if noise else ())):
                train = run_downstream if arm in further else run_arm
                scores = train(RECIPE, changes, arm, seed, pairs, folder, noise=noise, k=K)
                found.setdefault((noise, arm.name), []).append(scores)
                said = ", ".join(f"{c} {scores[c]:.3f}" for c in COLUMNS)
                _log.info("seed %d, %g wrong, %s: %s", seed, noise, arm.name, said)
    if only_seed is not None:
        return None
    report = Report(
        benchmark="vl_claims",
        command="uv run mc-benchmark vl-claims"
        + "".join(f" --{n} {v}" for n, v, usual in (("seeds", seeds, 5), ("steps", steps, 400)) if v != usual)
        + (" --downstream" if downstream else ""),
        question=f"What each part of ALBEF is worth on captioned digits, with right and with wrong captions, {seeds} seeds",
        settings={
            "seeds": seeds,
            "recipe": RECIPE,
            "steps": steps,
            "each": {
                f"{_row(*key)}": [{c: round(r[c], 4) for c in COLUMNS} for r in rows] for key, rows in found.items()
            },
        },
        environment=environment(),
        columns=list(TABLE.values()),
        rows=[
            Row(name=_row(*key), values={TABLE[c]: f"{Spread.of([r[c] for r in rows]):.3f}" for c in COLUMNS})
            for key, rows in found.items()
        ],
        reading=_reading(found, noises),
    )
    report.save()
    report.show()
    return report


def _row(noise: float, name: str) -> str:
    return f"{noise:.0%} wrong: {name}" if noise else name


_PAIRS = (
    ("MLM + ITM + ITC", "contrast_mean", "MLM + ITM", "matching_mean", "contrast beside matching alone"),
    ("MLM + ITM + ITC", "contrast_mean", "ITC alone", "contrast_mean", "what matching and words add to contrast"),
    (
        "MLM + ITM + ITC",
        "reranked_image_to_text_at_1",
        "MLM + ITM + ITC",
        "contrast_image_to_text_at_1",
        "ranking again, R@1, uniform negatives",
    ),
    (
        "+ hard negatives",
        "reranked_image_to_text_at_1",
        "+ hard negatives",
        "contrast_image_to_text_at_1",
        "ranking again, R@1, hard negatives",
    ),
    ("+ hard negatives", "reranked_mean", "MLM + ITM + ITC", "reranked_mean", "hard negatives, ranked again"),
    ("+ hard negatives", "matching_mean", "MLM + ITM + ITC", "matching_mean", "hard negatives, matching alone"),
    ("+ MoD in ITC", "contrast_mean", "+ hard negatives", "contrast_mean", "MoD in ITC, contrast"),
    ("+ MoD in ITC", "reranked_mean", "+ hard negatives", "reranked_mean", "MoD in ITC, ranked again"),
    ("+ MoD in MLM", "reranked_mean", "+ MoD in ITC", "reranked_mean", "MoD in MLM, ranked again"),
    ("fine-tuned", "contrast_mean", "+ MoD in MLM", "contrast_mean", "fine-tuning, contrast"),
    ("fine-tuned", "reranked_mean", "+ MoD in MLM", "reranked_mean", "fine-tuning, ranked again"),
    ("+ MoD downstream", "contrast_mean", "fine-tuned", "contrast_mean", "MoD downstream, contrast"),
    ("+ MoD downstream", "reranked_mean", "fine-tuned", "reranked_mean", "MoD downstream, ranked again"),
)


def _reading(found: dict[tuple[float, str], list[dict[str, float]]], noises: tuple[float, ...]) -> str:
    parts = []
    for noise in noises:
        shown = []
        for more, column, less, other, what in _PAIRS:
            if (noise, more) not in found:  # a row that was not asked for
                continue
            both = zip(found[noise, more], found[noise, less], strict=True)
            gain = Spread.of([a[column] - b[other] for a, b in both])
            shown.append(f"{what} {gain.mean:+.3f}" + ("" if gain.sd is None else f" ± {gain.sd:.3f}"))
        parts.append(
            f"{f'with {noise:.0%} of the captions wrong' if noise else 'with right captions'}: {', '.join(shown)}"
        )
    return "Differences within a seed, mean ± deviation. " + "; ".join(parts) + "."
