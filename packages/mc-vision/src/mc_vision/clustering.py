"""Do clusters of frozen features match classes? k-means without labels, then accuracy, NMI and ARI with them.

Legend: N rows, D features, K clusters, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.optional import require
from mc_core.random import derive_seed
from mc_vision.evaluation import Encode, extract_features
from mc_vision.transforms import EvalDataset

_CHUNK = 1 << 22  # distances held at a time


@dataclass(frozen=True)
class KMeans:
    """What :func:`kmeans` returns.

    Attributes:
        centers: (K, D).
        assignment: (N,) int64 nearest centre.
        inertia: sum of squared distances to it.
        iterations: of the best restart.
    """

    centers: Tensor
    assignment: Tensor
    inertia: float
    iterations: int


@dataclass(frozen=True)
class ClusterScores:
    """Agreement of a clustering with classes.

    Attributes:
        accuracy: with each class given at most one cluster, the best such pairing (Hungarian method).
        majority: with each cluster given to its most frequent class; rises with K, and is 1 when every row is a cluster.
        nmi: mutual information over the mean of the two entropies, in [0, 1].
        ari: Rand index adjusted for chance: 0 for a random clustering, 1 for the same one.
        clusters: K, that occur.
        classes: C, that occur.
    """

    accuracy: float
    majority: float
    nmi: float
    ari: float
    clusters: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def kmeans(x: Tensor, clusters: int, *, seed: int = 0, restarts: int = 5, iterations: int = 100) -> KMeans:
    """Lloyd's algorithm from k-means++ seeds (Arthur & Vassilvitskii 2007); the best of several restarts.

    A cluster that loses all its rows starts again at the row furthest from its centre.

    Args:
        x: (N, D) features; for cosine distances L2-normalise them, nothing is normalised here.
        clusters: K.
        seed: of the first centres.
        restarts: how many.
        iterations: at most, each.

    Raises:
        ConfigError: fewer rows than clusters, or a number below 1.
        DataError: features that are not finite.

    >>> kmeans(torch.tensor([[0.0], [0.1], [5.0], [5.2]]), 2).assignment.unique(return_counts=True)[1].tolist()
    [2, 2]
    """
    if not 1 <= clusters <= len(x):
        raise ConfigError(f"clusters={clusters}: {len(x)} rows give 1 to {len(x)} clusters")
    if restarts < 1 or iterations < 1:
        raise ConfigError(f"restarts={restarts}, iterations={iterations}: both are at least 1")
    x = x.float()
    if not bool(x.isfinite().all()):
        raise DataError("features are not finite: k-means needs numbers")
    center = x.mean(0)
    x = x - center  # distances are differences of squares: small values lose fewer digits
    runs = [_lloyd(x, _seeds(x, clusters, derive_seed(seed, r)), iterations) for r in range(restarts)]
    best = min(runs, key=lambda run: run.inertia)
    return KMeans(best.centers + center, best.assignment, best.inertia, best.iterations)


def nearest_center(x: Tensor, centers: Tensor) -> Tensor:
    """(N,) int64 nearest centre of each row.

    >>> nearest_center(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]])).tolist()
    [0, 1]
    """
    shift = centers.float().mean(0)
    return _nearest(x.float() - shift, centers.float() - shift)[1]


def _nearest(x_ND: Tensor, center_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centre (N,), and which it is (N,)."""
    half_K = center_KD.square().sum(1) / 2
    found = [(half_K - rows_MD @ center_KD.T).min(1) for rows_MD in x_ND.split(max(1, _CHUNK // len(center_KD)))]
    distance_N = 2 * torch.cat([f.values for f in found]) + x_ND.square().sum(1)
    return distance_N.clamp_(min=0), torch.cat([f.indices for f in found])


def _seeds(x_ND: Tensor, clusters: int, seed: int) -> Tensor:
    """(K, D) rows, each drawn with probability proportional to its squared distance from those before."""
    u_K = torch.rand(clusters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(x_ND.device)
    row = (u_K[0] * len(x_ND)).long()[None]
    chosen, distance_N = [row], torch.full((len(x_ND),), math.inf, dtype=x_ND.dtype, device=x_ND.device)
    for u in u_K[1:]:
        distance_N = torch.minimum(distance_N, (x_ND - x_ND[chosen[-1]]).square().sum(1))
        total_N = distance_N.double().cumsum(0)
        row = torch.searchsorted(total_N, (u * total_N[-1])[None], right=True).clamp(max=len(x_ND) - 1)
        chosen.append(row)
    return x_ND[torch.cat(chosen)]


def _lloyd(x_ND: Tensor, center_KD: Tensor, iterations: int) -> KMeans:
    distance_N, assignment_N = _nearest(x_ND, center_KD)
    done, settled = 0, False
    while done < iterations and not settled:
        count_K = torch.bincount(assignment_N, minlength=len(center_KD))
        sum_KD = torch.zeros_like(center_KD).index_add_(0, assignment_N, x_ND)
        center_KD = sum_KD / count_K.clamp(min=1)[:, None]
        empty = (count_K == 0).nonzero()[:, 0]
        center_KD[empty] = x_ND[distance_N.topk(len(empty)).indices]
        before_N = assignment_N
        distance_N, assignment_N = _nearest(x_ND, center_KD)
        done, settled = done + 1, torch.equal(before_N, assignment_N)
    return KMeans(center_KD, assignment_N, float(distance_N.double().sum()), done)


def cluster_scores(assignment: Tensor, labels: Tensor) -> ClusterScores:
    """How well clusters match classes, whatever the numbers of either.

    Args:
        assignment: (N,) cluster of each row.
        labels: (N,) class of each row.

    Raises:
        DataError: different lengths, or no rows.
        MissingDependencyError: SciPy is not installed.

    >>> cluster_scores(torch.tensor([5, 5, 2, 2]), torch.tensor([0, 0, 1, 1])).accuracy
    1.0
    """
    if assignment.shape != labels.shape or assignment.ndim != 1 or not len(labels):
        raise DataError(
            f"clusters of shape {tuple(assignment.shape)} and labels of shape {tuple(labels.shape)} do not fit"
        )
    table_KC = contingency(assignment, labels)
    optimize = require("scipy.optimize", extra="mc-core[samples]", purpose="pair clusters with classes")
    rows, columns = optimize.linear_sum_assignment(table_KC.numpy(), maximize=True)
    count = len(labels)
    share_KC = table_KC / count
    share_K, share_C = share_KC.sum(1), share_KC.sum(0)
    entropy_K, entropy_C = (float(-torch.special.xlogy(p, p).sum()) for p in (share_K, share_C))
    expected_KC = share_K[:, None] * share_C
    occurs = share_KC > 0
    information = float((share_KC[occurs] * (share_KC[occurs] / expected_KC[occurs]).log()).sum())
    entropies = entropy_K + entropy_C
    return ClusterScores(
        accuracy=float(table_KC[rows, columns].sum()) / count,
        majority=float(table_KC.amax(1).sum()) / count,
        nmi=max(0.0, 2 * information / entropies) if entropies > 0 else 1.0,
        ari=_adjusted_rand(table_KC),
        clusters=table_KC.shape[0],
        classes=table_KC.shape[1],
    )


def contingency(assignment: Tensor, labels: Tensor) -> Tensor:
    """(K, C) float64: how many rows each cluster shares with each class, for those that occur."""
    clusters, cluster_N = assignment.cpu().unique(return_inverse=True)
    classes, class_N = labels.cpu().unique(return_inverse=True)
    counts = torch.bincount(cluster_N * len(classes) + class_N, minlength=len(clusters) * len(classes))
    return counts.view(len(clusters), len(classes)).double()


def _adjusted_rand(table_KC: Tensor) -> float:
    """Hubert & Arabie 1985, from pairs of rows."""

    def pairs(n: Tensor) -> float:
        return float((n * (n - 1)).sum()) / 2

    both, in_clusters, in_classes = pairs(table_KC), pairs(table_KC.sum(1)), pairs(table_KC.sum(0))
    expected = in_clusters * in_classes / max(pairs(table_KC.sum()), 1)
    most = (in_clusters + in_classes) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


@dataclass(frozen=True)
class ClusterResult:
    """What :func:`cluster` returns for one encoder, both on the test images.

    Attributes:
        scores: of as many clusters as there are classes.
        over_accuracy: of ``over_clusters`` clusters, each given the class that most of its training images have: labels
            only name the clusters.
        over_clusters: how many.
    """

    scores: ClusterScores
    over_accuracy: float
    over_clusters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def cluster(
    encoders: Mapping[str, Encode],
    train: EvalDataset,
    test: EvalDataset,
    *,
    over: int = 5,
    restarts: int = 5,
    seed: int = 0,
    device: torch.device | None = None,
    workers: int | None = None,
) -> dict[str, ClusterResult]:
    """k-means on each encoder's L2-normalised features of ``train``, judged on ``test``.

    Args:
        encoders: by name.
        train: images that are clustered.
        test: images that are given to the clusters.
        over: clusters per class when over-clustering, at least 2; fewer where there are too few images.
        restarts: of k-means.
        seed: of k-means.
        device: where the encoders and k-means work; default CPU.
        workers: loader processes.

    Raises:
        ConfigError: ``over`` below 2.
        DataError: images without labels, or fewer training images than classes.
    """
    if over < 2:
        raise ConfigError(f"over={over}: over-clustering takes at least 2 clusters per class")
    device = device or torch.device("cpu")
    results = {}
    for name, encode in encoders.items():
        bank = extract_features(encode, train, device=device, workers=workers)
        asked = extract_features(encode, test, device=device, workers=workers)
        if bank.labels is None or asked.labels is None:
            raise DataError("clusters are judged by classes: class folders, a label column, or .cls files are needed")
        x, asked_x = (F.normalize(f.values, dim=1).to(device) for f in (bank, asked))
        classes = len(bank.labels.unique())
        if len(x) < classes:
            raise DataError(f"{len(x)} training images cannot be {classes} clusters")
        exact = kmeans(x, classes, seed=seed, restarts=restarts)
        over_clusters = min(over * classes, len(x))
        fine = kmeans(x, over_clusters, seed=seed, restarts=restarts)
        classes_C, class_N = bank.labels.unique(return_inverse=True)
        votes = torch.zeros(over_clusters, len(classes_C)).index_put_(
            (fine.assignment.cpu(), class_N), torch.ones(len(class_N)), accumulate=True
        )
        guessed = classes_C[votes.argmax(1)][nearest_center(asked_x, fine.centers).cpu()]
        results[name] = ClusterResult(
            scores=cluster_scores(nearest_center(asked_x, exact.centers).cpu(), asked.labels),
            over_accuracy=float((guessed == asked.labels).double().mean()),
            over_clusters=over_clusters,
        )
    return results
