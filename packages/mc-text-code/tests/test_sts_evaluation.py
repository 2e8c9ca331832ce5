"""STS scores and length statistics: the protocol by its definition in naive loops, closed cases, mutations that must show."""

import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse, stats

from mc_core.errors import ConfigError, DataError
from mc_text_code.data.sts import OFFICIAL, StsPairs, StsTask, open_sts
from mc_text_code.evaluation import (
    CachedEncoder,
    StsEvaluator,
    difference_in_sts,
    evaluate_length_bias,
    evaluate_sentences,
    evaluate_sts,
    length_leak,
    sentence_spread,
    tfidf_encoder,
)
from mc_text_code.evaluation.length_bias import _random_pairs
from mc_text_code.evaluation.sts import spearman
from mc_text_code.evaluation.vectors import encode_texts, normalized, pair_cosines

DATA = os.environ.get("MC_DATA")
WORDS = np.array(["a", "bc", "def", "ghij", "klm", "no", "p", "qrs", "tuv", "wx"])


def sentences(count, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, longest))) + f" {n}" for n in range(count)]


def random_pairs(count, seed=0, subset="x", low=0.0, high=5.0):
    rng = np.random.default_rng(seed)
    texts = sentences(2 * count, seed)
    gold = np.round(rng.uniform(low, high, count), 1)
    return StsPairs(tuple(texts[:count]), tuple(texts[count:]), gold, np.full(count, subset))


def hashed(dim=16, offset=0.0, seed=0):
    """An encoder without meaning: a random vector for each text, fixed by the text."""

    def encode(texts):
        rows = [np.random.default_rng([seed, *text.encode()]).normal(size=dim) for text in texts]
        return np.array(rows, dtype=np.float32) + np.float32(offset)

    return encode


def naive_cosine(a, b):
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else 0.0


def task(name, pairs, scale=(0.0, 5.0), split="test"):
    return {name: StsTask(name, {split: pairs}, scale)}


def test_one_correlation_over_the_whole_year_and_not_a_mean_of_parts():
    apart, alike = random_pairs(40, 1, "MSRpar"), random_pairs(60, 2, "MSRvid", high=2.0)
    named = ((f"all {text}" for text in side) for side in (alike.sentence1, alike.sentence2))
    both = StsPairs.join([apart, StsPairs(*map(tuple, named), alike.gold, alike.subset)])
    encode = lambda texts: hashed()(texts) + np.array([[3.0 * text.startswith("all ")] * 16 for text in texts])  # noqa: E731
    result = evaluate_sts(encode, task("STS12", both)).scores["STS12"]
    cosines = [naive_cosine(*encode([a, b])) for a, b in zip(both.sentence1, both.sentence2, strict=True)]
    assert result.cosines == pytest.approx(cosines, abs=1e-6)
    assert result.spearman == pytest.approx(100 * stats.spearmanr(cosines, both.gold).statistic, abs=1e-9)
    parts = {
        s: 100 * stats.spearmanr(np.array(cosines)[both.subset == s], both.gold[both.subset == s]).statistic
        for s in result.by_subset
    }
    assert result.by_subset == pytest.approx(parts)
    assert result.spearman < min(parts.values()) - 20  # pairs that look alike but are not, across the two parts


def test_equal_values_share_their_rank():
    x, y = np.array([1.0, 1, 2, 3, 3, 3]), np.array([2.0, 1, 1, 5, 4, 4])
    ranks = [np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values]) for values in (x, y)]
    assert spearman(x, y) == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-12)


def test_order_scale_and_batches_change_nothing():
    pairs = random_pairs(50)
    encode = hashed()
    base = evaluate_sts(encode, task("m", pairs)).average
    order = np.random.default_rng(5).permutation(50)
    turned = StsPairs(
        tuple(pairs.sentence2[i] for i in order),
        tuple(pairs.sentence1[i] for i in order),
        pairs.gold[order] * 7 + 3,
        pairs.subset,
    )
    assert evaluate_sts(lambda texts: 1e-3 * encode(texts), task("m", turned)).average == pytest.approx(base, abs=1e-9)


