"""Trained beside what it should beat: the features, the probes and the table that several verbs show."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from mc_core.cli import Status
from mc_core.errors import ConfigError, DataError, closest
from mc_wearables.data.segments import Segments
from mc_wearables.embedding import embed_segments, untrained_like
from mc_wearables.encoders import SignalEncoder
from mc_wearables.evaluation import Features
from mc_wearables.evaluation.comparison import DEMOGRAPHIC_LABELS, Comparison, compare_features
from mc_wearables.evaluation.probes import FOLDS, Level
from mc_wearables.features import classical_features, detect_beats, heart_rate
from mc_wearables_app.runs import Data

_log = logging.getLogger("mc_core")

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


def targets_of(data: Data, wanted: Sequence[str], level: str = "auto") -> dict[str, Level]:
    """Which labels to read, and at which level: a label that is constant for every person is one of persons.

    Without ``wanted`` all that can be read: that differ among people held out, and among five or more training people.

    Raises:
        ConfigError: a label wanted is none.
    """
    found = data.test.targets
    if not wanted:
        names = _readable(data)
        if missed := [name for name in found if name not in names]:
            _log.info("labels left out, too few people or all the same: %s", ", ".join(missed))
    else:
        names = [part for name in wanted for part in _named(name, found)]
    return {name: _level(data.test, name) if level == "auto" else level for name in names}  # type: ignore[misc]


def _readable(data: Data) -> list[str]:
    return [name for name in data.test.targets if _usable(data, name)]


def _named(wanted: str, columns: Mapping[str, np.ndarray]) -> list[str]:
    """A label by its name, or all classes of one."""
    if wanted in columns:
        return [wanted]
    if classes := [name for name in columns if name.startswith(f"{wanted}=")]:
        return classes
    raise ConfigError(f"--target {wanted}: no such label; there are {closest(wanted, columns) if columns else 'none'}")


def _usable(data: Data, name: str) -> bool:
    for side, least in ((data.train, FOLDS), (data.test, 2)):
        column = side.targets.get(name)
        if column is None:
            return False
        known = ~np.isnan(column)
        if len(np.unique(column[known])) < 2 or len(np.unique(side.participant[known])) < least:
            return False
    return True


def _level(segments: Segments, name: str) -> Level:
    column = segments.targets[name]
    known = ~np.isnan(column)
    people, first = np.unique(segments.participant[known], return_index=True)
    value = np.full(len(segments.participant_keys), np.nan)
    value[people] = column[known][first]
    return "participant" if (column[known] == value[segments.participant[known]]).all() else "segment"


def check_measurable(data: Data) -> None:
    """Raise DataError when nothing could be said of the people held out: better before training than after."""
    if not _in_halves(data.test) and not _readable(data):
        people = len(np.unique(data.test.participant))
        raise DataError(
            f"{data.name}: of the {people} people held out fewer than two have two segments, and no label can be probed: "
            "nothing could be measured; ingest more recordings, or shorter segments with --seconds"
        )


def _in_halves(segments: Segments) -> bool:
    """Whether re-identification is possible: two people have two segments."""
    return int((np.unique(segments.participant, return_counts=True)[1] >= 2).sum()) >= 2


def compared(
    data: Data,
    features: tuple[Mapping[str, Features], Mapping[str, Features]],
    targets: Mapping[str, Level],
    *,
    draws: int,
    seed: int,
) -> Comparison:
    """Probes of all features, and re-identification of the embeddings and classical ones.

    Demographics stand beside baselines of real people; of simulated ones the generator's ceiling does.
    """
    train, test = features
    identify = [name for name in (TRAINED, UNTRAINED, CLASSICAL) if name in train and not _holes(test[name])]
    known = DEMOGRAPHIC_LABELS if data.store is not None and len(train) > 1 else ()
    with Status("probing"):
        return compare_features(
            train,
            test,
            targets,
            identify=identify if _in_halves(data.test) else [],
            demographics=known,
            draws=draws,
            seed=seed,
        )


def _holes(features: Features) -> bool:
    return bool(np.isnan(features.values).any())


_SHORT = {UNTRAINED: "untrained", RATE: "heart rate", CLASSICAL: "classical", ORACLE: "ceiling"}
_METRIC = {"r2": "R²", "mae": "MAE", "auroc": "AUROC", "partial_auroc": "AUROC up to 10 % false", "auprc": "AUPRC"}


def table(found: Comparison, *, every: bool = False) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: a target a row, a kind of features a column, the interval behind each value.

    Args:
        found: probes.
        every: a row for every metric, not for the first one of each target alone.
    """
    names = list(found.probes) or list(found.identity)
    columns = ["", *(_SHORT.get(name, name) for name in names)]
    rows = []
    for target, level in found.levels.items():
        metrics = list(found.probes[names[0]][target].metrics)
        for metric in metrics if every else metrics[:1]:
            intervals = [
                found.probes[name][target].metrics[metric] if found.has(name, target) else None for name in names
            ]
            cells = ["–" if i is None else _cell(i.value, i.low, i.high) for i in intervals]
            rows.append([f"{target.partition('@')[0]}, {_METRIC[metric]} per {_of(level)}", *cells])
    if found.identity:
        same = {name: result.top1 for name, result in found.identity.items()}
        cells = [_cell(t.value, t.low, t.high) if (t := same.get(name)) else "–" for name in names]
        rows.append(["who is it, top 1", *cells])
    return columns, rows


def _of(level: str) -> str:
    return "segment" if level == "segment" else "person"


def _cell(value: float, low: float, high: float) -> str:
    """0.31 with its interval, short enough for five in a row."""
    return f"{value:.2f} {_short(low)}–{_short(high)}"


def _short(value: float) -> str:
    return f"{value:.2f}".replace("0.", ".", 1)
