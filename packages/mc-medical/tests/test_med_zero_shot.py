"""Zero-shot scores, probabilities, intervals and calibration, beside scikit-learn and naive float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import bootstrap_interval
from mc_medical.evaluation import (
    area,
    area_interval,
    binary_probabilities,
    class_probabilities,
    class_scores,
    exclusive_class,
    interval_of,
    macro_interval,
    mean_interval,
    reliability,
    score_binary,
    zero_shot_multiclass,
)
from mc_medical.evaluation.intervals import Interval
from mc_medical.evaluation.zero_shot import macro_f1

NAMES = ("Atelectasis", "Edema", "Pleural Effusion")
NAN = float("nan")


def directions(seed, rows, dim=6, dtype=np.float64):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


IMAGES, POSITIVE, NEGATIVE = directions(0, 40), directions(1, 3), directions(2, 3)


class TestScores:
    def test_probabilities_by_definition(self):
        found = class_probabilities(IMAGES, POSITIVE, 14.3)
        for i, image in enumerate(IMAGES):
            odds = [math.exp(14.3 * sum(a * b for a, b in zip(image, vector, strict=True))) for vector in POSITIVE]
            assert found[i] == pytest.approx([o / sum(odds) for o in odds], abs=1e-12)

    def test_a_pair_by_definition_with_kappa(self):
        found = binary_probabilities(IMAGES, POSITIVE, NEGATIVE, 14.3)
        for i, image in enumerate(IMAGES):
            for c in range(3):
                up, down = math.exp(14.3 * image @ POSITIVE[c]), math.exp(14.3 * image @ NEGATIVE[c])
                assert found[i, c] == pytest.approx(up / (up + down), abs=1e-12)

    def test_kappa_spreads_probabilities_and_changes_no_order(self):
        sharp, raw = (binary_probabilities(IMAGES, POSITIVE, NEGATIVE, k) for k in (20.0, 1.0))
        assert np.array_equal(sharp.argsort(axis=0), raw.argsort(axis=0))
        assert sharp.std() > 2 * raw.std()

    @pytest.mark.parametrize("scores", ["class", "binary", "cosine"])
    def test_one_image_alone_equals_it_in_a_batch(self, scores):
        def run(images):
            if scores == "binary":
                return binary_probabilities(images, POSITIVE, NEGATIVE, 14.3)
            return class_probabilities(images, POSITIVE, 14.3) if scores == "class" else class_scores(images, POSITIVE)

        whole = run(IMAGES)
        assert np.allclose(np.concatenate([run(IMAGES[i : i + 1]) for i in range(40)]), whole, rtol=0, atol=1e-14)
        assert np.allclose(run(IMAGES[::-1])[::-1], whole, rtol=0, atol=1e-14)
        assert np.allclose(run(np.concatenate([IMAGES, -IMAGES]))[:40], whole, rtol=0, atol=1e-14)

    def test_both_sides_of_a_pair_sum_to_one(self):
        there, absent = (
            binary_probabilities(IMAGES, a, b, 9.0) for a, b in ((POSITIVE, NEGATIVE), (NEGATIVE, POSITIVE))
        )
        assert np.allclose(there + absent, 1)

    def test_extreme_scale_does_not_overflow(self):
        for found in (
            class_probabilities(IMAGES, POSITIVE, 1e6),
            binary_probabilities(IMAGES, POSITIVE, NEGATIVE, 1e6),
        ):
            assert np.isfinite(found).all()
            assert ((found >= 0) & (found <= 1)).all()

    @pytest.mark.parametrize("scale", [0.0, -1.0, NAN, math.inf])
    def test_a_scale_that_is_none(self, scale):
        with pytest.raises(DataError, match="must be positive"):
            class_probabilities(IMAGES, POSITIVE, scale)

    def test_vectors_must_have_length_one(self):
        with pytest.raises(DataError, match=r"images: row 2 has length 2"):
            class_scores(IMAGES * np.where(np.arange(40) == 2, 2, 1)[:, None], POSITIVE)
        with pytest.raises(DataError, match=r"class vectors has 5 dimensions, 6 are needed"):
            class_scores(IMAGES, directions(1, 3, 5))
        broken = IMAGES.copy()
        broken[7, 0] = NAN
        with pytest.raises(DataError, match=r"not finite in 1 of 40 rows, first in row 7"):
            class_scores(broken, POSITIVE)
        with pytest.raises(DataError, match="must come in pairs"):
            binary_probabilities(IMAGES, POSITIVE, NEGATIVE[:2], 1.0)


class TestExclusive:
    labels = np.array([[1, 0, NAN], [1, 1, 0], [0, 0, 0], [NAN, 1, 0], [1, -1, 0], [0, NAN, 1], [1, NAN, NAN]])

    def test_one_positive_and_no_doubt(self):
        assert exclusive_class(self.labels, NAMES, NAMES).tolist() == [0, -1, -1, 1, -1, 2, 0]

    def test_only_the_classes_asked_for_count_in_their_order(self):
        assert exclusive_class(self.labels, NAMES, ["Edema", "Atelectasis"]).tolist() == [1, -1, -1, 0, -1, -1, 1]

    def test_so_many_of_each(self):
        labels = np.eye(3)[np.arange(60) % 3]
        found = exclusive_class(labels, NAMES, NAMES, per_class=7, seed=3)
        assert np.bincount(found[found >= 0]).tolist() == [7, 7, 7]
        assert (found[found >= 0] == (np.arange(60) % 3)[found >= 0]).all()
        assert (found == exclusive_class(labels, NAMES, NAMES, per_class=7, seed=3)).all()
        assert (found != exclusive_class(labels, NAMES, NAMES, per_class=7, seed=4)).any()
        assert (exclusive_class(labels, NAMES, NAMES, per_class=50) == np.arange(60) % 3).all()

    def test_a_class_that_is_no_label(self):
        with pytest.raises(ConfigError, match=r"'Oedema' is no label of the studies; closest: Edema"):
            exclusive_class(self.labels, NAMES, ["Oedema"])


class TestMultiClass:
    truth = np.random.default_rng(5).integers(-1, 3, 40)

    def test_beside_scikit_learn(self):
        found = zero_shot_multiclass(IMAGES, POSITIVE, self.truth, NAMES, scale=10.0, draws=0)
        rows = self.truth >= 0
        y, predicted = self.truth[rows], (IMAGES[rows] @ POSITIVE.T).argmax(axis=1)
        assert (found.predicted == predicted).all()
        assert found.accuracy.value == pytest.approx(metrics.accuracy_score(y, predicted))
        assert found.macro_f1.value == pytest.approx(metrics.f1_score(y, predicted, average="macro"))
        assert (found.confusion == metrics.confusion_matrix(y, predicted, labels=[0, 1, 2])).all()
        assert list(found.recall.values()) == pytest.approx(metrics.recall_score(y, predicted, average=None))
        assert found.chance == pytest.approx(np.bincount(y).max() / len(y))
        assert found.accuracy.rows == rows.sum()

    def test_order_of_images_and_of_classes_does_not_count(self):
        plain = zero_shot_multiclass(IMAGES, POSITIVE, self.truth, NAMES, scale=10.0, draws=0)
        mixed = np.random.default_rng(1).permutation(40)
        turned = zero_shot_multiclass(IMAGES[mixed], POSITIVE, self.truth[mixed], NAMES, scale=10.0, draws=0)
        swap = np.array([2, 0, 1])
        renamed = np.where(self.truth >= 0, np.argsort(swap)[self.truth], -1)
        other = zero_shot_multiclass(IMAGES, POSITIVE[swap], renamed, [NAMES[i] for i in swap], scale=10.0, draws=0)
        for found in (turned, other):
            assert found.accuracy == plain.accuracy
            assert found.macro_f1.value == pytest.approx(plain.macro_f1.value)
            assert found.recall == plain.recall

    @pytest.mark.parametrize("seed", range(3))
    def test_macro_f1_beside_scikit_learn(self, seed):
        rng = np.random.default_rng(seed)
        y, p = rng.integers(0, 4, 30), rng.integers(0, 3, 30)
        assert macro_f1(y, p, 6) == pytest.approx(metrics.f1_score(y, p, average="macro", zero_division=0))

    def test_what_cannot_be(self):
        with pytest.raises(DataError, match=r"no image shows exactly one of Atelectasis, Edema"):
            zero_shot_multiclass(IMAGES, POSITIVE, np.full(40, -1), NAMES, scale=10.0)
        with pytest.raises(DataError, match="there are 3 classes"):
            zero_shot_multiclass(IMAGES, POSITIVE, np.full(40, 3), NAMES, scale=10.0)
        with pytest.raises(DataError, match="3 class vectors and 2 names"):
            zero_shot_multiclass(IMAGES, POSITIVE, self.truth, NAMES[:2], scale=10.0)
        with pytest.raises(DataError, match="a class number for each of 40"):
            zero_shot_multiclass(IMAGES, POSITIVE, self.truth[:-1], NAMES, scale=10.0)


class TestBinary:
    rng = np.random.default_rng(9)
    labels = np.where(rng.random((40, 3)) < 0.15, NAN, rng.integers(0, 2, (40, 3)))
    p = binary_probabilities(IMAGES, POSITIVE, NEGATIVE, 8.0)

    def test_beside_scikit_learn_without_unlabelled_rows(self):
        found = score_binary(self.p, self.labels, NAMES, draws=0)
        areas = []
        for c, name in enumerate(NAMES):
            known = ~np.isnan(self.labels[:, c])
            y, p = self.labels[known, c], self.p[known, c]
            areas.append(metrics.roc_auc_score(y, p))
            assert found.auroc[name].value == pytest.approx(areas[-1])
            assert found.auprc[name].value == pytest.approx(metrics.average_precision_score(y, p))
            assert found.positives[name] == pytest.approx(y.mean())
            assert found.calibration[name].brier == pytest.approx(metrics.brier_score_loss(y, p))
            assert found.auroc[name].rows == known.sum()
        assert found.macro_auroc.value == pytest.approx(np.mean(areas))

    def test_an_observation_of_one_class_is_left_out_by_name(self):
        labels = self.labels.copy()
        labels[:, 1] = 0
        found = score_binary(self.p, labels, NAMES, draws=0)
        assert found.left_out == {"Edema": "0 positives and 40 negatives"}
        assert list(found.auroc) == ["Atelectasis", "Pleural Effusion"]
        whole = score_binary(self.p, self.labels, NAMES, draws=0).auroc
        assert found.macro_auroc.value == pytest.approx((whole[NAMES[0]].value + whole[NAMES[2]].value) / 2)

    def test_uncertain_labels_are_no_labels(self):
        labels = self.labels.copy()
        labels[4, 2] = -1
        with pytest.raises(DataError, match=r"'Pleural Effusion' is -1 in row 4; .* resolve_labels first"):
            score_binary(self.p, labels, NAMES)

    def test_nothing_to_measure(self):
        with pytest.raises(DataError, match="no observation has both"):
            score_binary(self.p, np.zeros((40, 3)), NAMES)
        with pytest.raises(DataError, match=r"\[0, 1\]"):
            score_binary(self.p * 3, self.labels, NAMES)

    def test_json_holds_no_rows(self):
        import json

        text = json.dumps(score_binary(self.p, self.labels, NAMES, draws=5).to_dict())
        assert len(text) < 3000


class TestAreas:
    @pytest.mark.parametrize("seed", range(6))
    def test_beside_scikit_learn_with_ties(self, seed):
        rng = np.random.default_rng(seed)
        y = rng.integers(0, 2, 50)
        score = rng.integers(0, 8, 50) / 8.0 if seed % 2 else rng.random(50)
        assert area("auprc", y, score) == pytest.approx(metrics.average_precision_score(y, score), abs=1e-12)
        assert area("auroc", y, score) == pytest.approx(metrics.roc_auc_score(y, score), abs=1e-12)

    def test_closed_forms(self):
        assert area("auprc", np.array([1, 1, 0, 0]), np.array([4, 3, 2, 1])) == 1
        assert area("auprc", np.array([0, 0, 0, 1]), np.zeros(4)) == 0.25
        assert area("auprc", np.array([0, 0, 1]), np.array([3, 2, 1])) == pytest.approx(1 / 3)
        assert area("auroc", np.array([0, 0, 0, 1]), np.zeros(4)) == 0.5

    @pytest.mark.parametrize(
        ("y", "score", "message"),
        [
            ([0, 0], [1, 2], "there are 0 of 2 positives"),
            ([0, 1], [1, NAN], "not finite at 1 of 2"),
            ([0, 1], [1], "same length"),
            ([], [], "not empty"),
            ([0, 2], [1, 2], "truth of 0 and 1"),
        ],
    )
    def test_bad_input(self, y, score, message):
        with pytest.raises(DataError, match=message):
            area("auroc", np.array(y), np.array(score))


class TestIntervals:
    @pytest.mark.parametrize("name", ["auroc", "auprc"])
    def test_the_same_as_one_resample_after_the_other(self, name):
        rng = np.random.default_rng(2)
        y, who = rng.integers(0, 2, 60), rng.integers(0, 25, 60)
        score = y + rng.normal(size=60)
        fast = area_interval(name, y, score, who, draws=150, seed=4)
        core = bootstrap_interval(lambda a, b: area(name, a, b), y, score, n=150, seed=4, groups=who)
        assert (fast.value, fast.low, fast.high) == pytest.approx((core.value, core.low, core.high), abs=1e-9)
        slow = interval_of(lambda a, b: area(name, a, b), y, score, who, draws=150, seed=4)
        assert (slow.low, slow.high, slow.patients) == pytest.approx((fast.low, fast.high, fast.patients), abs=1e-9)
        mean = mean_interval(score, who, draws=150, seed=4)
        other = interval_of(lambda a, _: float(a.mean()), score, score, who, draws=150, seed=4)
        assert (mean.value, mean.low, mean.high) == pytest.approx((other.value, other.low, other.high), abs=1e-9)

    def test_macro_is_the_mean_over_columns_of_the_same_resample(self):
        rng = np.random.default_rng(6)
        y = np.where(rng.random((80, 3)) < 0.2, NAN, rng.integers(0, 2, (80, 3)))
        score, who = np.nan_to_num(y) + rng.normal(size=(80, 3)), rng.integers(0, 40, 80)

        def naive(truth, p):
            known = ~np.isnan(truth)
            return float(np.mean([area("auroc", truth[known[:, c], c], p[known[:, c], c]) for c in range(3)]))

        fast = macro_interval("auroc", y, score, who, draws=100, seed=1)
        slow = interval_of(naive, y, score, who, draws=100, seed=1)
        assert (fast.value, fast.low, fast.high) == pytest.approx((slow.value, slow.low, slow.high), abs=1e-9)

    def test_patients_are_drawn_whole(self):
        """Ten copies of each row are no more evidence than one: the interval stays as wide."""
        rng = np.random.default_rng(0)
        y = rng.integers(0, 2, 60)
        score = y + rng.normal(size=60)
        once = area_interval("auroc", y, score, draws=400)
        copied = np.repeat(np.arange(60), 10)
        many = area_interval("auroc", y[copied], score[copied], copied, draws=400)
        naive = area_interval("auroc", y[copied], score[copied], draws=400)
        assert many.patients == once.patients == 60
        assert many.rows == 600
        assert many.high - many.low == pytest.approx(once.high - once.low, rel=0.02)
        assert naive.high - naive.low < 0.5 * (many.high - many.low)

    def test_it_covers_the_truth_about_as_often_as_it_says(self):
        inside = 0
        for seed in range(60):
            value = np.random.default_rng(seed).normal(size=80)
            found = mean_interval(value, draws=200, seed=seed)
            inside += found.low <= 0 <= found.high
        assert 50 <= inside <= 60

    def test_names_of_patients_do_not_count(self):
        rng = np.random.default_rng(3)
        y, score, who = rng.integers(0, 2, 50), rng.random(50), rng.integers(0, 20, 50)
        a = area_interval("auroc", y, score, who, draws=100)
        assert a == area_interval("auroc", y, score, [f"patient {w:03d}" for w in who], draws=100)

    def test_undefined_resamples_are_counted_or_leave_no_interval(self):
        y, score = np.array([1, 0, 0, 0, 0, 0]), np.arange(6.0)
        assert 20 < area_interval("auroc", y, score, draws=200).skipped < 120
        mixed = macro_interval("auroc", np.stack([y, 1 - y], axis=1), np.stack([score, score], axis=1), draws=200)
        assert 20 < mixed.skipped < 120
        one = area_interval("auroc", np.array([1, 0]), np.array([1.0, 0]), ["a", "a"], draws=20)
        assert (one.low, one.high, one.patients) == (1, 1, 1)
        never = interval_of(lambda _, b: _raise_if_repeated(b), y, score, draws=20)
        assert (never.value, never.low, never.skipped) == (0, None, 20)
        assert str(Interval(0.5, None, None, 3, 3)) == "0.500"
        assert str(Interval(0.5, 0.25, 0.75, 3, 3)) == "0.500 (0.250–0.750)"

    def test_macro_is_undefined_where_a_column_is(self):
        y = np.array([[0, 1], [1, NAN], [0, 1]])
        with pytest.raises(DataError, match="there are 2 of 2 positives"):
            macro_interval("auroc", y, np.random.default_rng(0).random((3, 2)))

    def test_wrong_number_of_patients(self):
        with pytest.raises(DataError, match="each of 2 rows needs its patient"):
            area_interval("auroc", np.array([0, 1]), np.array([0.0, 1]), ["a"])
        with pytest.raises(DataError, match="not empty"):
            mean_interval(np.array([]))


def _raise_if_repeated(rows):
    if len(np.unique(rows)) < len(rows):
        raise DataError("repeated")
    return 0.0


class TestReliability:
    @pytest.mark.parametrize("by", ["width", "count"])
    def test_the_error_by_definition(self, by):
        rng = np.random.default_rng(4)
        p = rng.random(97)
        y = (rng.random(97) < p**2).astype(float)
        found = reliability(p, y, bins=7, by=by)
        if by == "width":
            bins = [[i for i in range(97) if b / 7 <= p[i] < (b + 1) / 7] for b in range(7)]
        else:
            rank = {i: r for r, i in enumerate(sorted(range(97), key=lambda i: p[i]))}
            bins = [[i for i in range(97) if rank[i] * 7 // 97 == b] for b in range(7)]
        error = sum(abs(sum(p[i] for i in b) - sum(y[i] for i in b)) for b in bins) / 97
        assert found.error == pytest.approx(error, abs=1e-12)
        assert found.count.sum() == 97
        assert found.count.tolist() == [len(b) for b in bins if b]
        assert found.brier == pytest.approx(metrics.brier_score_loss(y, p))
        assert found.largest == pytest.approx(np.abs(found.stated - found.observed).max())

    def test_honest_and_boastful_probabilities(self):
        rng = np.random.default_rng(0)
        p = rng.random(20_000)
        y = (rng.random(20_000) < p).astype(float)
        assert reliability(p, y).error < 0.02
        assert reliability(np.where(p > 0.5, 0.999, 0.001), y).error > 0.2

    def test_one_and_zero_have_a_bin(self):
        assert reliability(np.array([1.0, 0.0]), np.array([1, 0])).error == 0

    def test_equal_probabilities_stay_in_one_bin(self):
        found = reliability(np.full(10, 0.3), np.arange(10) % 2, bins=5, by="count")
        assert found.count.tolist() == [10]

    @pytest.mark.parametrize(
        ("p", "y", "message"),
        [
            ([1.5], [1], "lie in"),
            ([NAN], [1], "lie in"),
            ([0.5], [2], "0 and 1"),
            ([], [], "not empty"),
            ([0.5], [1, 0], "same length"),
        ],
    )
    def test_bad_input(self, p, y, message):
        with pytest.raises(DataError, match=message):
            reliability(np.array(p), np.array(y))
        with pytest.raises(ConfigError, match="bins=0"):
            reliability(np.array([0.5]), np.array([1]), bins=0)
