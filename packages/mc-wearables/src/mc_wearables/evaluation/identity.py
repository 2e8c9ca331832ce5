"""Geometry of embeddings across people: can they be told apart, how tight are they, how many dimensions are used.

Re-identification is also the privacy test: what it finds, anyone with the embeddings can find.

Legend: N segments, D dimensions, P participants.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch

from mc_core.errors import DataError
from mc_core.evaluation import BootstrapInterval, effective_rank
from mc_core.random import derive_seed
from mc_core.resampling import resampled_values
from mc_wearables.evaluation.splits import Features

_HALVES = 0x4A1F
_BLOCK = 2048


@dataclass(frozen=True)
class IdentityResult:
    """What :func:`identity_report` returns.

    Attributes:
        top1: share of halves whose nearest other half is that of the same participant.
        chance: of ``top1``.
        dispersion_ratio: see :func:`dispersion_ratio`.
        effective_rank: see :func:`smooth_effective_rank`.
        effective_rank_centred: the same after taking the mean out.
        participants: with at least two segments (or sessions).
        segments: of those.
    """

    top1: BootstrapInterval
    chance: float
    dispersion_ratio: float
    effective_rank: float
    effective_rank_centred: float
    participants: int
    segments: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def reidentification(
    features: Features,
    *,
    halves: Literal["segment", "session"] = "segment",
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[BootstrapInterval, int]:
    """Top-1 re-identification: each half of a participant's segments looks for the other half among all others' halves.

    Segments (or whole sessions) are cut into two halves at random; a half is the mean of its embeddings, centred over all
    halves, and compared by cosine. A tie counts as a miss, so that collapsed embeddings do not identify anyone. Which halves
    to form is ours; ``"session"`` is the harder and more honest one, as two segments of a sitting share the fit of the strap.

    Args:
        features: rows without NaN.
        halves: what is kept whole.
        draws: resamples of participants, against the same candidates.
        level: of the interval.
        seed: of the halves and the resamples.

    Returns:
        The share with its interval, and the number of participants with two halves.

    Raises:
        DataError: fewer than two participants have two segments (or sessions).

    >>> people = np.repeat(np.arange(3), 4)
    >>> features = Features(np.eye(3, dtype=np.float32)[people], people, ("a", "b", "c"), np.arange(12))
    >>> reidentification(features)[0].value
    1.0
    """
    unit = features.session if halves == "session" else np.arange(len(features))
    _, unit = np.unique(np.stack([features.participant, unit]), axis=1, return_inverse=True)
    units = int(unit.max()) + 1
    owner = np.empty(units, dtype=np.int64)
    owner[unit] = features.participant
    order = np.random.Generator(np.random.Philox(derive_seed(seed, _HALVES))).permutation(units)
    order = order[np.argsort(owner[order], kind="stable")]
    sizes = np.unique(owner, return_counts=True)[1]
    half = np.empty(units, dtype=np.int64)
    half[order] = (np.arange(units) - np.repeat(sizes.cumsum() - sizes, sizes)) % 2
    person = np.unique(features.participant, return_inverse=True)[1]
    kept = (sizes >= 2)[person]
    people = int((sizes >= 2).sum())
    if people < 2:
        raise DataError(f"{people} participants have two {halves}s; re-identification needs at least two who do")

    person = np.unique(person[kept], return_inverse=True)[1]
    centre = _means(features.values[kept], 2 * person + half[unit[kept]], 2 * people)
    centre -= centre.mean(axis=0)
    centre /= np.maximum(np.linalg.norm(centre, axis=1, keepdims=True), 1e-12)
    hit = np.empty(2 * people)
    for begin in range(0, 2 * people, _BLOCK):
        rows = np.arange(begin, min(begin + _BLOCK, 2 * people))
        similarity = centre[rows] @ centre.T
        local = np.arange(len(rows))
        own = similarity[local, rows ^ 1]
        similarity[local, rows] = similarity[local, rows ^ 1] = -np.inf
        hit[rows] = own > similarity.max(axis=1) + 1e-9  # a tie is a miss
    group = np.arange(2 * people) // 2
    sampled = resampled_values(lambda t, s, w: w @ s / w.sum(axis=1), hit, [hit], group, draws, level, seed)[0]
    low, high = np.quantile(sampled, [(1 - level) / 2, (1 + level) / 2])
    return BootstrapInterval(float(hit.mean()), float(low), float(high), draws, 0), people


def dispersion_ratio(features: Features) -> float:
    """Mean over people of the mean distance of their segments to their centroid, over the mean distance between centroids.

    Small means that people are tight and far apart. The paper reports a dispersion ratio whose definition we could not read;
    this one is ours. With n segments each and ids shuffled it is √((n − 1)/2).

    Raises:
        DataError: fewer than two participants, or centroids that all coincide.

    >>> values = np.array([[0.0], [2.0], [10.0], [12.0]], dtype=np.float32)
    >>> people = np.array([0, 0, 1, 1])
    >>> dispersion_ratio(Features(values, people, ("a", "b"), people))
    0.1
    """
    person = np.unique(features.participant, return_inverse=True)[1]
    people = int(person.max()) + 1
    if people < 2:
        raise DataError(f"{people} participant: the dispersion ratio compares at least two")
    values = features.values.astype(np.float64)
    centre = _means(values, person, people)
    distance = np.linalg.norm(values - centre[person], axis=1)
    within = _means(distance[:, None], person, people).mean()
    rows = torch.from_numpy(centre).split(_BLOCK)
    between = sum(float(torch.cdist(block, torch.from_numpy(centre)).sum()) for block in rows) / (people * (people - 1))
    if between <= 1e-12:
        raise DataError("all participants have the same centroid: the embeddings have collapsed")
    return float(within / between)


def smooth_effective_rank(values: np.ndarray, *, centred: bool) -> float:
    """exp of the entropy of the singular values divided by their sum, from 1 to min(N, D).

    RankMe (Garrido et al. 2023), which the paper reports as smooth effective rank; it adds 1e-7 inside the logarithm, which
    changes the value by less than one part in 10,000 at 256 dimensions, and which is left out here
    (:func:`mc_core.evaluation.effective_rank`).

    Args:
        values: (N, D) embeddings.
        centred: take the mean row out first. Embeddings after a SiLU lie far from zero, and that one direction hides the rest:
            report both.

    >>> round(smooth_effective_rank(np.eye(4), centred=False), 6)
    4.0
    """
    values = np.asarray(values, dtype=np.float64)
    if centred:
        values = values - values.mean(axis=0)
    return effective_rank(torch.from_numpy(values))


def identity_report(
    features: Features, *, halves: Literal["segment", "session"] = "segment", draws: int = 1000, seed: int = 0
) -> IdentityResult:
    """All of this module on one set of held-out participants; see its functions."""
    top1, people = reidentification(features, halves=halves, draws=draws, seed=seed)
    return IdentityResult(
        top1=top1,
        chance=1 / (2 * people - 1),
        dispersion_ratio=dispersion_ratio(features),
        effective_rank=smooth_effective_rank(features.values, centred=False),
        effective_rank_centred=smooth_effective_rank(features.values, centred=True),
        participants=people,
        segments=len(features),
    )


def _means(values: np.ndarray, code: np.ndarray, codes: int) -> np.ndarray:
    """(codes, D) float64 means of the rows with each code."""
    order = np.argsort(code, kind="stable")
    count = np.bincount(code, minlength=codes)
    return np.add.reduceat(values[order].astype(np.float64), count.cumsum() - count, axis=0) / count[:, None]
