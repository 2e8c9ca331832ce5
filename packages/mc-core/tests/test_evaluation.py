"""Measures of frozen features: against scikit-learn, naive loops in float64, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, r2_score, roc_auc_score
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import (
    _held_out,
    alignment,
    auroc,
    bootstrap_interval,
    effective_rank,
    feature_spread,
    knn_accuracy,
    knn_predict,
    linear_probe,
    retrieval_metrics,
    ridge_probe,
    uniformity,
)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _blobs(rows: int, classes: int, dim: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian clouds around ``classes`` fixed centres."""
    centers = torch.randn(classes, dim, generator=_generator(99))
    labels = torch.randint(classes, (rows,), generator=_generator(seed))
    return centers[labels] + spread * torch.randn(rows, dim, generator=_generator(seed + 1)), labels


class TestKnn:
    @pytest.mark.parametrize("k", [1, 7, 200])
    @pytest.mark.parametrize("temperature", [0.07, 1.0])
    def test_equals_the_vote_by_definition(self, k: int, temperature: float) -> None:
        x, y = _blobs(60, 4, 5, 1.5)
        test = torch.randn(40, 5, generator=_generator(5))
        labels = torch.tensor([-3, 0, 11, 500])[y]
        expected = []
        for query in test.double():
            cosine = [float(query @ row / query.norm() / row.norm()) for row in x.double()]
            votes: dict[int, float] = {}
            for row in sorted(range(len(x)), key=lambda row: -cosine[row])[:k]:
                votes[int(labels[row])] = votes.get(int(labels[row]), 0.0) + math.exp(cosine[row] / temperature)
            expected.append(max(votes, key=lambda label: votes[label]))
        assert knn_predict(x, labels, test, k=k, temperature=temperature, chunk=7).tolist() == expected

    def test_weights_matter(self) -> None:
        angles = torch.tensor([0.0, 0.5, 0.5])
        x, y = torch.stack([angles.cos(), angles.sin()], 1), torch.tensor([0, 1, 1])
        query = torch.tensor([[1.0, 0.0]])
        assert knn_predict(x, y, query, k=3, temperature=0.07).item() == 0
        assert knn_predict(x, y, query, k=3, temperature=1.0).item() == 1

    def test_scaling_and_row_order_change_nothing(self) -> None:
        x, y = _blobs(80, 3, 6, 1.0)
        test, test_y = _blobs(50, 3, 6, 1.0, seed=3)
        before = knn_accuracy(x, y, test, test_y, k=5)
        order = torch.randperm(80, generator=_generator())
        scale = torch.rand(80, 1, generator=_generator()) * 9 + 0.1
        assert knn_accuracy((scale * x)[order], y[order], 7 * test, test_y, k=5) == before
        assert 1 / 3 < before <= 1

    def test_small_temperature_does_not_overflow(self) -> None:
        x, y = _blobs(30, 3, 4, 0.1)
        assert knn_accuracy(x, y, x, y, k=30, temperature=1e-3) == 1.0

    def test_accuracy_is_the_share_of_hits(self) -> None:
        x, y = _blobs(30, 3, 4, 0.05)
        wrong = y.clone()
        wrong[:6] = (wrong[:6] + 1) % 3
        assert knn_accuracy(x, y, x, wrong, k=1) == pytest.approx(24 / 30)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[:0], y[:0], x, y), r"train_x is shape \(0, 4\)"),
            (lambda x, y: (x, y.float(), x, y), "train_y is torch.float32; it must be a tensor of integers"),
            (lambda x, y: (x, y[:-1], x, y), r"train_y has shape \(29,\) but train_x has 30 rows"),
            (lambda x, y: (x, y, x[:, :3], y), "train_x has 4 dimensions and test_x 3"),
            (lambda x, y: (x, y, x, y[:5]), r"test_y has shape \(5,\) but test_x has 30 rows"),
            (lambda x, y: (x.long(), y, x, y), "train_x has dtype torch.int64"),
            (lambda x, y: (x, y, x[0], y), "test_x is shape"),
        ],
    )
    def test_says_what_is_wrong(self, change, message: str) -> None:
        x, y = _blobs(30, 3, 4, 0.1)
        with pytest.raises(DataError, match=message):
            knn_accuracy(*change(x, y))

    def test_names_the_row_that_is_nan(self) -> None:
        x, y = _blobs(30, 3, 4, 0.1)
        broken = x.clone()
        broken[17, 2] = torch.nan
        with pytest.raises(DataError, match="test_x has NaN or infinite values in 1 of 30 rows, first in row 17"):
            knn_predict(x, y, broken)

    def test_rejects_zero_neighbours(self) -> None:
        x, y = _blobs(30, 3, 4, 0.1)
        with pytest.raises(ConfigError, match="k=0"):
            knn_predict(x, y, x, k=0)


