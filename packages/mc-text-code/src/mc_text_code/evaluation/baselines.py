"""What any sentence encoder should be shown beside: counted words, static word vectors, lexical search.

All three learn from sentences alone and in seconds. Fit them on the sentences the encoder was trained on; the choice of what
to fit on is the caller's and belongs beside the number.

Legend: N sentences, V words, D dimensions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from mc_core.errors import ConfigError, DataError
from mc_text_code.evaluation.vectors import Encode

_WORD = re.compile(r"\w+")
_SMOOTHING = 0.75
_BM25_BLOCK = 1 << 24


def tfidf_encoder(corpus: Sequence[str]) -> Encode:
    """Words weighted by how rare they are in ``corpus``: scikit-learn's TF-IDF with its defaults, rows of length one.

    Args:
        corpus: N sentences.

    Returns:
        An encoder that gives a sparse (N, V) matrix; words that the corpus does not have count for nothing.

    Raises:
        DataError: the corpus has no words.

    >>> encode = tfidf_encoder(["a red cat", "a red dog", "a cat"])
    >>> encode(["red cat", "no such"]).toarray().round(2).tolist()
    [[0.71, 0.0, 0.71], [0.0, 0.0, 0.0]]
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectorizer = TfidfVectorizer(dtype=np.float64).fit(corpus)
    except ValueError as error:
        raise DataError(f"TF-IDF finds no words in {len(corpus)} sentences ({error})") from error
    return vectorizer.transform


class MeanWordVectors:
    """The mean of static word vectors, which come from how often words stand near each other in a corpus.

    Positive pointwise mutual information of words within a window, smoothed contexts, and the leading singular vectors weighted
    by the root of their singular values: Levy, Goldberg & Dagan 2015 (TACL 3), who find it on a par with word2vec. Words are
    lower-case; every word weighs the same.

    Args:
        corpus: N sentences.
        dim: D; fewer when there are fewer words.
        window: words to either side that count as near.
        fewest: times a word must occur.
        most: V, the most frequent words that are kept.
        seed: of the randomised singular value decomposition.

    Raises:
        ConfigError: an argument is out of range.
        DataError: fewer than two words occur often enough.

    >>> corpus = ["the cat sat", "the dog sat", "a cat ran", "a dog ran"] * 3
    >>> vectors = MeanWordVectors(corpus, dim=2)
    >>> cat, dog = vectors(["cat"])[0], vectors(["dog"])[0]
    >>> bool(np.allclose(cat, dog, atol=1e-5)), vectors(["unknown"]).tolist()
    (True, [[0.0, 0.0]])
    """

    def __init__(
        self,
        corpus: Sequence[str],
        *,
        dim: int = 128,
        window: int = 5,
        fewest: int = 3,
        most: int = 50_000,
        seed: int = 0,
    ) -> None:
        if dim < 1 or window < 1 or fewest < 1 or most < 2:
            raise ConfigError(f"dim={dim}, window={window}, fewest={fewest}, most={most}: all must be positive")
        from sklearn.utils.extmath import randomized_svd

        self.words = _vocabulary(corpus, fewest, most)
        ids, lengths = self._ids(corpus)
        counts = _near_each_other(ids, lengths, len(self.words), window)
        ppmi = _positive_information(counts)
        rank = min(dim, len(self.words))
        left, values, _ = randomized_svd(ppmi, rank, n_iter=4, random_state=seed)
        self.vectors = np.ascontiguousarray(left * np.sqrt(values), dtype=np.float32)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32; zeros for a sentence none of whose words are known."""
        ids, lengths = self._ids(texts)
        known = ids >= 0
        row = np.repeat(np.arange(len(texts)), lengths)[known]
        ones = np.ones(len(row), dtype=np.float32)
        times = sparse.csr_matrix((ones, (row, ids[known])), shape=(len(texts), len(self.words)))
        count = np.bincount(row, minlength=len(texts)).clip(min=1).astype(np.float32)
        return np.asarray(times @ self.vectors) / count[:, None]

    def _ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All words as ids, −1 for unknown ones, and how many each text has."""
        found, lengths = [], np.empty(len(texts), dtype=np.int64)
        for place, text in enumerate(texts):
            words = _words(text)
            lengths[place] = len(words)
            found += [self.words.get(word, -1) for word in words]
        return np.array(found, dtype=np.int64), lengths


def bm25_scores(
    queries: Sequence[str], candidates: Sequence[str], *, k1: float = 1.5, b: float = 0.75
) -> Iterator[tuple[slice, np.ndarray]]:
    """Scores of Okapi BM25, as Lucene computes them, by bm25s: a scorer for
    :func:`mc_text_code.evaluation.retrieval.retrieval_by_scores`.

    Args:
        queries: texts to look for.
        candidates: N texts to look in.
        k1: how fast repeated words saturate.
        b: how much long texts are held back.

    Yields:
        Which queries, and their (…, N) scores.

    >>> for rows, scores in bm25_scores(["red cat"], ["a red cat", "a dog", "red"]):
    ...     print(rows, (scores[0, 0] > scores[0, 2] > scores[0, 1]).item(), scores[0, 1].item())
    slice(0, 1, None) True 0.0
    """
    import bm25s

    words = [_words(text) for text in candidates]
    number = {word: place for place, word in enumerate(dict.fromkeys(word for found in words for word in found))}
    if not number:
        raise DataError(f"BM25 finds no words in {len(candidates)} candidates")
    index = bm25s.BM25(method="lucene", k1=k1, b=b)
    index.index(
        bm25s.tokenization.Tokenized([[number[word] for word in found] for found in words], number), show_progress=False
    )
    step = max(1, _BM25_BLOCK // len(candidates))
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        block = np.zeros((len(some), len(candidates)), dtype=np.float32)
        for row, text in zip(block, some, strict=True):
            if known := [number[word] for word in _words(text) if word in number]:
                row[:] = index.get_scores_from_ids(known)
        yield slice(start, start + len(some)), block


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _vocabulary(corpus: Sequence[str], fewest: int, most: int) -> dict[str, int]:
    times: Counter[str] = Counter()
    for text in corpus:
        times.update(_words(text))
    often = sorted((word for word, count in times.items() if count >= fewest), key=lambda word: (-times[word], word))
    if len(often) < 2:
        raise DataError(
            f"{len(often)} words occur {fewest} times or more in {len(corpus)} sentences; word vectors need more text"
        )
    return {word: place for place, word in enumerate(often[:most])}


def _near_each_other(ids: np.ndarray, lengths: np.ndarray, size: int, window: int) -> sparse.csr_matrix:
    """(V, V) how often two words stand at most ``window`` words apart in one sentence; unknown words keep their places."""
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    total = sparse.csr_matrix((size, size), dtype=np.float64)
    for distance in range(1, window + 1):
        left, right = ids[:-distance], ids[distance:]
        both = (sentence[:-distance] == sentence[distance:]) & (left >= 0) & (right >= 0)
        ones = np.ones(int(both.sum()))
        total = total + sparse.csr_matrix((ones, (left[both], right[both])), shape=(size, size))
    return sparse.csr_matrix(total + total.T)


def _positive_information(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    found: Any = counts.tocoo()
    if not found.nnz:
        raise DataError("no two known words stand near each other; word vectors need longer sentences")
    word = np.asarray(counts.sum(axis=1)).ravel()
    context = word**_SMOOTHING
    share = context / context.sum()
    information = np.log(found.data / (word[found.row] * share[found.col]))
    kept = information > 0
    return sparse.csr_matrix((information[kept], (found.row[kept], found.col[kept])), shape=counts.shape)
