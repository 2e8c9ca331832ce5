"""What a trained encoder knows of simulated people held out, beside everything it should beat, over several cohorts.

Every seed is another cohort, other weights and other pairs. The recipes were tried on the cohort of seed 0, so seeds begin at 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.claims import HIGH, LOW, Scores, kept, mean_and_spread, over_seeds, trained_on_segments, value
from mc_benchmarks.contract import Report, Row
from mc_benchmarks.wearables_common import wearables_environment
from mc_core.recipes import merge
from mc_wearables import (
    Features,
    Segments,
    SignalEncoder,
    classical_features,
    embed_segments,
    heart_rate,
    reidentification,
    resolve_recipe,
    simulate_cohort,
    untrained_like,
)
from mc_wearables.data.segments import SignalKind
from mc_wearables.evaluation import dispersion_ratio
from mc_wearables.evaluation.comparison import HEADLINE
from mc_wearables.evaluation.probes import Level, probe
from mc_wearables.features import detect_beats

TRAINED, SEGMENT, UNTRAINED, RATE, CLASSICAL, CEILING = (
    "trained, participant pairs",
    "trained, segment pairs",
    "untrained encoder",
    "heart rate only",
    "classical features",
    "what the generator knows",
)
WHO, DISPERSION = "who is it, top 1", "dispersion"
TARGETS: dict[str, tuple[str, Level]] = {
    "age R², 1 segment": ("age", "segment"),
    "sex AUROC, person": ("sex", "participant"),
    "rhythm AUROC, 1 segment": ("rhythm", "segment"),
    "nothing AUROC, person": ("nothing", "participant"),
}
"""Column → label and level; ``nothing`` leaves no trace in the signal."""
PEOPLE, SEGMENTS = {"train": 600, "test": 300}, {"train": 12, "test": 10}
_DRAWS = 1000

Sides = tuple[Features, Features]
"""Features of training people and of people held out."""


@dataclass(frozen=True)
class CohortSize:
    """People and segments of each, on both sides."""

    people: Mapping[str, int]
    segments: Mapping[str, int]


def run_wearables_cohort(
    *,
    seeds: int,
    keep: Path,
    signals: Sequence[SignalKind] = ("ppg", "ecg"),
    people: int | None = None,
    steps: int | None = None,
) -> list[Report]:
    """Measure, save, show: means over seeds, and the intervals of the first one.

    Args:
        seeds: cohorts, numbered from 1.
        keep: where finished runs are kept.
        signals: PPG, ECG or both.
        people: to train on; half as many are held out. Default: 600.
        steps: optimizer steps; default: the recipe's.
    """
    size = CohortSize(PEOPLE if people is None else {"train": people, "test": people // 2}, SEGMENTS)
    runs: list[Scores] = []
    for seed in range(1, seeds + 1):
        for kind in signals:
            runs += _one_cohort(kind, seed, size, steps, keep / "wearables-cohort")
    return _reports(runs, signals, size, seeds, steps)


def _one_cohort(kind: SignalKind, seed: int, size: CohortSize, steps: int | None, folder: Path) -> list[Scores]:
    """Both kinds of pairs and all that they are compared with, on one cohort."""
    changes: dict[str, Any] = {"fit": {"seed": seed, "device": "cpu", "workers": 0, "stop_on_collapse": False}}
    if steps:
        changes = merge(changes, {"fit": {"steps": steps}})

    @cache
    def cohort() -> tuple[Segments, Segments, dict[str, Sides]]:
        encoder = resolve_recipe(f"ahms-{kind}-laptop").method.encoder
        train, test = (
            simulate_cohort(
                kind,
                participants=size.people[split],
                segments=size.segments[split],
                seconds=encoder.seconds,
                sampling_rate=encoder.sampling_rate,
                channels=encoder.channels,
                seed=seed,
                split=split,
            )
            for split in ("train", "test")
        )
        oracle = tuple(Features.of(side.oracle.segment, side.segments) for side in (train, test))
        return train.segments, test.segments, {CEILING: (oracle[0], oracle[1])}

    def work(pair: str) -> Scores:
        train, test, known = cohort()
        with tempfile.TemporaryDirectory() as run:
            encoder = trained_on_segments(recipes[pair], train, Path(run) / "run")
        name = TRAINED if pair == "participant" else SEGMENT
        features = {name: (embed_segments(encoder, train), embed_segments(encoder, test))}
        if pair == "participant":  # what it is compared with, once for each cohort
            features |= {**baselines(encoder, train, test, seed=seed), **known}
        return {f"{kind.upper()}: {row}": _scores(row, *sides, seed=seed) for row, sides in features.items()}

    recipes = {
        pair: resolve_recipe(f"ahms-{kind}-laptop", merge(changes, {"pairs": {"pair": pair}}))
        for pair in ("participant", "segment")
    }
    size_of = {"people": dict(size.people), "segments": dict(size.segments), "cohort": seed, "draws": _DRAWS}
    return [
        kept(folder, f"{kind}-{pair}-{seed}", {**recipe.model_dump(mode="json"), **size_of}, lambda p=pair: work(p))
        for pair, recipe in recipes.items()
    ]


def baselines(
    encoder: SignalEncoder, train: Segments, test: Segments, *, seed: int, calibration: Segments | None = None
) -> dict[str, Sides]:
    """Features of the untrained encoder, the heart rate, and the classical ones.

    Args:
        encoder: the trained one.
        train: segments the probes are fitted on.
        test: segments of people held out.
        seed: of the untrained weights.
        calibration: segments that the trained encoder was trained on, where these are others.
    """
    fresh = untrained_like(encoder, train if calibration is None else calibration, seed=seed)
    beats = detect_beats(train), detect_beats(test)
    return {
        UNTRAINED: (embed_segments(fresh, train), embed_segments(fresh, test)),
        RATE: (heart_rate(train, beats=beats[0]), heart_rate(test, beats=beats[1])),
        CLASSICAL: (classical_features(train, beats=beats[0]), classical_features(test, beats=beats[1])),
    }


def for_identity(name: str, train: Features, test: Features) -> Features:
    """Held-out features among which a cosine finds neighbours.

    Embeddings stay as they are. Classical ones and the generator's are standardised by the training people, unknown ones zero.
    One number has no direction, so a heart rate becomes a soft histogram: halves are compared by how their rates are spread.
    """
    if name == RATE:
        centre = np.arange(30.0, 211.0, 5.0)
        bumps = np.exp(-0.5 * ((test.values - centre) / 5.0) ** 2)
        return replace(test, values=np.nan_to_num(bumps).astype(np.float32), names=())
    return standardised(train, test) if name in (CLASSICAL, CEILING) else test


def standardised(train: Features, test: Features) -> Features:
    """``test`` by mean and deviation of what is known of ``train``; what is unknown becomes the mean."""
    mean, deviation = np.nanmean(train.values, axis=0), np.nanstd(train.values, axis=0)
    scaled = (test.values - mean) / np.where(deviation > 0, deviation, 1)
    return replace(test, values=np.nan_to_num(scaled).astype(np.float32))


def _scores(name: str, train: Features, test: Features, *, seed: int) -> dict[str, float]:
    """Every column, the interval's ends beside it."""
    found: dict[str, float] = {}
    for column, (label, level) in TARGETS.items():
        result = probe(train, test, label, level=level, draws=_DRAWS, seed=seed)
        interval = result.metrics[HEADLINE[result.task]]
        found |= {column: interval.value, column + LOW: interval.low, column + HIGH: interval.high}
    who, _ = reidentification(for_identity(name, train, test), draws=_DRAWS, seed=seed)
    found |= {WHO: who.value, WHO + LOW: who.low, WHO + HIGH: who.high}
    spread = test if name in (TRAINED, SEGMENT, UNTRAINED) else standardised(train, test)
    return {**found, DISPERSION: dispersion_ratio(spread)}