class TestLinearProbe:
    @pytest.mark.parametrize("l2", [1e-1, 1e-3])
    def test_logits_equal_scikit_learn(self, l2: float) -> None:
        x, y = _blobs(200, 12, 6, 1.2)
        test, test_y = _blobs(150, 12, 6, 1.2, seed=7)
        x, test = x * torch.logspace(-2, 2, 6), test * torch.logspace(-2, 2, 6) + 0.01  # standardising matters
        result = linear_probe(x.double(), y + 10, test.double(), test_y + 10, l2=l2, max_iterations=500)
        mean, deviation = x.double().mean(0), x.double().std(0, correction=0)
        reference = LogisticRegression(C=1 / (l2 * 200), tol=1e-8, max_iter=2000)
        reference.fit(((x - mean) / deviation).numpy(), y.numpy())
        inputs = ((test - mean) / deviation).numpy()
        np.testing.assert_allclose(result.logits.softmax(1).numpy(), reference.predict_proba(inputs), atol=2e-4)
        assert result.accuracy == pytest.approx(reference.score(inputs, test_y.numpy()))
        top = np.argsort(-reference.predict_proba(inputs), 1)[:, :5]
        assert result.top5 == pytest.approx((top == test_y.numpy()[:, None]).any(1).mean())
        assert result.classes.tolist() == list(range(10, 22))
        assert 0.3 < result.accuracy < result.top5 < 1

    def test_float32_and_repetition(self) -> None:
        x, y = _blobs(200, 4, 6, 1.0)
        test, test_y = _blobs(150, 4, 6, 1.0, seed=7)
        first, again = (linear_probe(x, y, test, test_y) for _ in range(2))
        assert torch.equal(first.logits, again.logits)
        assert first.l2 == again.l2
        assert first.top5 is None
        double = linear_probe(x.double(), y, test.double(), test_y, l2=first.l2)
        assert first.accuracy == pytest.approx(double.accuracy, abs=0.01)

    def test_chosen_strength_ignores_test_rows_and_fights_noise(self) -> None:
        x, y = _blobs(80, 2, 3, 1.0)
        x = torch.cat([x, torch.randn(80, 30, generator=_generator(4))], 1)
        test, test_y = _blobs(400, 2, 3, 1.0, seed=7)
        test = torch.cat([test, torch.randn(400, 30, generator=_generator(5))], 1)
        chosen = linear_probe(x, y, test, test_y)
        assert linear_probe(x, y, test[:9], test_y[:9]).l2 == chosen.l2
        assert linear_probe(x * 1e-3, y, test * 1e-3, test_y).l2 == chosen.l2  # the choice standardises too
        weak = linear_probe(x, y, test, test_y, l2=1e-6)
        assert weak.train_accuracy == 1.0
        assert chosen.l2 > 1e-6
        assert chosen.accuracy > weak.accuracy

    def test_groups_keep_a_person_on_one_side(self) -> None:
        # the label belongs to the person and says nothing about others: only held-out people show that
        person = torch.arange(40).repeat_interleave(6)
        y = torch.randint(2, (40,), generator=_generator(2))[person]
        x = torch.randn(40, 15, generator=_generator(1))[person] + 0.3 * torch.randn(240, 15, generator=_generator(3))
        fitted, held = _held_out(240, person, 0, x.device)
        assert not set(person[fitted].tolist()) & set(person[held].tolist())
        assert (len(set(person[held].tolist())), len(fitted) + len(held)) == (8, 240)
        by_row, by_person = (linear_probe(x, y, x, y, groups=groups).l2 for groups in (None, person))
        assert by_row < by_person

    def test_constant_dimensions_and_unknown_labels(self) -> None:
        x, y = _blobs(60, 3, 4, 0.1)
        padded = torch.cat([x, torch.full((60, 2), 0.1)], 1)
        result = linear_probe(padded, y, padded, torch.where(y == 2, 77, y), l2=1e-3)
        assert result.train_accuracy == 1.0
        assert result.accuracy == pytest.approx(float((y != 2).float().mean()))

    def test_learns_nothing_into_its_input(self) -> None:
        x, y = _blobs(60, 3, 4, 0.1)
        x.requires_grad_()
        with torch.no_grad():
            result = linear_probe(x, y, x, y, l2=0.1)
        assert x.grad is None
        assert not result.logits.requires_grad
        assert result.accuracy == 1.0

    def test_says_what_is_wrong(self) -> None:
        x, y = _blobs(30, 3, 4, 0.1)
        with pytest.raises(DataError, match="single class"):
            linear_probe(x, torch.zeros_like(y), x, y)
        with pytest.raises(ConfigError, match="l2=-1"):
            linear_probe(x, y, x, y, l2=-1)
        with pytest.raises(DataError, match="3 training groups are too few"):
            linear_probe(x, y, x, y, groups=y)


