"""Trained beside what it should beat: the features, the probes and the table that several verbs show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mc_core.cli import Status
from mc_core.errors import ConfigError, closest
from mc_wearables.cohort import TARGETS
from mc_wearables.data.segments import Segments
from mc_wearables.embedding import embed_segments, untrained_like
from mc_wearables.encoders import SignalEncoder
from mc_wearables.evaluation import Features
from mc_wearables.evaluation.comparison import Comparison, compare_features
from mc_wearables.evaluation.probes import Level
from mc_wearables.features import classical_features, detect_beats, heart_rate
from mc_wearables_app.runs import Data

TRAINED, UNTRAINED, RATE, CLASSICAL, ORACLE = (
    "trained",
    "untrained_encoder",
    "heart_rate_only",
    "classical_features",
    "generator_ceiling",
)
SIMULATED_TARGETS: dict[str, Level] = {
    "age@segment": "segment",
    "age": "participant",
    "sex": "participant",
    "af": "participant",
    "rhythm": "segment",
    "activity": "segment",
    "nothing": "participant",
}
"""What is read from a simulated cohort; ``nothing`` leaves no trace in the signal and must stay at chance."""


def features_of(
    data: Data, encoder: SignalEncoder, *, baselines: bool = True, seed: int = 0
) -> tuple[dict[str, Features], dict[str, Features]]:
    """(of training people, of people held out), by name."""
    sides = (data.train, data.test)
    with Status(f"embedding {sum(map(len, sides)):,} segments"):
        found = [{TRAINED: embed_segments(encoder, side)} for side in sides]
    if baselines:
        with Status("embedding with an untrained encoder"):
            fresh = untrained_like(encoder, data.train, seed=seed)
            for side, features in zip(sides, found, strict=True):
                features[UNTRAINED] = embed_segments(fresh, side)
        with Status("finding beats for the heart rate and classical features"):
            for side, features in zip(sides, found, strict=True):
                features |= _classical(side)
    if data.oracle is not None:
        for side, features, values in zip(sides, found, data.oracle, strict=True):
            features[ORACLE] = Features.of(values, side, names=data.oracle_names)
    return found[0], found[1]


def _classical(segments: Segments) -> dict[str, Features]:
    beats = detect_beats(segments)
    return {RATE: heart_rate(segments, beats=beats), CLASSICAL: classical_features(segments, beats=beats)}


def targets_of(segments: Segments, wanted: Sequence[str], level: str = "auto") -> dict[str, Level]:
    """Which labels to read, and at which level: a label that is constant for every person is one of persons."""
    if wanted:
        for name in wanted:
            if name not in segments.labels:
                raise ConfigError(
                    f"--target {name}: no such label; there are {closest(name, segments.labels) if segments.labels else 'none'}"
                )
    names = wanted or [name for name in segments.labels if name in TARGETS or _usable(segments, name)]
    return {name: _level(segments, name) if level == "auto" else level for name in names}  # type: ignore[misc]


def _usable(segments: Segments, name: str) -> bool:
    known = segments.labels[name][~np.isnan(segments.labels[name])]
    return len(np.unique(known)) > 1


def _level(segments: Segments, name: str) -> Level:
    column = segments.labels[name]
    known = ~np.isnan(column)
    people, first = np.unique(segments.participant[known], return_index=True)
    value = np.full(len(segments.participant_keys), np.nan)
    value[people] = column[known][first]
    return "participant" if (column[known] == value[segments.participant[known]]).all() else "segment"


def compared(
    features: tuple[Mapping[str, Features], Mapping[str, Features]],
    targets: Mapping[str, Level],
    *,
    draws: int,
    seed: int,
) -> Comparison:
    """Probes of all features, and re-identification of the embeddings and classical ones."""
    train, test = features
    identify = [name for name in (TRAINED, UNTRAINED, CLASSICAL) if name in train and not _holes(test[name])]
    with Status("probing"):
        return compare_features(train, test, targets, identify=identify, draws=draws, seed=seed)


def _holes(features: Features) -> bool:
    return bool(np.isnan(features.values).any())


_SHORT = {UNTRAINED: "untrained", RATE: "heart rate", CLASSICAL: "classical", ORACLE: "ceiling"}


def table(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a target a row, a kind of features a column, the interval behind each value."""
    names = list(found.probes) or list(found.identity)
    columns = ["", *(_SHORT.get(name, name) for name in names)]
    rows = []
    for target, level in found.levels.items():
        metric = "AUROC" if found.probes[names[0]][target].task == "classification" else "R²"
        cells = [_cell(*found.headline(name, target)[1:]) for name in names]
        rows.append(
            [f"{target.partition('@')[0]}, {metric} per {'segment' if level == 'segment' else 'person'}", *cells]
        )
    if found.identity:
        same = {name: result.top1 for name, result in found.identity.items()}
        cells = [_cell(t.value, t.low, t.high) if (t := same.get(name)) else "–" for name in names]
        rows.append(["who is it, top 1", *cells])
    return columns, rows


def _cell(value: float, low: float, high: float) -> str:
    """0.31 with its interval, short enough for five in a row."""
    return f"{value:.2f} {_short(low)}–{_short(high)}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)
