"""The share of sentences whose nearest neighbour is of their group, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_text_code.evaluation.baselines import bm25_scores
from mc_text_code.evaluation.groups import group_agreement, group_agreement_by_scores


def test_it_is_what_a_loop_over_all_pairs_finds():
    rng = np.random.default_rng(0)
    texts = [f"t{i}" for i in range(40)]
    groups = rng.integers(0, 9, 40).tolist()
    vectors = dict(zip(texts, rng.normal(size=(40, 5)), strict=True))
    found = group_agreement(lambda some: np.array([vectors[t] for t in some]), texts, groups)
    right, chance, asked = 0, 0.0, 0
    for i, text in enumerate(texts):
        others = [j for j in range(40) if j != i]
        if not any(groups[j] == groups[i] for j in others):
            continue
        cosine = [
            vectors[text] @ vectors[texts[j]] / np.linalg.norm(vectors[text]) / np.linalg.norm(vectors[texts[j]])
            for j in others
        ]
        right += groups[others[int(np.argmax(cosine))]] == groups[i]
        chance += sum(groups[j] == groups[i] for j in others) / 39
        asked += 1
    assert (found.top1, found.sentences) == (pytest.approx(right / asked), asked)
    assert found.chance == pytest.approx(chance / asked)


def test_an_encoder_to_which_all_is_alike_is_at_chance():
    found = group_agreement(lambda some: np.ones((len(some), 3)), ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert found.top1 == pytest.approx(found.chance)


def test_bm25_finds_shared_words_and_never_the_sentence_itself():
    texts = ["red boat", "boat on sea", "green tree", "tree in wood"]
    assert group_agreement_by_scores(bm25_scores, texts, [0, 0, 1, 1]).top1 == 1.0
    assert group_agreement_by_scores(bm25_scores, texts, [0, 1, 0, 1]).top1 == 0.0


def test_what_cannot_be_asked():
    with pytest.raises(DataError, match="no group has two"):
        group_agreement(lambda some: np.ones((len(some), 2)), ["a", "b"], ["x", "y"])
    with pytest.raises(DataError, match="1 groups for 2 sentences"):
        group_agreement(lambda some: np.ones((len(some), 2)), ["a", "b"], ["x"])