class TestRidgeProbe:
    @pytest.mark.parametrize("rows", [100, 12])
    def test_equals_scikit_learn(self, rows: int) -> None:
        x = torch.randn(rows, 20, generator=_generator(), dtype=torch.float64) * torch.logspace(-1, 2, 20) + 5
        weight = torch.randn(20, generator=_generator(1), dtype=torch.float64)
        y = x @ weight + 10 * torch.randn(rows, generator=_generator(2), dtype=torch.float64)
        test, target = x + 0.5, y + 1
        result = ridge_probe(x, y, test, target, l2=0.05)
        mean, deviation = x.mean(0), x.std(0, correction=0)
        reference = Ridge(alpha=0.05 * rows).fit(((x - mean) / deviation).numpy(), y.numpy())
        expected = reference.predict(((test - mean) / deviation).numpy())
        np.testing.assert_allclose(result.predictions.numpy(), expected, rtol=1e-8)
        assert result.r2 == pytest.approx(r2_score(target.numpy(), expected))
        assert result.mae == pytest.approx(np.abs(target.numpy() - expected).mean())

    def test_chooses_a_strength_that_generalises(self) -> None:
        x = torch.randn(60, 50, generator=_generator())
        test = torch.randn(500, 50, generator=_generator(1))
        y, target = (rows[:, 0] + torch.randn(len(rows), generator=_generator(2)) for rows in (x, test))
        chosen, weak = ridge_probe(x, y, test, target), ridge_probe(x, y, test, target, l2=1e-6)
        assert chosen.r2 > weak.r2
        assert weak.train_r2 > chosen.train_r2

    def test_needs_targets_that_differ(self) -> None:
        x = torch.randn(9, 3, generator=_generator())
        with pytest.raises(DataError, match=r"single value 1\.0"):
            ridge_probe(x, x[:, 0], x, torch.ones(9), l2=1.0)


def _naive_retrieval(similarity: Tensor, positives: Tensor) -> tuple[list[int], list[float]]:
    """Rank of the best positive and average precision of each query, negatives before positives among equals."""
    ranks, precisions = [], []
    for row, right in zip(similarity.tolist(), positives.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: (-row[column], right[column]))
        places = [place for place, column in enumerate(order, 1) if right[column]]
        if places:
            ranks.append(places[0])
            precisions.append(sum(hits / place for hits, place in enumerate(places, 1)) / len(places))
    return ranks, precisions


