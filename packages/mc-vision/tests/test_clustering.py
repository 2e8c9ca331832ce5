"""k-means and its agreement with classes: brute force, scikit-learn, invariances, and bad input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics

from mc_core.errors import ConfigError, DataError
from mc_vision import clustering
from mc_vision.clustering import cluster, cluster_scores, contingency, kmeans, nearest_center
from mc_vision.data import ArraySource
from mc_vision.transforms import EvalDataset


def blobs(clusters=4, each=30, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centers = 20 * torch.randn(clusters, dim, generator=generator)
    labels = torch.arange(clusters).repeat_interleave(each)
    return centers[labels] + torch.randn(len(labels), dim, generator=generator), labels


def test_separated_blobs_are_found():
    x, labels = blobs()
    found = kmeans(x, 4)
    scores = cluster_scores(found.assignment, labels)
    assert (scores.accuracy, scores.majority, scores.nmi, scores.ari) == (1, 1, pytest.approx(1), pytest.approx(1))
    means = torch.stack([x[labels == k].mean(0) for k in range(4)])
    assert torch.cdist(found.centers, means).amin(1).max() < 1e-4
    inertia = sum((x[labels == k] - means[k]).square().sum() for k in range(4))
    assert found.inertia == pytest.approx(inertia.item(), rel=1e-4)


def test_best_of_all_partitions():
    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(3))
    best = min(
        sum((x[mask] - x[mask].mean(0)).square().sum().item() for mask in (code, ~code))
        for bits in itertools.product([False, True], repeat=7)
        if (code := torch.tensor([True, *bits])).sum() < 8
    )
    assert kmeans(x, 2, restarts=20).inertia == pytest.approx(best, rel=1e-5)


def test_a_fixed_point_of_lloyd_and_reproducible():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
    found = kmeans(x, 7, seed=5)
    means = torch.stack([x[found.assignment == k].mean(0) for k in range(7)])
    assert torch.allclose(means, found.centers, atol=1e-5)
    distance = torch.cdist(x.double(), found.centers.double()).square()
    assert torch.equal(distance.argmin(1), found.assignment)
    assert found.inertia == pytest.approx(distance.amin(1).sum().item(), rel=1e-5)
    again = kmeans(x, 7, seed=5)
    assert torch.equal(found.centers, again.centers)
    assert not torch.equal(found.centers, kmeans(x, 7, seed=6, restarts=1).centers)
    # more restarts start from the same seeds, so they are never worse
    assert kmeans(x, 7, seed=5, restarts=9).inertia <= found.inertia <= kmeans(x, 7, seed=5, restarts=1).inertia


def test_chunks_and_offsets_change_nothing(monkeypatch):
    x, _ = blobs(seed=2)
    plain = kmeans(x, 5)
    monkeypatch.setattr(clustering, "_CHUNK", 35)
    chunked = kmeans(x, 5)
    assert torch.equal(plain.assignment, chunked.assignment)
    far = kmeans(x + 1000, 5)  # differences of squares of large numbers would lose the digits that matter
    assert torch.equal(plain.assignment, far.assignment)
    assert torch.equal(nearest_center(x + 1000, far.centers), far.assignment)


def test_every_row_its_own_cluster_and_repeated_rows():
    x = torch.randn(6, 3)
    assert kmeans(x, 6).inertia == pytest.approx(0, abs=1e-4)
    same = torch.ones(5, 2)
    found = kmeans(same, 3)
    assert found.inertia == 0
    assert found.centers.isfinite().all()


def test_empty_clusters_start_again():
    """Seeds that coincide leave one centre without rows; it moves to the furthest row."""
    x = torch.tensor([[0.0], [0.1], [10.0], [10.1], [50.0]])
    found = clustering._lloyd(x, torch.tensor([[0.0], [0.0], [0.0]]), 50)
    assert found.assignment.unique().numel() == 3
    assert found.inertia == pytest.approx(0.01, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("clusters", "classes"), [(4, 4), (7, 3), (3, 6)])
def test_scores_agree_with_scikit_learn(seed, clusters, classes):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 80)
    assignment = np.where(rng.random(80) < 0.5, labels % clusters, rng.integers(0, clusters, 80))
    scores = cluster_scores(torch.from_numpy(10 - assignment), torch.from_numpy(labels * 7))
    assert scores.nmi == pytest.approx(metrics.normalized_mutual_info_score(labels, assignment))
    assert scores.ari == pytest.approx(metrics.adjusted_rand_score(labels, assignment))
    table = contingency(torch.from_numpy(assignment), torch.from_numpy(labels)).numpy()
    assert scores.majority == pytest.approx(table.max(1).sum() / 80)
    small = table if table.shape[0] <= table.shape[1] else table.T
    best = max(
        sum(small[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(small.shape[1]), small.shape[0])
    )
    assert scores.accuracy == pytest.approx(best / 80)


def test_limits_of_the_scores():
    labels = torch.arange(6)
    one, each = cluster_scores(torch.zeros(6).long(), labels), cluster_scores(labels, labels)
    assert (one.nmi, one.ari, one.accuracy, one.majority) == (pytest.approx(0), 0, 1 / 6, 1 / 6)
    assert (each.nmi, each.ari, each.accuracy) == (pytest.approx(1), 1, 1)
    single = cluster_scores(torch.zeros(3), torch.ones(3))
    assert (single.nmi, single.ari) == (1, 1)


def test_bad_input():
    with pytest.raises(ConfigError, match="clusters=4: 3 rows give 1 to 3 clusters"):
        kmeans(torch.ones(3, 2), 4)
    with pytest.raises(ConfigError, match="restarts=0, iterations=100: both are at least 1"):
        kmeans(torch.ones(3, 2), 1, restarts=0)
    with pytest.raises(DataError, match="not finite"):
        kmeans(torch.tensor([[float("nan")], [1.0]]), 1)
    with pytest.raises(DataError, match=r"clusters of shape \(3,\) and labels of shape \(2,\)"):
        cluster_scores(torch.zeros(3), torch.zeros(2))


def pictures(seed, labels=True):
    """Four colours under noise."""
    rng = np.random.default_rng(seed)
    classes = np.arange(40) % 4
    colors = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 20]])
    images = np.clip(colors[classes][:, :, None, None] + rng.integers(-20, 21, (40, 3, 8, 8)), 0, 255).astype(np.uint8)
    return EvalDataset(ArraySource(images, classes if labels else None), 8, resize_ratio=1)


def test_encoders_side_by_side():
    encoders = {
        "colour": lambda batch: batch["image"].mean((2, 3)),
        "noise": lambda batch: torch.randn(len(batch["image"]), 8, generator=torch.Generator().manual_seed(len(batch))),
    }
    results = cluster(encoders, pictures(0), pictures(1), over=3)
    assert list(results) == ["colour", "noise"]
    assert (results["colour"].scores.accuracy, results["colour"].over_accuracy) == (1, 1)
    assert results["colour"].over_clusters == 12
    assert results["noise"].scores.accuracy < 0.6
    assert results["noise"].to_dict()["scores"]["classes"] == 4
    with pytest.raises(DataError, match="clusters are judged by classes"):
        cluster(encoders, pictures(0, labels=False), pictures(1))
    with pytest.raises(ConfigError, match="over=1: over-clustering takes at least 2"):
        cluster(encoders, pictures(0), pictures(1), over=1)
