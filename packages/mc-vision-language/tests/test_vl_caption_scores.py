"""Caption scores against examples worked out by hand, and what must not change them."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from mc_core.errors import DataError, MissingDependencyError
from mc_vision_language.evaluation.caption_scores import caption_scores, words_of


def test_equal_captions_score_as_high_as_can_be():
    truth = ["a small red boat on the water", "two dogs run over green grass", "one tall man reads his book"]
    found = caption_scores(truth, [[one] for one in truth])
    assert found.bleu == pytest.approx((1, 1, 1, 1), abs=1e-6)
    assert found.rouge_l == pytest.approx(1)
    assert found.cider_d == pytest.approx(10)


def test_bleu_by_hand():
    found = caption_scores(["the cat sat on mat"], [["the cat sat on the mat"]])
    brevity = math.exp(1 - 6 / 5)
    precisions = (5 / 5, 3 / 4, 2 / 3, 1 / 2)
    for order in range(4):
        mean = math.exp(sum(map(math.log, precisions[: order + 1])) / (order + 1))
        assert found.bleu[order] == pytest.approx(brevity * mean, abs=1e-6)


def test_bleu_counts_a_word_no_more_often_than_a_reference_has_it():
    found = caption_scores(["the the the the"], [["the cat is on the mat", "a cat on a mat"]])
    assert found.bleu[0] == pytest.approx(
        2 / 4 * math.exp(1 - 5 / 4), abs=1e-6
    )  # the shorter reference is the nearer one


def test_rouge_by_hand():
    found = caption_scores(["police killed the gunman"], [["police kill the gunman"]])
    assert found.rouge_l == pytest.approx(3 / 4)
    both = caption_scores(["a b c d"], [["a x c", "a b y y y y"]])
    precision, recall, weight = 2 / 4, 2 / 3, 1.2**2
    assert both.rouge_l == pytest.approx((1 + weight) * precision * recall / (recall + weight * precision))


def _cider_d(predicted: str, reference: str, documents: list[str]) -> float:
    """Vedantam et al. 2015, section 4 and 'CIDEr-D', for one reference: σ = 6, times 10, over n = 1 … 4."""

    def grams(text, n):
        words = text.split()
        return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

    total = 0.0
    for n in range(1, 5):

        def vector(text, n=n):
            return {
                gram: grams(text, n).count(gram)
                * (math.log(len(documents)) - math.log(max(1, sum(gram in grams(d, n) for d in documents))))
                for gram in grams(text, n)
            }

        made, true = vector(predicted), vector(reference)
        norms = [math.sqrt(sum(v * v for v in one.values())) for one in (made, true)]
        if min(norms) > 0:
            total += sum(min(made[g], true.get(g, 0)) * true.get(g, 0) for g in made) / (norms[0] * norms[1])
    apart = len(predicted.split()) - len(reference.split())
    return 10 * total / 4 * math.exp(-(apart**2) / (2 * 6**2))


def test_cider_d_by_its_definition():
    truth = ["a red cat sits here", "a blue dog runs fast today", "one boat on the lake", "a red dog sleeps"]
    made = ["a red cat", "a blue dog runs", "boat on lake lake", "a cat"]
    found = caption_scores(made, [[one] for one in truth])
    expected = [_cider_d(a, b, truth) for a, b in zip(made, truth, strict=True)]
    np.testing.assert_allclose(found.cider_each, expected, atol=1e-9)
    assert found.cider_d == pytest.approx(np.mean(expected))
    assert found.cider_each[3] < 1


def test_scores_do_not_depend_on_case_punctuation_or_order():
    truth = [["A red house."], ["two dogs, running", "dogs!"], ["a man's hat"]]
    made = ["a red boat", "two dogs", "the man's hat"]
    first = caption_scores(made, truth)
    second = caption_scores(["A  Red boat!", "Two dogs.", "The man’s hat"], truth)
    third = caption_scores(made[::-1], truth[::-1])
    assert first.to_dict() == second.to_dict()
    assert third.to_dict() == pytest.approx(first.to_dict())
    np.testing.assert_allclose(third.cider_each[::-1], first.cider_each)


def test_an_empty_caption_scores_nothing():
    found = caption_scores(["", "two dogs run"], [["a red house"], ["two dogs run"]])
    assert found.rouge_each.tolist() == [0, 1]
    assert found.cider_each[0] == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Don't stop; it's 3:15!", "do n't stop it 's 3 15"),
        ("re-use (the) U.S. flag", "re-use the u s flag"),
        ("Ünïcode – „Wörter“", "ünïcode wörter"),
        ("...", ""),
    ],
    ids=["clitics", "hyphen", "unicode", "nothing"],
)
def test_words(text, words):
    assert words_of(text) == words


def test_what_cannot_be_scored_is_one_line(monkeypatch):
    with pytest.raises(DataError, match="1 captions for 2 pictures"):
        caption_scores(["a"], [["a"], ["b"]])
    with pytest.raises(DataError, match="picture 1 has no reference"):
        caption_scores(["a", "b"], [["a"], ["!"]])
    with pytest.raises(DataError, match="no captions to score"):
        caption_scores([], [])
    for name in [name for name in sys.modules if name.partition(".")[0] == "pycocoevalcap"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(MissingDependencyError, match=r"mc-vision-language\[metrics\]"):
        caption_scores(["a"], [["a"]])
