"""Retrieval both ways, beside a loop by definition and the core's measure."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import retrieval_metrics
from mc_medical.evaluation import best_ranks, class_precision, first_of_each, retrieval


def directions(seed, rows, dim=6):
    x = np.random.default_rng(seed).normal(size=(rows, dim))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


IMAGES, TEXTS = directions(0, 30), directions(1, 30)
IDS = np.random.default_rng(2).integers(0, 18, 30) - 9  # signed hashes


def naive_ranks(queries, candidates, ids, other):
    found = []
    for i in range(len(queries)):
        similarity = [float(queries[i] @ c) for c in candidates]
        best = max(s for s, j in zip(similarity, other, strict=True) if j == ids[i])
        found.append(1 + sum(s >= best and j != ids[i] for s, j in zip(similarity, other, strict=True)))
    return found


class TestRanks:
    def test_by_definition(self):
        assert best_ranks(IMAGES, TEXTS, IDS, IDS).tolist() == naive_ranks(IMAGES, TEXTS, IDS, IDS)

    def test_the_same_recall_as_the_core(self):
        found = retrieval(IMAGES, TEXTS, IDS, draws=0)
        same = torch.from_numpy(IDS[:, None] == IDS[None, :])
        core = retrieval_metrics(torch.from_numpy(IMAGES @ TEXTS.T), same)
        assert {k: v.value for k, v in found.image_to_text.recall.items()} == pytest.approx(core.recall)
        assert found.image_to_text.mrr.value == pytest.approx(core.mrr)
        core = retrieval_metrics(torch.from_numpy(TEXTS @ IMAGES.T), same)
        assert {k: v.value for k, v in found.text_to_image.recall.items()} == pytest.approx(core.recall)

    def test_blocks_change_nothing(self, monkeypatch):
        whole = best_ranks(IMAGES, TEXTS, IDS, IDS)
        monkeypatch.setattr("mc_medical.evaluation.ranking._BLOCK", 70)
        assert (best_ranks(IMAGES, TEXTS, IDS, IDS) == whole).all()

    def test_a_collapsed_model_scores_like_the_worst(self):
        flat = np.tile(directions(3, 1), (10, 1))
        assert (best_ranks(flat, flat, np.arange(10), np.arange(10)) == 10).all()
        assert retrieval(flat, flat, np.arange(10), ks=(1, 9, 10), draws=0).image_to_text.recall[9].value == 0

    def test_any_report_with_the_same_words_is_a_hit(self):
        texts = IMAGES[[1, 0, *range(2, 30)]]  # the first two reports are swapped
        assert retrieval(IMAGES, texts, np.arange(30), draws=0).image_to_text.recall[1].value == pytest.approx(28 / 30)
        same = np.array([0, 0, *range(2, 30)])
        assert retrieval(IMAGES, texts, same, draws=0).image_to_text.recall[1].value == 1

    def test_order_of_pairs_does_not_count(self):
        mixed = np.random.default_rng(5).permutation(30)
        plain, turned = (
            retrieval(IMAGES, TEXTS, IDS, draws=0),
            retrieval(IMAGES[mixed], TEXTS[mixed], IDS[mixed], draws=0),
        )
        assert plain.image_to_text.recall == turned.image_to_text.recall
        assert plain.text_to_image.median_rank == turned.text_to_image.median_rank

    def test_a_query_without_answer(self):
        with pytest.raises(DataError, match="query 2 has no right answer"):
            best_ranks(IMAGES[:3], TEXTS[:2], np.array([0, 1, 5]), np.array([0, 1]))

    def test_bad_input(self):
        with pytest.raises(ConfigError, match="one or more ranks"):
            retrieval(IMAGES, TEXTS, IDS, ks=(0,))
        with pytest.raises(DataError, match="30 images and 29 reports"):
            retrieval(IMAGES, TEXTS[1:], IDS)
        with pytest.raises(DataError, match="needs one"):
            best_ranks(IMAGES, TEXTS, IDS[1:], IDS)


class TestChance:
    @pytest.mark.parametrize("k", [1, 2, 3, 5])
    def test_by_counting_all_orders(self, k):
        ids = np.array([0, 0, 1, 2])
        x = directions(8, 4)
        found = retrieval(x, x, ids, ks=(k,), draws=0).image_to_text.chance[k]
        hits = [
            any(ids[j] == ids[i] for j in order[:k]) for i in range(4) for order in itertools.permutations(range(4))
        ]
        assert found == pytest.approx(np.mean(hits))


class TestIntervals:
    def test_over_patients(self):
        x = directions(4, 6)
        texts = x.copy()
        texts[:3] = -x[:3]
        two = retrieval(x, texts, np.arange(6), ks=(1,), patients=list("aaabbb"), draws=300).image_to_text.recall[1]
        assert (two.value, two.low, two.high, two.patients) == (0.5, 0.0, 1.0, 2)

    def test_first_of_each_study(self):
        assert first_of_each(np.array([7, 7, -1, 7, -1, 3])).tolist() == [0, 2, 5]


class TestClassPrecision:
    classes = np.random.default_rng(6).integers(-1, 3, 30)

    def test_by_definition(self):
        found = class_precision(IMAGES, TEXTS, self.classes, self.classes, ks=(3, 5), draws=0)
        rows = [i for i in range(30) if self.classes[i] >= 0]
        for k in (3, 5):
            shares = []
            for i in rows:
                near = sorted(rows, key=lambda j: -float(IMAGES[i] @ TEXTS[j]))[:k]
                shares.append(np.mean([self.classes[j] == self.classes[i] for j in near]))
            assert found[k].value == pytest.approx(np.mean(shares))
            assert found[k].rows == len(rows)

    def test_ties_go_against_the_query(self):
        flat = np.tile(directions(3, 1), (6, 1))
        found = class_precision(flat, flat, np.array([0] * 6), np.array([0, 0, 0, 1, 1, 1]), ks=(3,), draws=0)
        assert found[3].value == 0

    def test_ranks_beyond_the_candidates_are_left_out(self):
        found = class_precision(IMAGES, TEXTS, self.classes, self.classes, draws=0)
        assert set(found) == {5, 10}

    def test_perfect_classes(self):
        x = np.eye(3)[np.arange(30) % 3]
        assert class_precision(x, x, np.arange(30) % 3, np.arange(30) % 3, ks=(5, 10), draws=0)[10].value == 1

    def test_too_few(self):
        with pytest.raises(DataError, match="0 queries and 30 candidates have a class"):
            class_precision(IMAGES, TEXTS, np.full(30, -1), np.zeros(30, dtype=int))
        with pytest.raises(DataError, match="P@5 needs more"):
            class_precision(IMAGES, TEXTS[:3], np.zeros(30, dtype=int), np.zeros(3, dtype=int))
