"""Probes, intervals, identity and splits: naive loops, scikit-learn, closed forms, leaks, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import linear_model, metrics

from mc_core.errors import ConfigError, DataError
from mc_wearables.evaluation import (
    Features,
    bootstrap_metrics,
    check_disjoint,
    compare,
    dispersion_ratio,
    identity_report,
    paired_difference,
    participant_split,
    probe,
    reidentification,
    smooth_effective_rank,
)
from mc_wearables.evaluation import identity as identity_module
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