class TestRetrieval:
    @pytest.mark.parametrize("levels", [None, 4])
    def test_equals_the_loop(self, levels: int | None) -> None:
        similarity = torch.randn(30, 25, generator=_generator())
        if levels:
            similarity = torch.randint(levels, (30, 25), generator=_generator()).float()
        positives = torch.rand(30, 25, generator=_generator(1)) < 0.08
        ranks, precisions = _naive_retrieval(similarity, positives)
        result = retrieval_metrics(similarity, positives, ks=(1, 3, 100))
        assert result.queries == len(ranks) < 30
        assert result.excluded == 30 - len(ranks)
        for k in (1, 3, 100):
            assert result.recall[k] == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert result.mrr == pytest.approx(np.mean([1 / rank for rank in ranks]))
        assert result.map == pytest.approx(np.mean(precisions))
        assert result.median_rank == np.median(ranks)

    def test_map_equals_scikit_learn_without_ties(self) -> None:
        similarity = torch.randn(12, 40, generator=_generator())
        positives = torch.rand(12, 40, generator=_generator(1)) < 0.3
        expected = np.mean(
            [average_precision_score(p, s) for p, s in zip(positives.numpy(), similarity.numpy(), strict=True)]
        )
        assert retrieval_metrics(similarity, positives).map == pytest.approx(expected)

    def test_index_is_one_positive_each(self) -> None:
        similarity = torch.randn(20, 9, generator=_generator())
        index = torch.randint(-1, 9, (20,), generator=_generator(1))
        one_hot = index[:, None] == torch.arange(9)
        assert retrieval_metrics(similarity, index) == retrieval_metrics(similarity, one_hot)
        assert retrieval_metrics(similarity, index).excluded == int((index == -1).sum()) > 0

    def test_a_collapsed_model_is_worst(self) -> None:
        result = retrieval_metrics(torch.zeros(5, 8), torch.arange(5))
        assert result.recall == {1: 0.0, 5: 0.0, 10: 1.0}
        assert result.median_rank == 8

    def test_many_rows_are_cut_into_blocks(self) -> None:
        similarity = torch.randn(1500, 3000, generator=_generator())  # two blocks
        result = retrieval_metrics(similarity, similarity.argmax(1).index_fill(0, torch.tensor([1400]), -1))
        assert (result.recall[1], result.queries) == (1.0, 1499)

    @pytest.mark.parametrize(
        ("similarity", "positives", "message"),
        [
            (torch.zeros(2, 3), torch.tensor([0, 3]), "positives reach from 0 to 3; there are 3 candidates"),
            (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), "none of the 2 queries has a positive"),
            (torch.zeros(2, 3), torch.zeros(3, 2, dtype=torch.bool), "differ in shape"),
            (torch.full((2, 3), torch.nan), torch.tensor([0, 1]), "similarity contains NaN"),
            (torch.zeros(2, 3), torch.tensor([0.0, 1.0]), "positives is torch.float32"),
            (torch.zeros(3), torch.tensor([0]), "must be \\(queries, candidates\\)"),
        ],
    )
    def test_says_what_is_wrong(self, similarity: Tensor, positives: Tensor, message: str) -> None:
        with pytest.raises(DataError, match=message):
            retrieval_metrics(similarity, positives)


