"""Vectors of sentences, dense or sparse: from texts to checked rows, cosines of pairs, products of blocks.

Everything here works with a function from sentences to vectors, whoever made it::

    encode(texts: Sequence[str]) -> (N, D) array, or scipy sparse matrix for words counted over a vocabulary

Legend: N sentences, P pairs, D dimensions, Q queries, R candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from mc_core.errors import DataError

Vectors = Any
"""(N, D) NumPy array of floating point, or scipy sparse matrix in CSR form."""
Encode = Callable[[Sequence[str]], Any]
"""(texts) → (N, D) vectors, a row for each text in order."""

_BLOCK = 4096  # rows at a time


def encode_texts(encode: Encode, texts: Sequence[str]) -> Vectors:
    """The vectors of some texts, checked.

    Returns:
        (N, D) floating-point array, or sparse matrix in CSR form.

    Raises:
        DataError: no texts, or the function gave something else than one row for each.
    """
    if not len(texts):
        raise DataError("there are no sentences to encode")
    found = encode(texts)
    if sparse.issparse(found):
        found = sparse.csr_matrix(found)
    else:
        found = np.asarray(found)
        if found.dtype.kind != "f":
            found = found.astype(np.float32)
    if found.ndim != 2 or found.shape[0] != len(texts) or not found.shape[1]:
        raise DataError(
            f"the encoder gave shape {tuple(found.shape)} for {len(texts)} sentences; a row for each is needed"
        )
    return found


def normalized(vectors: Vectors) -> Vectors:
    """Rows of length one, in float32 unless they came in float64; rows of zeros stay zero, those not finite hold NaN."""
    if sparse.issparse(vectors):
        length_N = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1), dtype=np.float64).ravel())
        return sparse.csr_matrix(sparse.diags(_inverse(length_N)) @ vectors)
    rows = vectors if vectors.dtype == np.float64 else vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        length_N = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        return rows * _inverse(length_N).astype(rows.dtype)[:, None]


def pair_cosines(vectors: Vectors, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
    """Cosine of each pair of rows, in float64; where it is not defined (a row of zeros, NaN) it is 0, and counted.

    Args:
        vectors: (N, D).
        first: (P,) row numbers.
        second: (P,) row numbers.

    Returns:
        (P,) cosines, and how many were not defined.

    >>> pair_cosines(np.array([[1.0, 0], [3, 4], [0, 0]]), np.array([0, 0]), np.array([1, 2]))
    (array([0.6, 0. ]), 1)
    """
    cosines = np.empty(len(first), dtype=np.float64)
    for start in range(0, len(first), _BLOCK):
        rows = slice(start, start + _BLOCK)
        a, b = vectors[first[rows]], vectors[second[rows]]
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines[rows] = _row_dots(a, b) / np.sqrt(_row_dots(a, a) * _row_dots(b, b))
    undefined = ~np.isfinite(cosines)
    cosines[undefined] = 0.0
    return cosines, int(undefined.sum())


def similarity_blocks(
    queries: Vectors, candidates: Vectors, *, values: int = 1 << 24
) -> Iterator[tuple[slice, np.ndarray]]:
    """Cosines of all queries with all candidates, a block of queries at a time.

    Args:
        queries: (Q, D) from :func:`normalized`.
        candidates: (R, D) likewise.
        values: of a block, which bounds the memory.

    Yields:
        Which queries, and their (…, R) cosines.
    """
    step = max(1, values // max(1, candidates.shape[0]))
    turned = candidates.T.tocsc() if sparse.issparse(candidates) else candidates.T
    for start in range(0, queries.shape[0], step):
        rows = slice(start, min(start + step, queries.shape[0]))
        found = queries[rows] @ turned
        yield rows, found.toarray() if sparse.issparse(found) else np.asarray(found)


class CachedEncoder:
    """Remembers what it encoded, so that several evaluations of one encoder encode each sentence once.

    Args:
        encode: the encoder, which must not change meanwhile.

    >>> asked = []
    >>> encoder = CachedEncoder(lambda texts: asked.append(list(texts)) or np.array([[len(t)] for t in texts]))
    >>> encoder(["a", "bbb", "a"]).ravel().tolist(), encoder(["cc", "bbb"]).ravel().tolist(), asked
    ([1.0, 3.0, 1.0], [2.0, 3.0], [['a', 'bbb'], ['cc']])
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._row: dict[str, int] = {}
        self._rows: Vectors | None = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """(N, D) vectors."""
        new = [text for text in dict.fromkeys(texts) if text not in self._row]
        if new:
            found = encode_texts(self._encode, new)
            if self._rows is None:
                self._rows = found
            elif sparse.issparse(found):
                self._rows = sparse.csr_matrix(sparse.vstack([self._rows, found]))
            else:
                self._rows = np.concatenate([self._rows, found])
            self._row.update(zip(new, range(len(self._row), len(self._row) + len(new)), strict=True))
        if self._rows is None:
            raise DataError("there are no sentences to encode")
        return self._rows[[self._row[text] for text in texts]]


def _inverse(length_N: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.where(length_N > 0, 1 / length_N, np.where(length_N == 0, 0.0, np.nan))


def _row_dots(a: Any, b: Any) -> np.ndarray:
    if sparse.issparse(a):
        return np.asarray(a.multiply(b).sum(axis=1), dtype=np.float64).ravel()
    return np.einsum("nd,nd->n", a, b, dtype=np.float64)
