"""The same probes for several kinds of features: a trained encoder beside what it should beat, and beside what is known of
the person anyway.

Legend: N segments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.resampling import Difference
from mc_wearables.evaluation.identity import IdentityResult, identity_report
from mc_wearables.evaluation.probes import Level, ProbeResult, compare, probe
from mc_wearables.evaluation.splits import Features

HEADLINE = {"regression": "r2", "classification": "auroc"}
"""The metric shown first for each task."""
DEMOGRAPHICS = "demographics"
"""Kind of features: what is known of a person without any signal."""
DEMOGRAPHIC_LABELS = ("age", "sex", "gender", "bmi")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare_features` returns.

    Attributes:
        probes: kind of features → target → result; the demographics lack targets that nothing else of theirs could tell.
        identity: kind of features → re-identification and geometry; without those that are no embeddings.
        levels: target → level it was probed at.
    """

    probes: dict[str, dict[str, ProbeResult]]
    identity: dict[str, IdentityResult]
    levels: dict[str, Level]

    def has(self, features: str, target: str) -> bool:
        """Whether this target was probed from these features."""
        return target in self.probes[features]

    def headline(self, features: str, target: str) -> tuple[str, float, float, float]:
        """(metric, value, low, high) of the target's first metric."""
        result = self.probes[features][target]
        name = HEADLINE[result.task]
        interval = result.metrics[name]
        return name, interval.value, interval.low, interval.high

    def difference(self, first: str, second: str, target: str, *, draws: int = 1000, seed: int = 0) -> Difference:
        """Headline metric of ``first`` minus ``second`` on the same people, with a paired interval."""
        one, other = self.probes[first][target], self.probes[second][target]
        return compare(one, other, HEADLINE[one.task], draws=draws, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what could be traced to single people."""
        return {
            "probes": {name: {t: r.to_dict() for t, r in found.items()} for name, found in self.probes.items()},
            "identity": {name: result.to_dict() for name, result in self.identity.items()},
        }


def compare_features(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    targets: Mapping[str, Level],
    *,
    identify: Sequence[str] = (),
    demographics: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Probe every target from every kind of features, on the same training and test people.

    Args:
        train: kind of features → features of training people.
        test: the same kinds, of other people.
        targets: label → ``"participant"`` or ``"segment"``; a name may end in ``@segment`` or ``@participant`` to probe one
            label at both levels.
        identify: kinds whose re-identification and geometry are measured too, on ``test``.
        demographics: labels that are features by themselves, as ``demographics``, so that a target is also told from what is
            known without a signal; each of these labels, where it is the target, from the others.
        draws: resamples for the intervals.
        seed: of folds, halves and resamples.

    Raises:
        DataError: kinds that differ between the two sides, and whatever a probe raises.
    """
    if set(train) != set(test):
        raise DataError(f"features {sorted(train)} of training people and {sorted(test)} of test people: give the same")
    probes = {
        name: {
            target: probe(train[name], test[name], target.partition("@")[0], level=level, draws=draws, seed=seed)
            for target, level in targets.items()
        }
        for name in train
    }
    first, second = next(iter(train.values())), next(iter(test.values()))
    without_signal = {
        target: probe(*sides, target.partition("@")[0], level=level, draws=draws, seed=seed)
        for target, level in targets.items()
        if (sides := _known_anyway(first, second, demographics, target)) is not None
    }
    if without_signal:
        probes[DEMOGRAPHICS] = without_signal
    identity = {name: identity_report(test[name], draws=draws, seed=seed) for name in identify}
    return Comparison(probes, identity, dict(targets))


def _known_anyway(
    train: Features, test: Features, demographics: Sequence[str], target: str
) -> tuple[Features, Features] | None:
    """Demographics but the target as features of both sides; None where none are known, or the same for all."""
    wanted = {_stem(name) for name in demographics} - {_stem(target)}
    names = [
        name
        for name in train.labels
        if _stem(name) in wanted and name in test.labels and _differs(train.labels[name]) and _known(test.labels[name])
    ]
    if not names:
        return None
    first, second = (
        replace(
            side,
            values=np.stack([side.labels[name] for name in names], axis=1).astype(np.float32),
            names=tuple(names),
        )
        for side in (train, test)
    )
    return first, second


def _stem(name: str) -> str:
    """
    >>> _stem("sex=female"), _stem("Age@segment"), _stem("gender")
    ('sex', 'age', 'sex')
    """
    stem = name.partition("@")[0].partition("=")[0].lower()
    return "sex" if stem == "gender" else stem


def _differs(column: np.ndarray) -> bool:
    return len(np.unique(column[~np.isnan(column)])) > 1


def _known(column: np.ndarray) -> bool:
    return bool((~np.isnan(column)).any())
