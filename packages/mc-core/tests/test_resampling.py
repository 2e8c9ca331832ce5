"""Weighted metrics and the bootstrap over groups: naive loops, scikit-learn, closed forms, coverage, and bad input."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from mc_core import resampling
from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import bootstrap_interval
from mc_core.resampling import METRICS, bootstrap_metrics, holm, metric, paired_difference


def scores(rows=80, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    truth = (rng.random(rows) < 0.4).astype(float)
    score = truth + rng.normal(size=rows)
    return truth, np.round(score, 1) if ties else score, rng.integers(0, 4, rows).astype(float)


def naive_curve(truth, score):
    points = [(0.0, 0.0)]
    for threshold in sorted(set(score), reverse=True):
        chosen = score >= threshold
        points.append(((chosen & (truth == 0)).sum() / (truth == 0).sum(), (chosen & (truth == 1)).sum() / truth.sum()))
    return points


def naive_partial(truth, score, limit=0.1, steps=200_000):
    false, true = np.array(naive_curve(truth, score)).T
    at = (np.arange(steps) + 0.5) / steps * limit
    return np.interp(at, false, true).mean()


@pytest.mark.parametrize("ties", [False, True])
def test_classification_metrics_against_loops_and_scikit_learn(ties):
    truth, score, _ = scores(ties=ties)
    one = np.ones((1, len(truth)))
    pairs = [(a > b) + 0.5 * (a == b) for a, is_a in zip(score, truth, strict=True) if is_a for b in score[truth == 0]]
    assert metric("auroc")(truth, score, one)[0] == pytest.approx(np.mean(pairs), abs=1e-12)
    assert metric("auroc")(truth, score, one)[0] == pytest.approx(metrics.roc_auc_score(truth, score), abs=1e-12)

    precision = 0.0
    for threshold in sorted(set(score), reverse=True):
        chosen = score >= threshold
        gained = ((score == threshold) & (truth == 1)).sum() / truth.sum()
        precision += gained * (chosen & (truth == 1)).sum() / chosen.sum()
    assert metric("auprc")(truth, score, one)[0] == pytest.approx(precision, abs=1e-12)
    assert precision == pytest.approx(metrics.average_precision_score(truth, score), abs=1e-12)

    partial = metric("partial_auroc")(truth, score, one)[0]
    jumps = {false for false, _ in naive_curve(truth, score)}
    assert len(jumps) > 5
    assert metrics.roc_auc_score(truth, score, max_fpr=0.1) == pytest.approx(
        0.5 * (1 + (0.1 * partial - 0.005) / (0.1 - 0.005)), abs=1e-12
    )
    if ties:  # a curve without vertical steps can be integrated bluntly
        assert partial == pytest.approx(naive_partial(truth, score), abs=0.02)


def test_regression_metrics_against_scikit_learn():
    rng = np.random.default_rng(1)
    truth, score = rng.normal(50, 9, 40), rng.normal(50, 9, 40)
    one = np.ones((1, 40))
    assert metric("mae")(truth, score, one)[0] == pytest.approx(metrics.mean_absolute_error(truth, score))
    assert metric("r2")(truth, score, one)[0] == pytest.approx(metrics.r2_score(truth, score))
    assert metric("r2")(truth, truth, one)[0] == 1


@pytest.mark.parametrize("name", list(METRICS))
def test_a_weight_is_a_number_of_copies(name):
    truth, score, weight = scores(seed=3)
    copies = np.arange(len(truth)).repeat(weight.astype(int))
    found = METRICS[name](truth, score, np.stack([weight, np.ones(len(truth))]))
    assert found[0] == pytest.approx(METRICS[name](truth[copies], score[copies], np.ones((1, len(copies))))[0])
    assert found[1] == pytest.approx(METRICS[name](truth, score, np.ones((1, len(truth))))[0])


def test_chance_and_perfection():
    truth = np.tile([0.0, 1.0], 50)
    one = np.ones((1, 100))
    flat = np.zeros(100)
    assert [METRICS[n](truth, flat, one)[0] for n in ("auroc", "partial_auroc", "auprc")] == [
        0.5,
        pytest.approx(0.05),
        0.5,
    ]
    assert [METRICS[n](truth, truth, one)[0] for n in ("auroc", "partial_auroc", "auprc")] == [1, pytest.approx(1), 1]


@pytest.mark.parametrize("name", list(METRICS))
def test_the_bootstrap_is_that_of_the_core(name, monkeypatch):
    truth, score, _ = scores(60, seed=5)
    group = np.arange(60) // 3
    ours = bootstrap_metrics(truth, score, group, [name], draws=150, seed=7)[name]

    def one(t, s):
        value = METRICS[name](t, s, np.ones((1, len(t))))[0]
        return float(value)

    theirs = bootstrap_interval(one, truth, score, groups=group, n=150, seed=7)
    assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-9)
    assert ours.resamples_used == theirs.resamples_used
    monkeypatch.setattr(resampling, "_BLOCK", 500)  # in pieces, nothing changes
    assert bootstrap_metrics(truth, score, group, [name], draws=150, seed=7)[name] == ours


def test_segments_pretend_to_be_surer_than_participants():
    """200 people × 20 segments."""
    rng = np.random.default_rng(0)
    person = np.arange(200).repeat(20)
    truth = (rng.random(200) < 0.5)[person].astype(float)
    score = truth + 1.5 * rng.normal(size=200)[person] + 0.7 * rng.normal(size=4000)
    by_person = bootstrap_metrics(truth, score, person, ["auroc"], draws=400)["auroc"]
    by_segment = bootstrap_metrics(truth, score, None, ["auroc"], draws=400)["auroc"]
    assert by_person.value == by_segment.value
    assert by_person.high - by_person.low > 2.5 * (by_segment.high - by_segment.low)


def test_an_interval_over_participants_covers_what_it_should():
    rng, covered = np.random.default_rng(1), 0
    for _ in range(60):
        person = np.arange(40).repeat(3)
        truth = np.tile([0.0, 1.0], 20)[person]
        score = rng.normal(size=40)[person] + 0.1 * rng.normal(size=120)
        found = bootstrap_metrics(truth, score, person, ["auroc"], draws=200)["auroc"]
        covered += found.low <= 0.5 <= found.high
    assert covered >= 51  # 95 % of 60 is 57, three deviations below it is 52


def test_resamples_with_one_class_are_skipped_and_counted():
    truth = np.array([1.0, 0, 0, 0])
    found = bootstrap_metrics(truth, np.arange(4.0), None, ["auroc"], draws=300)["auroc"]
    assert found.resamples_used + found.resamples_skipped == 300
    assert found.resamples_skipped == pytest.approx(300 * 0.75**4, abs=45)


def test_paired_differences_are_sharper_than_their_parts():
    rng = np.random.default_rng(2)
    truth = rng.normal(size=120)
    shared = truth + rng.normal(size=120)
    better, worse = shared, truth + 1.3 * (shared - truth) + 0.1 * rng.normal(size=120)
    group = np.arange(120) // 2
    found = paired_difference("mae", truth, better, worse, group, draws=500, seed=3)
    single = bootstrap_metrics(truth, better, group, ["mae"], draws=500, seed=3)["mae"]
    assert found.high - found.low < 0.7 * (single.high - single.low)
    errors = np.abs(truth - better), np.abs(truth - worse)
    assert found.value == pytest.approx(errors[0].mean() - errors[1].mean())
    assert found.value < 0
    assert found.low < found.value < found.high
    mirrored = paired_difference("mae", truth, worse, better, group, draws=500, seed=3)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    assert mirrored.p_value == found.p_value
    nothing = paired_difference("r2", truth, better, better, group, draws=50)
    assert (nothing.value, nothing.low, nothing.high, nothing.p_value) == (0, 0, 0, 1)
    assert paired_difference("mae", truth, truth, worse, group, draws=99).p_value == pytest.approx(0.02)


def test_holm_against_its_definition():
    p = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9}
    ordered = sorted(p.values())
    for name, value in holm(p).items():
        place = ordered.index(p[name])
        assert value == pytest.approx(min(1, max((5 - i) * ordered[i] for i in range(place + 1))))
    assert list(holm(p)) == list(p)
    with pytest.raises(DataError, match="p-value of a is 1.5"):
        holm({"a": 1.5})


def test_intervals_say_what_is_wrong():
    with pytest.raises(ConfigError, match="metric 'auc' is unknown; closest: auroc"):
        metric("auc")
    with pytest.raises(DataError, match="auroc is undefined: all 4 rows have the same truth, 1"):
        bootstrap_metrics(np.ones(4), np.arange(4.0), None, ["auroc"])
    with pytest.raises(DataError, match="needs truth of 0 and 1"):
        bootstrap_metrics(np.arange(4.0), np.arange(4.0), None, ["auroc"])
    with pytest.raises(DataError, match="NaN or infinite"):
        bootstrap_metrics(np.array([0.0, np.nan]), np.arange(2.0), None, ["mae"])
    with pytest.raises(ConfigError, match="draws=0"):
        bootstrap_metrics(np.arange(4.0), np.arange(4.0), None, ["mae"], draws=0)
