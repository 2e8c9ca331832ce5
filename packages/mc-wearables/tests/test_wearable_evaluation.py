"""Probes, intervals, identity and splits: naive loops, scikit-learn, closed forms, leaks, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import linear_model, metrics

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import bootstrap_interval
from mc_wearables.evaluation import (
    METRICS,
    Features,
    bootstrap_metrics,
    check_disjoint,
    compare,
    dispersion_ratio,
    holm,
    identity_report,
    metric,
    paired_difference,
    participant_split,
    probe,
    reidentification,
    smooth_effective_rank,
)
from mc_wearables.evaluation import identity as identity_module
from mc_wearables.evaluation import intervals as intervals_module
from mc_wearables.evaluation.probes import ALPHAS, FOLDS, _logistic, _ridge, _standardised


def features(people=60, each=4, dim=5, seed=0, first=0, labels=(), noise=1.0):
    """Person vectors with segment noise; age is linear in them, sex the sign of one, load a matter of the segment."""
    rng = np.random.default_rng(seed)
    person = np.arange(people).repeat(each)
    trait = rng.normal(size=(people, dim))[person]
    values = (trait + noise * rng.normal(size=trait.shape)).astype(np.float32)
    known = {
        "age": 50 + 10 * trait[:, 0] + 3 * trait[:, 1],
        "sex": (trait[:, 1] + 0.5 * rng.normal(size=people)[person] > 0).astype(float),
        "load": values[:, 2].astype(float) + 0.1 * rng.normal(size=len(person)),
        "coin": (rng.random(people) < 0.5)[person].astype(float),
    }
    keys = tuple(f"p{first + i}" for i in range(people))
    return Features(values, person, keys, np.arange(len(person)) // 2, known | dict(labels))


TRAIN, TEST = features(seed=1), features(seed=2, first=1000)


def test_a_split_follows_the_key_alone():
    keys = [f"person-{i}" for i in range(2000)]
    parts = participant_split(keys, {"train": 0.7, "test": 0.3}, salt="a")
    assert sorted(np.concatenate(list(parts.values()))) == list(range(2000))
    assert len(parts["test"]) == pytest.approx(600, abs=4 * np.sqrt(2000 * 0.21))
    order = np.random.default_rng(0).permutation(2000)[:500]
    again = participant_split([keys[i] for i in order], {"train": 0.7, "test": 0.3}, salt="a")
    assert {keys[order[i]] for i in again["test"]} == {keys[i] for i in parts["test"]} & {keys[i] for i in order}
    other = participant_split(keys, {"train": 0.7, "test": 0.3}, salt="b")
    assert 120 < len(np.intersect1d(other["test"], parts["test"])) < 240  # independent: 180 in both


def test_a_share_of_zero_is_empty_and_bad_shares_are_refused():
    parts = participant_split(["a", "b"], {"train": 1.0, "test": 0.0})
    assert (len(parts["train"]), len(parts["test"])) == (2, 0)
    with pytest.raises(ConfigError, match=r"add up to 0\.9; give shares that add up to 1"):
        participant_split(["a"], {"train": 0.8, "test": 0.1})
    with pytest.raises(DataError, match="participant 'b' is listed twice"):
        participant_split(["a", "b", "c", "b"])


def test_a_leak_is_an_error_that_counts_it():
    leaking = replace(TEST, participant_keys=("p3", "p7", *TEST.participant_keys[2:]))
    with pytest.raises(DataError, match="2 of 60 test participants are in the training data too, first 'p3'"):
        probe(TRAIN, leaking, "age")
    # a key in the table of which no segment is left is no leak
    check_disjoint(TRAIN, leaking.of_participants(range(2, 60)))
    with pytest.raises(DataError, match="1 of 2 test"):
        check_disjoint(["a", "b"], ["b", "c"])


def test_features_check_their_columns():
    with pytest.raises(DataError, match=r"session has shape \(3,\), but there are 240 rows"):
        replace(TRAIN, session=np.arange(3))
    values = TRAIN.values.copy()
    values[5, 0] = np.inf
    with pytest.raises(DataError, match="infinite in 1 of 240 rows, first in row 5"):
        replace(TRAIN, values=values)
    with pytest.raises(DataError, match="2 names for 5 features"):
        replace(TRAIN, names=("a", "b"))


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
    monkeypatch.setattr(intervals_module, "_BLOCK", 500)  # in pieces, nothing changes
    assert bootstrap_metrics(truth, score, group, [name], draws=150, seed=7)[name] == ours


def test_segments_pretend_to_be_surer_than_participants():
    """Trap 10 of the method page: 200 people × 20 segments."""
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


@pytest.mark.parametrize("alpha", [1e-6, 0.1, 100.0])
def test_ridge_is_that_of_scikit_learn(alpha):
    rng = np.random.default_rng(0)
    x, new, y = rng.normal(size=(50, 6)) * [1, 5, 0.1, 3, 1, 1] + 4, rng.normal(size=(9, 6)) + 4, rng.normal(size=50)
    first, second = _standardised(x, new)
    reference = linear_model.Ridge(alpha=alpha * 50, solver="svd").fit((x - x.mean(0)) / x.std(0), y)
    assert _ridge(first, second, y, (7.0, alpha))[1] == pytest.approx(
        reference.predict((new - x.mean(0)) / x.std(0)), abs=1e-9
    )


def test_ridge_without_penalty_survives_more_columns_than_rows():
    rng = np.random.default_rng(0)
    x, new = _standardised(rng.normal(size=(6, 20)), rng.normal(size=(3, 20)))
    y = rng.normal(size=6)
    found = _ridge(x, new, y, (0.0,))[0]
    assert found == pytest.approx(new @ np.linalg.pinv(x) @ (y - y.mean()) + y.mean(), abs=1e-8)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_logistic_is_that_of_scikit_learn(alpha):
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(80, 4)), rng.normal(size=(9, 4))
    y = np.where(x[:, 0] + rng.normal(size=80) > 0.5, 1.0, -1.0)
    reference = linear_model.LogisticRegression(C=1 / (alpha * 80), tol=1e-10, max_iter=5000).fit(x, y)
    assert _logistic(x, new, y, (100.0, alpha))[1] == pytest.approx(reference.decision_function(new), abs=1e-4)


def test_logistic_of_separable_data_stays_finite():
    x = np.linspace(-1, 1, 20)[:, None]
    found = _logistic(x, x, np.sign(x[:, 0]), ALPHAS)
    assert np.isfinite(found).all()
    assert ((found > 0) == (x[:, 0] > 0)).all()


@pytest.mark.parametrize("level", ["participant", "segment"])
@pytest.mark.parametrize(
    "tails", [0.0, 2.0]
)  # with heavy tails, a scale that knows the fold left out picks another alpha
def test_a_probe_is_the_naive_one(level, tails):
    """Alpha by cross-validation over people, standardised inside each fold, then refitted: in plain loops."""
    stretch = np.exp(tails * np.random.default_rng(1).normal(size=(60, 5)))[TRAIN.participant]
    train = replace(TRAIN, values=(TRAIN.values * stretch).astype(np.float32))
    found = probe(train, TEST, "age", level=level, draws=20, seed=4)
    sides = []
    for side in (train, TEST):
        x, y, who = side.values.astype(float), side.labels["age"], side.participant
        if level == "participant":
            x = np.stack([x[who == i].mean(0) for i in range(60)])
            y, who = np.stack([y[who == i].mean() for i in range(60)]), np.arange(60)
        sides.append((x, y, who))
    (x, y, who), (new, truth, _) = sides

    def fitted(rows, at, alpha):
        middle, scale = x[rows].mean(0), x[rows].std(0)
        model = linear_model.Ridge(alpha=alpha * len(rows)).fit((x[rows] - middle) / scale, y[rows])
        return model.predict((at - middle) / scale)

    assert np.allclose(found.score, fitted(np.arange(len(x)), new, found.alpha), atol=1e-6)
    # the same folds: by key, in the order of numpy's sort of the names
    from mc_core.random import derive_seed

    order = np.random.Generator(np.random.Philox(derive_seed(4, 0xF01D))).permutation(60)
    fold_of_key = {sorted(TRAIN.participant_keys)[p]: i % FOLDS for i, p in enumerate(order)}
    fold = np.array([fold_of_key[f"p{i}"] for i in who])
    losses = []
    for alpha in ALPHAS:
        part = [(fitted(np.flatnonzero(fold != k), x[fold == k], alpha) - y[fold == k]) ** 2 for k in range(FOLDS)]
        losses.append(np.concatenate(part).sum())
    assert found.alpha == ALPHAS[int(np.argmin(losses))]
    assert found.metrics["r2"].value == pytest.approx(metrics.r2_score(truth, found.score))
    assert found.metrics["mae"].value == pytest.approx(metrics.mean_absolute_error(truth, found.score))
    rows = 60 if level == "participant" else 240
    assert (len(found.truth), found.participants, found.segments) == (
        rows,
        {"train": 60, "test": 60},
        {"train": 240, "test": 240},
    )


def test_averaging_over_segments_helps_and_order_does_not_matter():
    person, segment = (probe(TRAIN, TEST, "age", level=level, draws=50) for level in ("participant", "segment"))
    assert person.metrics["r2"].value > segment.metrics["r2"].value + 0.1
    mixed = TRAIN.where(np.random.default_rng(0).permutation(240))
    assert np.allclose(probe(mixed, TEST, "age", draws=50).score, person.score)


@pytest.mark.parametrize("classifier", ["ridge", "logistic"])
def test_classification(classifier):
    found = probe(TRAIN, TEST, "sex", classifier=classifier, draws=200)
    assert (found.task, set(found.metrics)) == ("classification", {"auroc", "partial_auroc", "auprc"})
    assert found.metrics["auroc"].value > 0.8
    assert found.positives == pytest.approx(found.truth.mean())
    assert found.metrics["auroc"].value == pytest.approx(metrics.roc_auc_score(found.truth, found.score))


def test_labels_shuffled_between_people_are_chance():
    segment = probe(TRAIN, TEST, "coin", level="segment")
    person = probe(TRAIN, TEST, "coin")
    for found in (segment, person):
        assert found.metrics["auroc"].low < 0.5 < found.metrics["auroc"].high


def test_only_training_participants_set_the_scale():
    found = probe(TRAIN, TEST, "age", level="segment", draws=20)
    fewer = probe(TRAIN, TEST.of_participants(range(30)), "age", level="segment", draws=20)
    assert np.allclose(fewer.score, found.score[:120])
    scale, shift = np.array([10, 0.1, 3, 1, 1], np.float32), np.arange(5, dtype=np.float32)
    moved = [replace(side, values=side.values * scale + shift) for side in (TRAIN, TEST)]
    assert np.allclose(probe(*moved, "age", level="segment", draws=20).score, found.score, atol=1e-3)


def test_missing_features_become_the_training_mean():
    gone = TEST.values.copy()
    gone[7, 0] = np.nan
    filled = TEST.values.copy()
    filled[7, 0] = TRAIN.values[:, 0].mean()
    scores = [probe(TRAIN, replace(TEST, values=v), "age", level="segment", draws=20).score for v in (gone, filled)]
    assert np.allclose(*scores, atol=1e-5)
    holes = TRAIN.values.copy()
    holes[::5, 1] = np.nan
    holes[:, 4] = np.nan  # nothing is known of this one
    found = probe(replace(TRAIN, values=holes), TEST, "age", draws=20)
    assert found.metrics["r2"].value > 0.6


def test_segments_without_label_are_left_out():
    age = TEST.labels["age"].copy()
    age[:40] = np.nan
    found = probe(TRAIN, replace(TEST, labels={"age": age}), "age", draws=20)
    assert (found.participants["test"], found.segments["test"]) == (50, 200)
    assert "p1000" not in found.participant


def test_within_person_sees_nothing_but_change():
    found = probe(TRAIN, TEST, "load", level="segment", within_person=True, draws=50)
    assert found.metrics["r2"].value > 0.9
    moved = []
    for side in (TRAIN, TEST):
        shift = np.random.default_rng(9).normal(size=60)[side.participant]
        values = side.values + 100 * shift[:, None].astype(np.float32)
        moved.append(replace(side, values=values, labels={"load": side.labels["load"] + 1000 * shift}))
    again = probe(*moved, "load", level="segment", within_person=True, draws=50)
    assert again.metrics["r2"].value == pytest.approx(found.metrics["r2"].value, abs=1e-3)
    with pytest.raises(ConfigError, match="take level='segment' and a regression"):
        probe(TRAIN, TEST, "load", within_person=True)


def test_intervals_of_probes_resample_people_not_segments():
    found = probe(TRAIN, TEST, "age", level="segment", draws=200, seed=3)
    expected = bootstrap_metrics(found.truth, found.score, found.participant, ["r2"], draws=200, seed=3)["r2"]
    assert found.metrics["r2"] == expected
    assert found.metrics["r2"] != bootstrap_metrics(found.truth, found.score, None, ["r2"], draws=200, seed=3)["r2"]
    other = replace(found, score=found.score + np.random.default_rng(0).normal(size=len(found.score)))
    paired = paired_difference("r2", found.truth, found.score, other.score, found.participant, draws=200, seed=3)
    assert compare(found, other, "r2", draws=200, seed=3) == paired
    assert len(found.truth) > len(np.unique(found.participant))


def test_probes_are_compared_on_the_same_rows():
    weaker = [replace(side, values=side.values[:, 1:]) for side in (TRAIN, TEST)]
    good, bad = probe(TRAIN, TEST, "age"), probe(*weaker, "age")
    found = compare(good, bad, "r2", draws=300)
    assert found.value == pytest.approx(good.metrics["r2"].value - bad.metrics["r2"].value)
    assert found.low > 0
    with pytest.raises(DataError, match="cannot be paired"):
        compare(good, probe(TRAIN, TEST, "age", level="segment"), "r2")


def test_results_become_json_without_single_people():
    found = probe(TRAIN, TEST, "sex", draws=20).to_dict()
    text = json.dumps(found)
    assert found["metrics"]["auroc"]["low"] <= found["metrics"]["auroc"]["value"]
    assert found["participants"] == {"train": 60, "test": 60}
    assert "p1000" not in text
    assert len(text) < 800


def test_probes_say_what_is_wrong():
    with pytest.raises(DataError, match="the training data has no label 'ages'; closest: age"):
        probe(TRAIN, TEST, "ages")
    flips = replace(TEST, labels={"sex": np.tile([0.0, 1.0], 120)})
    with pytest.raises(DataError, match="varies between segments of 60 of 60 test participants; probe it with level"):
        probe(TRAIN, flips, "sex")
    with pytest.raises(DataError, match="has the single value 1 in the test data"):
        probe(TRAIN, replace(TEST, labels={"sex": np.ones(240)}), "sex")
    with pytest.raises(DataError, match="is unknown for all 240 test segments"):
        probe(TRAIN, replace(TEST, labels={"age": np.full(240, np.nan)}), "age")
    with pytest.raises(DataError, match="train has 5 features and test 4; both must come from one encoder"):
        probe(TRAIN, replace(TEST, values=TEST.values[:, 1:]), "age")
    with pytest.raises(DataError, match="values beside 0 and 1"):
        probe(TRAIN, TEST, "age", task="classification")
    with pytest.raises(ConfigError, match="classifier='logistic' with a regression of 'age'"):
        probe(TRAIN, TEST, "age", classifier="logistic")
    with pytest.raises(
        DataError, match="4 training participants are too few for 5 folds: record more people, or give alpha"
    ):
        probe(TRAIN.of_participants(range(4)), TEST, "age")
    assert probe(TRAIN.of_participants(range(4)), TEST, "age", alpha=1.0, draws=20).alpha == 1.0


def people_at(centres, each=6, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    person = np.arange(len(centres)).repeat(each)
    values = centres[person] + noise * rng.normal(size=(len(person), centres.shape[1]))
    return Features(
        values.astype(np.float32), person, tuple(f"p{i}" for i in range(len(centres))), np.arange(len(person)) // 2
    )


def test_reidentification_between_certainty_and_chance():
    centres = np.random.default_rng(0).normal(size=(50, 16))
    assert reidentification(people_at(centres))[0].value == 1
    lost = people_at(0 * centres, noise=1.0)
    top1, people = reidentification(lost)
    assert people == 50
    assert top1.low <= 1 / 99 + 0.02
    assert top1.value < 0.1
    some = reidentification(people_at(centres, noise=2.5))[0]
    assert some.low < some.value < some.high
    assert 0.1 < some.value < 1


def test_reidentification_is_the_naive_search(monkeypatch):
    features = people_at(20 + np.random.default_rng(0).normal(size=(12, 4)), noise=0.8, each=4)  # far from zero
    shuffled = features.where(np.random.default_rng(1).permutation(len(features)))
    for side in (features, shuffled):
        found = reidentification(side, halves="session")[0].value
        # with two sessions of two, the halves are the sessions, whatever the draw
        half = np.stack(
            [
                side.values[(side.participant == p) & (side.session == 2 * p + s)].mean(0)
                for p in range(12)
                for s in (0, 1)
            ]
        )
        half = half - half.mean(0)
        hits = 0
        for i, row in enumerate(half):
            cosines = [np.dot(row, o) / np.linalg.norm(row) / np.linalg.norm(o) for o in half]
            cosines[i] = -np.inf
            hits += int(np.argmax(cosines)) == (i ^ 1)
        assert found == pytest.approx(hits / 24)
    monkeypatch.setattr(identity_module, "_BLOCK", 5)
    assert reidentification(features, halves="session")[0].value == found


def test_collapsed_embeddings_identify_nobody():
    assert reidentification(people_at(np.ones((20, 4))))[0].value == 0
    with pytest.raises(DataError, match="the embeddings have collapsed"):
        dispersion_ratio(people_at(np.ones((20, 4))))


def test_people_with_one_segment_are_left_out():
    features = people_at(np.random.default_rng(0).normal(size=(10, 8)), each=2)
    features = features.where(np.arange(20) != 5)  # person 2 has one left
    assert reidentification(features)[1] == 9
    with pytest.raises(DataError, match="0 participants have two sessions"):
        reidentification(features, halves="session")


@pytest.mark.parametrize("each", [3, 10])
def test_dispersion_of_shuffled_ids(each):
    """§8 of the method page: √((n − 1)/2) for n segments each."""
    found = dispersion_ratio(people_at(np.zeros((200, 256)), each=each, noise=1.0))
    assert found == pytest.approx(np.sqrt((each - 1) / 2), rel=0.01)


def test_dispersion_is_the_naive_one_and_has_no_scale():
    features = people_at(np.random.default_rng(0).normal(size=(7, 3)), noise=0.5)
    centre = np.stack([features.values[features.participant == p].mean(0) for p in range(7)])
    within = np.mean(
        [np.linalg.norm(features.values[features.participant == p] - centre[p], axis=1).mean() for p in range(7)]
    )
    between = np.mean([np.linalg.norm(centre[i] - centre[j]) for i in range(7) for j in range(7) if i != j])
    assert dispersion_ratio(features) == pytest.approx(within / between, rel=1e-5)
    moved = replace(features, values=3 * features.values + 5)
    assert dispersion_ratio(moved) == pytest.approx(within / between, rel=1e-4)


def test_effective_rank_closed_forms():
    rng = np.random.default_rng(0)
    assert smooth_effective_rank(np.outer(rng.normal(size=50), rng.normal(size=8)), centred=False) == pytest.approx(1)
    orthonormal = np.linalg.qr(rng.normal(size=(40, 8)))[0]
    assert smooth_effective_rank(orthonormal, centred=False) == pytest.approx(8)
    values = rng.normal(size=(300, 32)) * np.linspace(0.1, 2, 32)
    share = np.linalg.svd(values, compute_uv=False)
    share /= share.sum()
    paper = np.exp(-(share * np.log(share + 1e-7)).sum())
    assert smooth_effective_rank(values, centred=False) == pytest.approx(paper, rel=1e-4)
    # an offset, as after a SiLU, hides everything else until it is taken out
    assert smooth_effective_rank(values + 100, centred=False) < 3
    assert smooth_effective_rank(values + 100, centred=True) == pytest.approx(
        smooth_effective_rank(values, centred=True)
    )


def test_the_report_counts():
    report = identity_report(people_at(np.random.default_rng(0).normal(size=(9, 4)), noise=0.3), draws=50).to_dict()
    assert json.loads(json.dumps(report))["participants"] == 9
    assert report["segments"] == 54
    assert report["chance"] == pytest.approx(1 / 17)