def test_a_perfect_and_a_reversed_encoder():
    angles = {f"s{n}": n * math.pi / 200 for n in range(101)}
    pairs = StsPairs(
        tuple(["s0"] * 100), tuple(f"s{n}" for n in range(1, 101)), np.arange(100, 0, -1.0), np.full(100, "x")
    )
    circle = lambda texts: np.array([[math.cos(angles[t]), math.sin(angles[t])] for t in texts])  # noqa: E731
    assert evaluate_sts(circle, task("m", pairs)).average == pytest.approx(100)
    worst = StsPairs(pairs.sentence1, pairs.sentence2, pairs.gold[::-1].copy(), pairs.subset)
    assert evaluate_sts(circle, task("m", worst)).average == pytest.approx(-100)


def test_a_vector_of_zeros_counts_as_cosine_zero_and_is_counted():
    pairs = StsPairs(("a", "b", "c"), ("A", "B", "C"), np.array([1.0, 2, 3]), np.full(3, "x"))
    table = {"a": [0, 0], "A": [1, 0], "b": [1, 0], "B": [1, 1], "c": [math.nan, 1], "C": [1, 0]}
    score = evaluate_sts(lambda texts: np.array([table[t] for t in texts], dtype=float), task("m", pairs)).scores["m"]
    assert score.undefined == 2
    assert score.cosines == pytest.approx([0, math.sqrt(0.5), 0])
    assert score.to_dict()["undefined"] == 2


def test_an_encoder_to_which_all_is_alike_has_no_score():
    result = evaluate_sts(lambda texts: np.ones((len(texts), 4)), task("m", random_pairs(20)))
    assert math.isnan(result.scores["m"].spearman)
    assert math.isnan(result.average)


