"""Results of the same runs under several seeds: mean ± standard deviation, and differences seed by seed.

Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mc_core.errors import DataError

Run = Mapping[str, Mapping[str, float]]
"""Row → column → value of everything that ran under one seed."""


@dataclass(frozen=True)
class Spread:
    """One number over several seeds.

    Attributes:
        mean: over the seeds.
        sd: standard deviation of the sample (n − 1); None for a single seed.
        values: one for each seed.

    >>> str(Spread.of([0.2, 0.4])), str(Spread.of([0.25])), f"{Spread.of([1.0, 3.0]):.1f}"
    ('0.30 ± 0.14', '0.25', '2.0 ± 1.4')
    """

    mean: float
    sd: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values.

        Raises:
            DataError: there are none.
        """
        found = tuple(float(value) for value in values)
        if not found:
            raise DataError("no runs to take a mean of")
        mean = math.fsum(found) / len(found)
        sd = math.sqrt(math.fsum((v - mean) ** 2 for v in found) / (len(found) - 1)) if len(found) > 1 else None
        return cls(mean, sd, found)

    @property
    def standard_error(self) -> float | None:
        """Of the mean; None for a single seed."""
        return None if self.sd is None else self.sd / math.sqrt(len(self.values))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"mean": self.mean, "sd": self.sd, "values": list(self.values)}

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.mean:{spec}}" + ("" if self.sd is None else f" ± {self.sd:{spec}}")

    def __str__(self) -> str:
        return format(self, "")


def over_seeds(runs: Sequence[Run]) -> dict[str, dict[str, Spread]]:
    """Each row and column over the runs that have it, in the order in which they first appear.

    >>> found = over_seeds([{"a": {"mrr": 0.2}}, {"a": {"mrr": 0.4}, "b": {"mrr": 1.0}}])
    >>> str(found["a"]["mrr"]), str(found["b"]["mrr"])
    ('0.30 ± 0.14', '1.00')
    """
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row, columns in run.items():
            for column, value in columns.items():
                found.setdefault(row, {}).setdefault(column, []).append(value)
    return {row: {column: Spread.of(v) for column, v in columns.items()} for row, columns in found.items()}


def differences_over_seeds(runs: Sequence[Run], baseline: str) -> dict[str, dict[str, Spread]]:
    """Each row minus the row ``baseline`` of the same run: what a change does, seed by seed.

    Runs of one seed share data order and initial weights, so these differences usually spread less than the rows do.

    Args:
        runs: one for each seed.
        baseline: the row to compare with. Runs and columns that lack it take no part.

    Raises:
        DataError: no run has the baseline.

    >>> runs = [{"plain": {"mrr": 0.2}, "ours": {"mrr": 0.3}}, {"plain": {"mrr": 0.5}, "ours": {"mrr": 0.6}}]
    >>> f"{differences_over_seeds(runs, 'plain')['ours']['mrr']:.3f}"
    '0.100 ± 0.000'
    """
    if not any(baseline in run for run in runs):
        rows = ", ".join(dict.fromkeys(row for run in runs for row in run)) or "no rows"
        raise DataError(f"no run has the row {baseline!r} to compare with, only {rows}")
    return over_seeds(
        [
            {
                row: {
                    column: value - run[baseline][column]
                    for column, value in columns.items()
                    if column in run[baseline]
                }
                for row, columns in run.items()
                if row != baseline
            }
            for run in runs
            if baseline in run
        ]
    )