def _reports(
    runs: Sequence[Scores], signals: Sequence[SignalKind], size: CohortSize, seeds: int, steps: int | None
) -> list[Report]:
    columns = [*TARGETS, WHO, DISPERSION]
    rows = over_seeds(runs)
    order = (TRAINED, SEGMENT, UNTRAINED, RATE, CLASSICAL, CEILING)
    rows = [next(r for r in rows if r.name == f"{kind.upper()}: {name}") for kind in signals for name in order]
    settings = {"people": dict(size.people), "segments": dict(size.segments), "seeds": seeds, "steps": steps}
    told = f"{size.people['train']} simulated people to train on, {size.people['test']} held out"
    command = "uv run mc-benchmark wearables-cohort"
    command += f" --seeds {seeds}" if seeds != 3 else ""
    command += "".join(f" --signals {kind}" for kind in signals) if len(signals) < 2 else ""
    command += f" --steps {steps}" if steps else ""
    means = Report(
        benchmark="wearables_cohort",
        command=command,
        question=f"{told}: what do frozen features know? Mean ± sd over {seeds} cohorts, each with weights and pairs of its own",
        settings={**settings, "runs": list(runs)},
        environment=wearables_environment(),
        columns=columns,
        rows=[Row(name=row.name, values={c: row.values[c] for c in columns}) for row in mean_and_spread(rows)],
        reading=" ".join(_directions(rows, kind.upper()) for kind in signals)
        + " Dispersion: spread within a person over distance between people, less is tighter; of features that are no "
        "embeddings after standardising. Simulated people: no figure says anything about health.",
    )
    first = {name: found for run in runs[: 2 * len(signals)] for name, found in run.items()}
    intervals = Report(
        benchmark="wearables_cohort_intervals",
        command=command,
        question=f"{told}, cohort 1: 95 % intervals over the people held out",
        settings=settings,
        environment=wearables_environment(),
        columns=[*TARGETS, WHO],
        rows=[
            Row(
                name=row.name,
                values={c: _cell(*_interval(first[row.name], c)) for c in (*TARGETS, WHO)},
            )
            for row in rows
        ],
        reading=" ".join(_apart(first, kind.upper()) for kind in signals),
    )
    for report in (means, intervals):
        report.save()
        report.show()
    return [means, intervals]