def test_the_average_is_official_only_for_the_seven_whole_test_sets():
    tasks = {}
    for name, official in OFFICIAL.items():
        subsets = official.subsets or (name,)
        counts = np.full(len(subsets), official.pairs // len(subsets))
        counts[0] += official.pairs - counts.sum()
        pairs = random_pairs(official.pairs, 3)
        pairs = StsPairs(pairs.sentence1, pairs.sentence2, pairs.gold, np.repeat(subsets, counts))
        tasks |= task(name, pairs, official.scale)
    encoder = CachedEncoder(hashed(4))
    whole = evaluate_sts(encoder, tasks)
    assert whole.average_name == "average"
    assert list(whole.columns()) == [*OFFICIAL, "average"]
    assert whole.average == pytest.approx(np.mean([score.spearman for score in whole.scores.values()]))
    six = {name: found for name, found in tasks.items() if name != "STS16"}
    assert evaluate_sts(encoder, six).average_name == "average of STS12, STS13, STS14, STS15, STS-B, SICK-R (test)"
    assert "average of these 6" in evaluate_sts(encoder, six).columns()
    less = tasks["STS12"].splits["test"]
    rows = less.subset != "MSRvid"
    shorter = StsPairs(
        *(tuple(np.array(side, dtype=object)[rows]) for side in (less.sentence1, less.sentence2)),
        less.gold[rows],
        less.subset[rows],
    )
    found = evaluate_sts(encoder, tasks | task("STS12", shorter))
    assert found.average_name == f"average of {', '.join(OFFICIAL)} (test), incomplete"
    assert "without MSRvid" in found.scores["STS12"].difference
    dev = evaluate_sts(encoder, tasks | task("STS-B", tasks["STS-B"].splits["test"], split="dev"))
    assert "STS-B dev" in dev.average_name


def test_intervals_and_paired_differences():
    pairs = random_pairs(300)
    good = {
        t: g
        for a, b, g in zip(pairs.sentence1, pairs.sentence2, pairs.gold, strict=True)
        for t, g in ((a, 0.0), (b, g))
    }
    noisy = hashed(1, seed=9)

    def near(texts, noise):
        angle = np.array([(5 - good[t]) / 5 if good[t] else 0.0 for t in texts]) + noise * noisy(texts)[:, 0]
        return np.stack([np.cos(angle), np.sin(angle)], axis=1)

    first = evaluate_sts(lambda texts: near(texts, 0.05), task("m", pairs), resamples=200)
    second = evaluate_sts(lambda texts: near(texts, 0.4), task("m", pairs), resamples=200)
    score = first.scores["m"]
    assert score.interval.low < score.spearman < score.interval.high
    assert score.interval.value == score.spearman
    found = difference_in_sts(first, second, resamples=200)["m"]
    assert found.value == pytest.approx(score.spearman - second.scores["m"].spearman)
    assert 0 < found.low < found.value < found.high
    with pytest.raises(DataError, match="same pairs"):
        difference_in_sts(first, evaluate_sts(hashed(), task("m", random_pairs(300, 8))))


def test_sparse_vectors_score_as_dense_ones_do():
    tasks = task("m", random_pairs(60))
    encode = tfidf_encoder(sentences(200, 4))
    dense = evaluate_sts(lambda texts: encode(texts).toarray(), tasks)
    assert evaluate_sts(encode, tasks).scores["m"].cosines == pytest.approx(dense.scores["m"].cosines, abs=1e-12)


def test_bad_encoders_and_tasks_are_refused():
    tasks = task("m", random_pairs(5))
    with pytest.raises(DataError, match=r"shape \(10,\) for 10 sentences"):
        evaluate_sts(lambda texts: np.ones(len(texts)), tasks)
    with pytest.raises(DataError, match=r"shape \(9, 2\) for 10 sentences"):
        evaluate_sts(lambda texts: np.ones((len(texts) - 1, 2)), tasks)
    with pytest.raises(DataError, match="no STS tasks"):
        evaluate_sts(hashed(), {})
    with pytest.raises(DataError, match="none of m has a split 'dev'"):
        evaluate_sts(hashed(), tasks, split="dev")
    assert list(evaluate_sts(hashed(), tasks | task("n", random_pairs(5), split="dev"), split="dev").scores) == ["n"]


def test_an_evaluator_for_runs_scores_the_method_s_encoder():
    tasks = task("m", random_pairs(40), split="dev") | task("n", random_pairs(40))
    method = SimpleNamespace(encoder=SimpleNamespace(encode=hashed()))
    expected = evaluate_sts(hashed(), tasks, split="dev").columns()
    assert StsEvaluator(tasks)(method) == expected
    assert list(expected) == ["m", "average of these 1"]
    with pytest.raises(DataError, match="none of n has a split 'dev'"):
        StsEvaluator({"n": tasks["n"]})


def test_vectors_of_length_one_and_cosines():
    rows = np.array([[3.0, 4.0], [0, 0], [1, math.nan]], dtype=np.float32)
    found = normalized(rows)
    assert found[0] == pytest.approx([0.6, 0.8])
    assert found[1].tolist() == [0, 0]
    assert np.isnan(found[2]).all()
    turned = normalized(sparse.csr_matrix(rows[:2]))
    assert turned.toarray() == pytest.approx(found[:2])
    many = np.random.default_rng(0).normal(size=(9000, 3)).astype(np.float16)
    first, second = np.arange(8999), np.arange(1, 9000)
    got, undefined = pair_cosines(many, first, second)
    assert undefined == 0
    for place in (0, 4095, 4096, 8998):
        assert got[place] == pytest.approx(naive_cosine(many[place], many[place + 1]), abs=1e-12)
    assert encode_texts(lambda texts: [[1], [2]], ["a", "b"]).dtype == np.float32


def test_a_cached_encoder_asks_once_and_answers_in_order():
    asked = []

    def counting(texts):
        asked.extend(texts)
        return tfidf(texts) if tfidf else hashed()(texts)

    for tfidf in (None, tfidf_encoder(["a bc", "def"])):
        asked.clear()
        encoder = CachedEncoder(counting)
        texts = sentences(30)
        encoder(texts[:20])
        found = encoder([*texts[10:], texts[0], texts[0]])
        assert asked == texts
        plain = (tfidf or hashed())([*texts[10:], texts[0], texts[0]])
        assert abs(found - plain).max() == 0


# --- length bias


def test_the_statistics_of_one_task_by_their_definition():
    pairs = random_pairs(200, 3)
    encode = hashed(8, offset=0.3)
    found = evaluate_length_bias(encode, task("m", pairs)).tasks["m"]
    near, far = [], []
    for a, b, gold in zip(pairs.sentence1, pairs.sentence2, pairs.gold, strict=True):
        group = near if abs(len(a.split()) - len(b.split())) <= 3 else far
        group.append((naive_cosine(*encode([a, b])), gold))
    assert (found.near_pairs, found.far_pairs) == (len(near), len(far))
    for group, correlation, bias in (
        (near, found.near_spearman, found.near_bias),
        (far, found.far_spearman, found.far_bias),
    ):
        cosine, gold = np.array(group).T
        assert correlation == pytest.approx(100 * stats.spearmanr(cosine, gold).statistic, abs=1e-6)
        assert bias == pytest.approx(np.mean(cosine - gold / 5), abs=1e-7)
    assert found.gap == pytest.approx(found.near_bias - found.far_bias)


def test_the_gap_is_a_mean_over_tasks_and_gold_is_scaled_by_its_own_scale():
    a, b = random_pairs(60, 1), random_pairs(90, 2, low=1.0)
    tasks = task("a", a) | task("b", b, (1.0, 5.0))
    found = evaluate_length_bias(hashed(), tasks)
    assert found.gap == pytest.approx((found.tasks["a"].gap + found.tasks["b"].gap) / 2)
    alone = evaluate_length_bias(hashed(), task("b", b, (0.0, 5.0))).tasks["b"]
    assert found.tasks["b"].near_bias != pytest.approx(alone.near_bias)


def test_a_task_without_far_pairs_takes_no_part_in_the_gap():
    pairs = StsPairs(("a b", "c d", "e f"), ("a", "c", "d"), np.array([1.0, 2, 3]), np.full(3, "x"))
    found = evaluate_length_bias(hashed(), task("short", pairs) | task("m", random_pairs(60)))
    assert found.tasks["short"].far_pairs == 0
    assert math.isnan(found.tasks["short"].gap)
    assert found.gap == found.tasks["m"].gap


def by_length(texts):
    return np.array([[1.0, 0.05 * len(text.split())] for text in texts])


def partly_by_length(texts):
    angle = 0.05 * np.array([len(text.split()) for text in texts])[:, None]
    return np.concatenate([hashed()(texts), 6 * np.cos(angle), 6 * np.sin(angle)], axis=1)


def test_the_leak_is_seen_where_length_shows_and_only_there():
    texts = sentences(2000, 7)
    assert length_leak(by_length, texts).value > 0.95
    assert abs(length_leak(hashed(), texts).value) < 0.02
    shifted = length_leak(partly_by_length, texts)
    assert 0.1 < shifted.value < 0.9
    flipped = lambda texts: np.array([[1.0, 1.0] if len(t.split()) % 2 else [1.0, -1.0] for t in texts])  # noqa: E731
    assert -0.3 < length_leak(flipped, texts).value < 0.3
    assert math.isnan(length_leak(lambda texts: np.ones((len(texts), 2)), texts).value)


def test_the_leak_is_a_rank_correlation_over_the_pairs_drawn():
    texts = [f"{'w ' * n}{m}" for n in range(6) for m in range(2)]
    encode = hashed(3)
    found = length_leak(encode, [*texts, texts[0]], pairs=1000)
    assert found.pairs == 66  # every pair of twelve different sentences, once
    cosine, nearness = [], []
    for i in range(12):
        for j in range(i):
            cosine.append(naive_cosine(*encode([texts[i], texts[j]])))
            nearness.append(-abs(len(texts[i].split()) - len(texts[j].split())))
    assert found.value == pytest.approx(stats.spearmanr(cosine, nearness).statistic, abs=1e-6)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("pairs", [20, 400, 1200, 10_000])
def test_random_pairs_are_even_different_unrelated_and_of_one_source(groups, pairs):
    group = np.random.default_rng(0).integers(0, groups, 60)
    known = [(0, 1), (5, 3), (7, 7)]
    first, second = _random_pairs(group, known, pairs, seed=1)
    assert (first < second).all()
    assert (group[first] == group[second]).all()
    found = set(zip(first.tolist(), second.tolist(), strict=True))
    assert len(found) == len(first)
    assert not found & {(0, 1), (3, 5)}
    possible = {(i, j) for j in range(60) for i in range(j) if group[i] == group[j]} - {(0, 1), (3, 5)}
    assert len(found) == min(pairs, len(possible))
    assert found <= possible
    again = _random_pairs(group, known, pairs, seed=1)
    assert (again[0] == first).all()
    seen = np.zeros((60, 60))
    for seed in range(300):
        np.add.at(seen, _random_pairs(group, known, pairs, seed), 1)
    counts = np.array([seen[pair] for pair in possible])
    share = len(found) / len(possible)
    assert counts.sum() == 300 * len(found)
    spread = 300 * share * (1 - share)  # each pair is drawn or not, every time anew
    chi = ((counts - 300 * share) ** 2).sum() / spread if share < 1 else len(possible)
    assert abs(chi - len(possible)) < 5 * math.sqrt(2 * len(possible))


def test_many_sentences_do_not_round_a_pair_away():
    group = np.zeros(3_000_000, dtype=np.int64)
    first, second = _random_pairs(group, [], 50_000, seed=0)
    assert (first >= 0).all()
    assert (first < second).all()
    assert second.max() > 2_990_000
    assert len(np.unique(first * 3_000_000 + second)) == 50_000


def test_pairs_of_a_task_are_not_drawn_and_sources_are_its_subsets():
    pairs = StsPairs(
        ("a", "a b c d e", "x"), ("a b", "a b c d", "y y"), np.array([1.0, 2, 3]), np.array(["u", "u", "v"])
    )
    found = evaluate_length_bias(hashed(), task("m", pairs))
    assert found.leak.pairs == 15 - 3
    assert found.leak_within.pairs == 6 - 2  # within u; v has only its own pair
    one = StsPairs(pairs.sentence1, pairs.sentence2, pairs.gold, np.full(3, "u"))
    assert evaluate_length_bias(hashed(), task("m", one)).leak_within is None


def test_the_leak_within_sources_is_blind_to_what_tells_sources_apart():
    short, long = (
        sentences(300, 1, longest=4),
        [f"{text} more words than the others have" for text in sentences(300, 2, longest=4)],
    )
    topic = lambda texts: hashed(8)(texts) + 2 * np.array([[len(t.split()) > 6] * 8 for t in texts])  # noqa: E731
    found = evaluate_length_bias(topic, texts=short + long, sources=["s"] * 300 + ["l"] * 300)
    assert found.leak.value > 0.3
    assert abs(found.leak_within.value) < 0.05
    assert list(found.columns()) == ["length leak", "length leak within"]
    assert math.isnan(found.gap)


def test_length_bias_refuses_what_it_cannot_measure():
    with pytest.raises(DataError, match="needs tasks with gold scores, or sentences"):
        evaluate_length_bias(hashed())
    with pytest.raises(DataError, match="2 different sentences"):
        length_leak(hashed(), ["a", "b", "a"])
    with pytest.raises(ConfigError, match="random_pairs=1"):
        length_leak(hashed(), ["a", "b", "c"], pairs=1)
    with pytest.raises(DataError, match="2 sources for 3 sentences"):
        length_leak(hashed(), ["a", "b", "c"], sources=[1, 2])
    with pytest.raises(DataError, match="no source has two"):
        length_leak(hashed(), ["a", "b", "c"], sources=[1, 2, 3])
    with pytest.raises(DataError, match="every pair"):
        length_leak(hashed(), ["a", "b", "c"], related={("a", "b"), ("c", "b"), ("c", "a")})


# --- geometry, everything at once


def test_alignment_takes_pairs_above_four_and_uniformity_all_sentences():
    pairs = StsPairs(("a", "b", "c"), ("A", "B", "C"), np.array([4.0, 4.2, 5.0]), np.full(3, "x"))
    table = {"a": 0.0, "A": 3.0, "b": 0.0, "B": 0.1, "c": 1.0, "C": 1.2}
    circle = lambda texts: 2 * np.array([[math.cos(table[t]), math.sin(table[t])] for t in texts])  # noqa: E731
    found = sentence_spread(circle, task("STS-B", pairs, split="dev"))
    apart = [2 - 2 * math.cos(0.1), 2 - 2 * math.cos(0.2)]
    assert found.alignment == pytest.approx(np.mean(apart), abs=1e-6)
    points = [table[t] for t in "abcABC"]
    terms = [math.exp(-2 * (2 - 2 * math.cos(points[i] - points[j]))) for i in range(6) for j in range(i)]
    assert found.uniformity == pytest.approx(math.log(np.mean(terms)), abs=1e-5)
    assert (found.positives, found.sentences, found.source) == (2, 6, "STS-B dev")
    with pytest.raises(DataError, match="measured on STS-B, which is not there, only m"):
        sentence_spread(circle, task("m", pairs))
    with pytest.raises(DataError, match="no pair scored higher than 4 of 5"):
        sentence_spread(circle, task("STS-B", StsPairs(("a",), ("A",), np.array([4.0]), np.full(1, "x"))))


def test_everything_at_once_encodes_each_sentence_once():
    asked = []

    def counting(texts):
        asked.extend(texts)
        return hashed()(texts)

    tasks = task("STS-B", random_pairs(80)) | task("m", random_pairs(30, 2))
    report = evaluate_sentences(counting, tasks=tasks)
    assert len(asked) == len(set(asked))
    assert report.sts.scores["m"].spearman == evaluate_sts(hashed(), tasks).scores["m"].spearman
    columns = report.columns()
    assert list(columns) == [
        *("STS-B", "m", "average of these 2"),
        *("near spearman", "far spearman", "near bias", "far bias", "gap", "length leak", "length leak within"),
        *("alignment", "uniformity"),
    ]
    assert set(report.to_dict()) == {"sts", "length_bias", "spread"}
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate_sentences(hashed())


@pytest.mark.skipif(not DATA, reason="needs the data folder named by MC_DATA")
def test_real_pairs_give_the_published_baseline_and_survive_the_layout_of_senteval(tmp_path):
    tasks = open_sts(Path(DATA, "text", "sts-pairs.parquet"))
    texts = list(
        dict.fromkeys(t for found in tasks.values() for pairs in found.splits.values() for t in pairs.sentences())
    )
    encode = tfidf_encoder(texts)
    found = evaluate_sts(encode, tasks, split="all").columns()
    # measured on these files by others, all pairs of a set pooled
    known = {"STS12": 42, "STS13": 69, "STS14": 67, "STS15": 75, "STS-B": 71, "SICK-R": 59}
    assert {name: found[name] for name in known} == pytest.approx(known, abs=1)

    for name in ("STS12", "STS15"):
        for split, pairs in tasks[name].splits.items():
            folder = tmp_path / f"{name}-en-{split}"
            folder.mkdir()
            for subset in pairs.subsets():
                rows = np.flatnonzero(pairs.subset == subset)
                lines = [f"{pairs.sentence1[i]}\t{pairs.sentence2[i]}\n" for i in rows]
                (folder / f"STS.input.{subset}.txt").write_text("".join(lines), encoding="utf-8")
                (folder / f"STS.gs.{subset}.txt").write_text("".join(f"{gold}\n" for gold in pairs.gold[rows].tolist()))
    again = evaluate_sts(encode, open_sts(tmp_path), split="all")
    for name in ("STS12", "STS15"):
        assert again.scores[name].spearman == pytest.approx(found[name], abs=1e-9)


@pytest.mark.skipif(not DATA, reason="needs the data folder named by MC_DATA")
def test_the_length_leak_of_real_pairs():
    tasks = open_sts(Path(DATA, "text", "sts-pairs.parquet"))
    blind = evaluate_length_bias(hashed(), tasks)
    assert abs(blind.leak.value) < 0.02
    assert blind.leak.pairs == blind.leak_within.pairs == 50_000
    seeing = evaluate_length_bias(partly_by_length, tasks)
    assert seeing.leak_within.value > 0.1
    assert all(found.near_pairs > 300 and found.far_pairs > 100 for found in blind.tasks.values())