class TestGeometry:
    def test_alignment(self) -> None:
        x, y = (torch.randn(30, 5, generator=_generator(seed)) for seed in (0, 1))
        assert alignment(x, 3 * x) == pytest.approx(0, abs=1e-6)
        assert alignment(x, -x) == pytest.approx(4)
        assert alignment(torch.eye(4)[:2], torch.eye(4)[2:]) == pytest.approx(2)
        cosine = [float(a @ b / a.norm() / b.norm()) for a, b in zip(x.double(), y.double(), strict=True)]
        assert alignment(x, y) == pytest.approx(2 - 2 * float(np.mean(cosine)), rel=1e-5)
        with pytest.raises(DataError, match="x has 30 rows and y 9"):
            alignment(x, y[:9])

    def test_uniformity_closed_forms(self) -> None:
        assert uniformity(torch.tensor([[2.0, 0.0], [-5.0, 0.0]]), t=3) == pytest.approx(-12)
        assert uniformity(torch.ones(7, 3)) == pytest.approx(0, abs=1e-5)
        assert uniformity(torch.eye(6), t=2) == pytest.approx(-4)
        with pytest.raises(DataError, match="needs two or more"):
            uniformity(torch.ones(1, 3))

    @pytest.mark.parametrize("chunk", [1, 4, 13, 100])
    def test_uniformity_equals_the_double_loop(self, chunk: int) -> None:
        x = torch.randn(13, 5, generator=_generator(), dtype=torch.float64)
        unit = x / x.norm(dim=1, keepdim=True)
        pairs = [math.exp(-2 * float((unit[i] - unit[j]).square().sum())) for i in range(13) for j in range(i + 1, 13)]
        assert uniformity(x, chunk=chunk) == pytest.approx(math.log(np.mean(pairs)), abs=1e-12)

    def test_effective_rank(self) -> None:
        rotation = torch.linalg.qr(torch.randn(6, 6, generator=_generator())).Q
        assert effective_rank(rotation) == pytest.approx(6, rel=1e-5)
        assert effective_rank(5 * rotation[:3].repeat(4, 1)) == pytest.approx(3, rel=1e-4)
        assert effective_rank(torch.full((9, 4), 0.3)) == pytest.approx(1, abs=1e-3)
        assert effective_rank(torch.zeros(3, 3)) == 0
        p = np.array([3.0, 1.0]) / 4
        assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(
            float(np.exp(-(p * np.log(p)).sum()))
        )

    def test_feature_spread(self) -> None:
        isotropic = torch.randn(20_000, 16, generator=_generator())
        assert feature_spread(isotropic * torch.rand(20_000, 1, generator=_generator(1))) == pytest.approx(1, abs=0.01)
        assert feature_spread(torch.randn(1, 8, generator=_generator()).repeat(5, 1)) == pytest.approx(0, abs=1e-6)
        assert feature_spread(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(1)

    @pytest.mark.parametrize("measure", [uniformity, effective_rank, feature_spread])
    def test_half_precision_and_nan(self, measure) -> None:
        x = torch.randn(40, 8, generator=_generator())
        assert measure(x.bfloat16()) == pytest.approx(measure(x), rel=0.01)
        with pytest.raises(DataError, match="NaN or infinite values in 40 of 40 rows"):
            measure(x / 0)


class TestAuroc:
    @pytest.mark.parametrize("levels", [1000, 5])
    def test_equals_scikit_learn(self, levels: int) -> None:
        rng = np.random.default_rng(0)
        y, score = rng.integers(0, 2, 300), rng.integers(0, levels, 300) / 7
        assert auroc(y, score) == pytest.approx(roc_auc_score(y, score))
        assert auroc(torch.tensor(y).bool(), torch.tensor(score)) == pytest.approx(roc_auc_score(y, score))

    def test_says_what_is_wrong(self) -> None:
        with pytest.raises(DataError, match="0 positives and 3 negatives"):
            auroc([0, 0, 0], [1.0, 2.0, 3.0])
        with pytest.raises(DataError, match="must hold 0 and 1 only"):
            auroc([0, 1, 2], [1.0, 2.0, 3.0])
        with pytest.raises(DataError, match="NaN at 1 of 2"):
            auroc([0, 1], [1.0, math.nan])
        with pytest.raises(DataError, match="same length"):
            auroc([0, 1], [1.0])


def _mean(y_true: np.ndarray, y_score: np.ndarray) -> float:
    return float(y_score.mean())


class TestBootstrap:
    def test_covers_the_mean_of_a_normal(self) -> None:
        rng = np.random.default_rng(0)
        inside, widths = 0, []
        for seed in range(200):
            sample = rng.standard_normal(60)
            interval = bootstrap_interval(_mean, sample, sample, n=200, level=0.9, seed=seed)
            inside += interval.low <= 0 <= interval.high
            widths.append(interval.high - interval.low)
        assert 0.84 <= inside / 200 <= 0.95
        assert np.mean(widths) == pytest.approx(2 * 1.645 / math.sqrt(60), rel=0.08)

    def test_rows_stay_paired_and_the_seed_decides(self) -> None:
        y = np.random.default_rng(0).standard_normal(50)
        gap = bootstrap_interval(lambda a, b: float(np.abs(a - b).max()), y, y.copy(), n=50)
        assert (gap.value, gap.low, gap.high, gap.resamples_used) == (0, 0, 0, 50)
        first, again, other = (bootstrap_interval(_mean, y, y, n=50, seed=seed) for seed in (1, 1, 2))
        assert first == again != other

    def test_groups_are_drawn_whole(self) -> None:
        groups = np.array(["b", "a", "c", "a", "c", "c"])
        seen = set()

        def metric(y_true: np.ndarray, y_score: np.ndarray) -> float:
            counts = np.bincount(y_true, minlength=6)
            assert counts[1] == counts[3]
            assert counts[2] == counts[4] == counts[5]
            assert counts[0] + counts[1] + counts[2] == 3
            seen.add(len(y_true))
            return float(y_score.mean())

        rows = np.arange(6)
        assert bootstrap_interval(metric, rows, rows.astype(float), n=200, groups=groups).resamples_used == 200
        assert seen >= {3, 9, 6}

    def test_groups_widen_the_interval_of_repeated_measurements(self) -> None:
        people = np.random.default_rng(0).standard_normal(40)
        person = np.repeat(np.arange(40), 25)
        by_row = bootstrap_interval(_mean, people[person], people[person], n=300)
        by_person = bootstrap_interval(_mean, people[person], people[person], n=300, groups=person)
        assert by_row.value == by_person.value == pytest.approx(people.mean())
        ratio = (by_person.high - by_person.low) / (by_row.high - by_row.low)
        assert ratio == pytest.approx(5, rel=0.2)  # √25

    def test_undefined_resamples_are_skipped_and_counted(self) -> None:
        y_true = torch.tensor([1, 0, 0, 0, 0])
        score = torch.tensor([0.9, 0.1, 0.2, 0.3, 0.4])
        interval = bootstrap_interval(auroc, y_true, score, n=400)
        assert interval.value == 1.0
        assert interval.resamples_used + interval.resamples_skipped == 400
        assert interval.resamples_skipped / 400 == pytest.approx(0.8**5, abs=0.08)
        nan = bootstrap_interval(lambda t, s: math.nan if float(t.double().mean()) > 0.3 else 1.0, y_true, score, n=100)
        assert 0 < nan.resamples_skipped < 100

    def test_says_what_is_wrong(self) -> None:
        y = np.zeros(4)
        with pytest.raises(DataError, match="y_true has 4 rows and y_score 3"):
            bootstrap_interval(_mean, y, y[:3])
        with pytest.raises(DataError, match="needs both"):
            bootstrap_interval(auroc, y, y)
        with pytest.raises(DataError, match="groups has shape"):
            bootstrap_interval(_mean, y, y, groups=[1, 2])
        with pytest.raises(ConfigError, match="level=95"):
            bootstrap_interval(_mean, y, y, level=95)
        calls = iter([1.0] + [math.nan] * 10)
        with pytest.raises(DataError, match="undefined on all 10 resamples of 4 rows"):
            bootstrap_interval(lambda t, s: next(calls), y, y, n=10)