def _directions(rows: Sequence[Row], kind: str) -> str:
    """On which columns participant pairs are ahead, in the mean over seeds."""
    columns = [c for c in (*TARGETS, WHO) if not c.startswith("nothing")]

    def of(name: str, column: str) -> float:
        return value(rows, f"{kind}: {name}", column)

    parts = []
    for other in (UNTRAINED, RATE, CLASSICAL, SEGMENT):
        ahead = [c for c in columns if of(TRAINED, c) > of(other, c)]
        behind = [c for c in columns if c not in ahead]
        text = f"above {_short(other)} on {len(ahead)} of {len(columns)}"
        parts.append(text + (f" (not {', '.join(_stem(c) for c in behind)})" if behind else ""))
    return f"{kind}: participant pairs are " + ", ".join(parts) + "."


def _apart(found: Mapping[str, Mapping[str, float]], kind: str) -> str:
    """Which intervals of the trained encoder lie wholly above those of others, and whether ``nothing`` stays at chance."""
    columns = [c for c in (*TARGETS, WHO) if not c.startswith("nothing")]
    trained = found[f"{kind}: {TRAINED}"]
    parts = []
    for other in (UNTRAINED, RATE, CLASSICAL):
        above = [c for c in columns if trained[c + LOW] > found[f"{kind}: {other}"][c + HIGH]]
        names = f" ({', '.join(_stem(c) for c in above)})" if above else ""
        parts.append(f"{_short(other)} on {len(above)} of {len(columns)}{names}")
    nothing = next(c for c in TARGETS if c.startswith("nothing"))
    _, low, high = _interval(trained, nothing)
    chance = f"{'holds' if low <= 0.5 <= high else 'does not hold'} 0.5"
    return f"{kind}: the interval of participant pairs lies wholly above that of {', '.join(parts)}; that of nothing {chance}."


def _interval(found: Mapping[str, float], column: str) -> tuple[float, float, float]:
    return found[column], found[column + LOW], found[column + HIGH]


def _cell(middle: float, low: float, high: float) -> str:
    return f"{middle:.2f} [{low:.2f} {high:.2f}]"


def _stem(column: str) -> str:
    return column.split(",")[0].removesuffix(" AUROC").removesuffix(" R²")


def _short(name: str) -> str:
    return {SEGMENT: "segment pairs"}.get(name, "the " + name)
