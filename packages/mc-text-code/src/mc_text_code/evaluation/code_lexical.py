"""How far words alone go in code search: BM25 over identifiers taken apart, beside which every trained encoder belongs.

Names are the main shortcut, since documentation tends to repeat them; with the function's own name hidden, what is left has to be
found by what the code does. k1 = 1.2 and b = 0.75 are Lucene's.

Legend: Q queries, C candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from mc_text_code.data.code_pairs import hide_name
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation.baselines import bm25_scores
from mc_text_code.evaluation.retrieval import Queries, Retrieval, retrieval_by_scores
from mc_text_code.source.words import split_words

Words = Literal["split", "plain"]

K1, B = 1.2, 0.75

_PLAIN = re.compile(r"\w+")


def lexical_scores(
    queries: Sequence[str], codes: Sequence[str], *, words: Words = "split", k1: float = K1, b: float = B
) -> Iterator[tuple[slice, np.ndarray]]:
    """BM25 of code, a scorer for :func:`mc_text_code.evaluation.retrieval.retrieval_by_scores`.

    Args:
        queries: Q texts.
        codes: C texts.
        words: ``split`` takes ``camelCase`` and ``snake_case`` apart, ``plain`` takes runs of letters, digits and ``_``.
        k1: how fast repeated words saturate.
        b: how much long functions are held back.

    Yields:
        Which queries, and their (…, C) scores.

    Raises:
        DataError: there is no word in any of the codes.

    >>> codes = ["def read_file(path): return open(path)", "def writeFile(path, text): ..."]
    >>> [int(score.argmax()) for _, scores in lexical_scores(["write a file", "open"], codes) for score in scores]
    [1, 0]
    """
    spaced = _split if words == "split" else _plain
    return bm25_scores([spaced(text) for text in queries], [spaced(text) for text in codes], k1=k1, b=b)


def _split(text: str) -> str:
    return " ".join(split_words(text))


def _plain(text: str) -> str:
    return " ".join(_PLAIN.findall(text))


def evaluate_code_lexical(
    asked: CodeSearchSet,
    *,
    words: Words = "split",
    names_hidden: bool = False,
    k1: float = K1,
    b: float = B,
    ks: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Mean reciprocal rank and recall of BM25; functions with the same score share their mean rank.

    Args:
        asked: questions and candidates.
        words: as for :func:`lexical_scores`.
        names_hidden: replace each function's own name in its code.
        k1: as for :func:`lexical_scores`.
        b: likewise.
        ks: for recall.

    Raises:
        DataError: there is no question, or no word in the code.

    >>> from mc_text_code.data.code_pairs import CodePair
    >>> pairs = [
    ...     CodePair("sum of a list", "def total(xs): ...", name="total"),
    ...     CodePair("total", "def count(): ...", name="count"),
    ... ]
    >>> asked = CodeSearchSet.of(pairs)
    >>> evaluate_code_lexical(asked).mrr, evaluate_code_lexical(asked, names_hidden=True).mrr
    (0.5833333333333333, 0.6666666666666666)
    """
    codes = asked.codes
    if names_hidden:
        codes = tuple(hide_name(code, name) for code, name in zip(codes, asked.names, strict=True))

    def score(queries: Sequence[str], candidates: Sequence[str]) -> Iterator[tuple[slice, np.ndarray]]:
        return lexical_scores(queries, candidates, words=words, k1=k1, b=b)

    return retrieval_by_scores(score, Queries(asked.queries, codes, asked.answer, asked.left_out), ks=ks)


def lexical_table(asked: CodeSearchSet) -> dict[str, Retrieval]:
    """The three rows that belong together: plain words, identifiers split, and split with the name hidden."""
    return {
        "plain": evaluate_code_lexical(asked, words="plain"),
        "split": evaluate_code_lexical(asked),
        "split, name hidden": evaluate_code_lexical(asked, names_hidden=True),
    }
