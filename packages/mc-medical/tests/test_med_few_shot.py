"""Few-shot heads beside scikit-learn, and what a support may know."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mc_core.errors import ConfigError, DataError
from mc_medical.evaluation import few_shot, fit_head
from mc_medical.evaluation.heads import PENALTIES, _folds, _support
from mc_medical.evaluation.zero_shot import binary_probabilities


def data(seed, rows, dim, gap=1.5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows).astype(float)
    y[:2] = 0, 1
    x = rng.normal(size=(rows, dim))
    x[:, 0] += gap * y
    return x, y


class TestHead:
    @pytest.mark.parametrize(("rows", "dim"), [(40, 5), (8, 30), (30, 30)])
    @pytest.mark.parametrize("c", [0.01, 1.0, 100.0])
    def test_beside_scikit_learn(self, rows, dim, c):
        """Also where there are fewer rows than dimensions, which are then not all solved for."""
        x, y = data(0, rows, dim)
        centre = x.mean(axis=0)
        scale = np.sqrt(((x - centre) ** 2).mean(axis=0).sum())
        other = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit((x - centre) / scale, y)
        head, new = fit_head(x, y, c=c), data(1, 25, dim)[0]
        assert head.logits(new) == pytest.approx(other.decision_function((new - centre) / scale), abs=2e-4)
        assert head.c == c

    def test_the_optimum_has_no_slope(self):
        x, y = data(3, 20, 4)
        head = fit_head(x, y, c=3.0)
        chance = 1 / (1 + np.exp(-head.logits(x)))
        scale = np.sqrt(((x - x.mean(axis=0)) ** 2).mean(axis=0).sum())
        assert (chance - y).sum() == pytest.approx(0, abs=1e-6)
        slope = 3.0 * ((x - x.mean(axis=0)) / scale).T @ (chance - y) + head.weight * scale
        assert slope == pytest.approx(np.zeros(4), abs=1e-6)

    def test_units_and_place_of_features_do_not_count(self):
        x, y = data(4, 30, 4)
        plain, moved = fit_head(x, y), fit_head(1000 * x + 7, y)
        assert plain.c == moved.c
        assert plain.logits(x) == pytest.approx(moved.logits(1000 * x + 7), abs=1e-6)

    def test_a_strong_penalty_leaves_the_prior(self):
        x, y = data(5, 30, 4)
        prior = np.array([1.0, -2.0, 0.5, 0.0])
        assert fit_head(x, y, c=1e-9, prior=prior).weight == pytest.approx(prior, abs=1e-6)
        assert fit_head(x, y, c=1e-9).weight == pytest.approx(np.zeros(4), abs=1e-6)

    def test_without_penalty_the_prior_is_forgotten(self):
        x, y = data(6, 200, 3)
        assert fit_head(x, y, c=1e6, prior=np.array([5.0, 5, 5])).weight == pytest.approx(
            fit_head(x, y, c=1e6).weight, abs=1e-3
        )

    def test_the_prior_of_prompts_is_the_zero_shot_order(self):
        rng = np.random.default_rng(7)
        x, pair = rng.normal(size=(20, 5)), rng.normal(size=(2, 5))
        x, pair = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, pair))
        zero = binary_probabilities(x, pair[:1], pair[1:], 12.0)[:, 0]
        head = fit_head(x, np.arange(20) % 2, c=1e-9, prior=12.0 * (pair[0] - pair[1]))
        assert (np.argsort(head.logits(x)) == np.argsort(zero)).all()

    def test_a_good_prior_helps_with_few_rows(self):
        better = 0
        new, truth = data(99, 400, 60, gap=2.0)
        for seed in range(8):
            x, y = data(seed, 400, 60, gap=2.0)
            rows = _support(y, 4, seed)
            prior = np.zeros(60)
            prior[0] = 2.0
            plain, pulled = (fit_head(x[rows], y[rows], prior=p).logits(new) for p in (None, prior))
            better += ((pulled > 0) == truth).mean() > ((plain > 0) == truth).mean()
        assert better >= 7

    def test_the_penalty_is_chosen_among_those_named(self):
        x, y = data(8, 60, 3, gap=4.0)
        noise = np.random.default_rng(0).normal(size=(60, 40))
        assert fit_head(x, y).c > fit_head(noise, y).c
        assert fit_head(noise, y).c in PENALTIES

    def test_two_rows_are_enough(self):
        assert fit_head(np.array([[0.0], [1.0]]), np.array([0, 1])).c == 1.0

    @pytest.mark.parametrize(
        ("x", "y", "options", "message"),
        [
            (np.ones((2, 1)), [1, 1], {}, "2 positives and 0 negatives"),
            (np.ones((2, 1)), [1, 0, 1], {}, "a label for each row"),
            (np.full((2, 1), np.nan), [1, 0], {}, "finite"),
            (np.ones((2, 1)), [1, -1], {}, "0 or 1"),
            (np.ones((2, 1)), [1, 0], {"prior": np.ones(2)}, r"prior weights have shape \(2,\); 1"),
        ],
    )
    def test_bad_input(self, x, y, options, message):
        with pytest.raises(DataError, match=message):
            fit_head(x, np.array(y), **options)
        with pytest.raises(ConfigError, match="c=0"):
            fit_head(np.ones((2, 1)), np.array([0, 1]), c=0.0)


class TestSupports:
    def test_so_many_of_each_and_nested(self):
        y = np.where(np.random.default_rng(0).random(100) < 0.3, np.nan, np.arange(100) % 2)
        small, large = (_support(y, k, 5) for k in (4, 16))
        assert (y[small] == 1).sum() == (y[small] == 0).sum() == 4
        assert len(large) == 32
        assert set(small) <= set(large)
        assert _support(y, 60, 5) is None

    def test_a_share_of_the_labelled(self):
        y = np.where(np.arange(200) < 100, np.nan, np.arange(200) % 2)
        rows = _support(y, 0.1, 5)
        assert len(rows) == 10
        assert not np.isnan(y[rows]).any()
        assert _support(y, 0.001, 5) is None
        assert len(_support(y, 1.0, 5)) == 100

    def test_folds_keep_patients_together_and_spread_positives(self):
        patients = np.repeat(np.arange(20), 3)
        y = np.repeat(np.arange(20) < 5, 3).astype(float)
        fold = _folds(y, patients, 0)
        for patient in range(20):
            assert len(set(fold[patients == patient])) == 1
        assert [y[fold == number].sum() for number in range(5)] == [3] * 5


class TestProtocol:
    x, y = data(11, 300, 6, gap=3.0)
    test_x, test_y = data(12, 200, 6, gap=3.0)

    def run(self, **options):
        given = {"shots": (4, 16), "shares": (0.1, 1.0), "draws": 3, "resamples": 0} | options
        return few_shot(self.x, self.y[:, None], self.test_x, self.test_y[:, None], ["Edema"], **given)

    def test_more_labels_read_more(self):
        found = self.run(draws=5)
        assert list(found.macro) == ["4", "16", "10%", "100%"]
        assert 0.7 < found.macro["4"] < found.macro["16"] < found.macro["100%"] <= 1
        assert found.spread["4"]["Edema"] > 0
        assert found.macro_spread["100%"] == 0
        assert found.rows["10%"]["Edema"] == 30

    def test_the_seed_decides_and_nothing_else(self):
        assert self.run(seed=1).auroc == self.run(seed=1).auroc
        assert self.run(seed=1).auroc["4"] != self.run(seed=2).auroc["4"]
        assert self.run(shots=(4,)).auroc["4"] == self.run().auroc["4"]

    def test_test_rows_take_no_part_in_any_choice(self):
        half = few_shot(
            self.x,
            self.y[:, None],
            self.test_x[:100],
            self.test_y[:100, None],
            ["Edema"],
            shots=(8,),
            shares=(),
            resamples=0,
        )
        x, y = np.concatenate([self.test_x[:100]] * 2), np.concatenate([self.test_y[:100]] * 2)
        twice = few_shot(self.x, self.y[:, None], x, y[:, None], ["Edema"], shots=(8,), shares=(), resamples=0)
        assert half.auroc == twice.auroc

    def test_intervals_over_test_patients(self):
        found = self.run(resamples=50, test_patients=np.arange(200) // 2).interval["16"]["Edema"]
        assert found.low < found.value < found.high
        assert found.patients == 100

    def test_the_penalty_is_chosen_on_whole_patients(self):
        """Patients with four copies of one image and labels by chance: only folds of patients see that nothing is learned."""
        rng = np.random.default_rng(0)
        who = np.repeat(np.arange(40), 4)
        x, y = np.repeat(rng.normal(size=(40, 30)), 4, axis=0), np.repeat(np.arange(40) % 2, 4).astype(float)
        assert fit_head(x, y, patients=who).c < fit_head(x, y).c
        options = {"shots": (), "shares": (1.0,), "resamples": 0}
        test = rng.normal(size=(50, 30)), np.arange(50)[:, None] % 2
        a, b = (few_shot(x, y[:, None], *test, ["a"], train_patients=p, **options) for p in (who, None))
        assert a.auroc["100%"] != b.auroc["100%"]

    def test_what_cannot_be_fitted_is_named(self):
        found = self.run(shots=(4, 500))
        assert found.left_out == {"500 Edema": "too few training rows"}
        assert "500" not in found.auroc
        with pytest.raises(DataError, match="no head could be fitted"):
            self.run(shots=(500,), shares=())

    def test_a_patient_on_both_sides(self):
        with pytest.raises(DataError, match="2 patients lie in training and in test"):
            self.run(train_patients=np.arange(300), test_patients=np.arange(298, 498))

    def test_bad_options(self):
        with pytest.raises(ConfigError, match="shares=\\(2.0,\\)"):
            self.run(shares=(2.0,))
        with pytest.raises(DataError, match="of one model"):
            few_shot(self.x, self.y[:, None], self.test_x[:, 1:], self.test_y[:, None], ["Edema"])
