"""Sentences that say the same: equal ones by their text, near ones by the cosine of their vectors, all pairs compared exactly.

Two ways to make groups of near pairs:

* ``first``: in order, a sentence joins the most similar *kept* sentence before it if that is near enough, else it is kept. Every
  sentence that goes has one near it that stays, and no two that stay are near each other.
* ``chain``: whatever is joined by a chain of near pairs is one group, of which the first is kept. The ends of a long chain may
  have little in common, and in a large corpus chains are long.

All pairs are compared, a block at a time, so that memory does not grow with their number. Most are settled by an upper bound of
the cosine that costs a fraction of it: with the first m principal coordinates a, b of two unit vectors,
cos ≤ a·b + √(1 − ‖a‖²) √(1 − ‖b‖²) (Cauchy–Schwarz on the rest). Nothing is missed by that.

Legend: N sentences, D dimensions, M coordinates of the bound, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import derive_seed
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized

Linkage = Literal["first", "chain"]

_ROWS, _COLUMNS = 1024, 1024  # of a tile, small enough for the processor's cache
_SLACK = 2e-5  # what rounding may take from the bound
_DENSE = 0.02  # share of a tile beyond which all its cosines are computed
_RARE = 3e-5  # share of pairs that the bound may leave open
_EDGES = 1 << 18
_STREAM = 0xDED


@dataclass(frozen=True)
class Duplicates:
    """Which sentence stands for which.

    Attributes:
        stands_for: (N,) int64, the row that is kept for each sentence: its own for those that are kept.
        similarity: (N,) float32, cosine with that row; 1 for a kept sentence and for an equal one.
        exact: (N,) bool, whether an equal sentence came before.
        threshold: cosine from which two sentences are near; None where only equal ones were looked for.
    """

    stands_for: np.ndarray
    similarity: np.ndarray
    exact: np.ndarray
    threshold: float | None

    def __len__(self) -> int:
        return len(self.stands_for)

    @property
    def kept(self) -> np.ndarray:
        """Rows that stay, in order."""
        return np.flatnonzero(self.stands_for == np.arange(len(self)))

    def groups(self) -> list[np.ndarray]:
        """Rows of each group of two or more, the kept one first, in the order of the kept ones."""
        order = np.lexsort((np.arange(len(self)), self.stands_for))
        starts = np.flatnonzero(np.diff(self.stands_for[order], prepend=-1))
        return [rows for rows in np.split(order, starts[1:]) if len(rows) > 1]

    def to_dict(self) -> dict[str, Any]:
        """Counts, for JSON."""
        exact = int(self.exact.sum())
        return {
            "sentences": len(self),
            "kept": len(self.kept),
            "equal": exact,
            "near": len(self) - len(self.kept) - exact,
            "groups": len(self.groups()),
            "threshold": self.threshold,
        }


def find_duplicates(
    texts: Sequence[str],
    encode: Encode | None = None,
    *,
    threshold: float = 0.95,
    linkage: Linkage = "first",
    progress: Callable[[float], None] | None = None,
) -> Duplicates:
    """Groups of sentences that say the same.

    Args:
        texts: N sentences; those that differ in white space only are equal.
        encode: sentences → dense vectors; None looks for equal sentences alone. Each text is encoded once.
        threshold: cosine in (0, 1] from which two sentences are near. It depends on the encoder: look at some groups first.
        linkage: ``first`` or ``chain``, see above.
        progress: called with the share of the comparisons done.

    Raises:
        ConfigError: threshold or linkage is none of these.
        DataError: no texts, or vectors with NaN.

    >>> letters = lambda texts: np.array([[t.count("a"), t.count("b")] for t in texts], dtype=float)
    >>> found = find_duplicates(["aa", "b", "aa", "aaab"], letters, threshold=0.9)
    >>> found.stands_for.tolist(), found.kept.tolist(), [rows.tolist() for rows in found.groups()]
    ([0, 1, 0, 0], [0, 1], [[0, 2, 3]])
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"threshold {threshold:g} must be a cosine above 0 and at most 1, such as 0.95")
    if linkage not in ("first", "chain"):
        raise ConfigError(f"linkage {linkage!r} is neither 'first' nor 'chain'")
    if not len(texts):
        raise DataError("there are no sentences to compare")
    first: dict[str, int] = {}
    stands_for = np.fromiter(
        (first.setdefault(" ".join(t.split()), n) for n, t in enumerate(texts)), np.int64, len(texts)
    )
    exact = stands_for != np.arange(len(texts))
    similarity = np.ones(len(texts), dtype=np.float32)
    if encode is None:
        return Duplicates(stands_for, similarity, exact, None)
    different = np.flatnonzero(~exact)
    vectors = encode_texts(encode, [texts[row] for row in different.tolist()])
    near, cosine = near_duplicates(vectors, threshold=threshold, linkage=linkage, progress=progress)
    place = np.empty(len(texts), dtype=np.int64)
    place[different] = np.arange(len(different))
    of = place[stands_for]
    return Duplicates(different[near[of]], cosine[of], exact, threshold)


def near_duplicates(
    vectors: np.ndarray,
    *,
    threshold: float,
    linkage: Linkage = "first",
    progress: Callable[[float], None] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same on vectors.

    Args:
        vectors: (N, D), of any length; rows of zeros are near nothing.
        threshold: cosine.
        linkage: ``first`` or ``chain``.
        progress: called with the share done.

    Returns:
        (N,) the row that stands for each, and (N,) float32 the cosine with it.
    """
    rows = np.ascontiguousarray(normalized(vectors), dtype=np.float32)
    if not np.isfinite(rows).all():
        bad = int((~np.isfinite(rows).all(axis=1)).argmax())
        raise DataError(f"the vector of sentence {bad + 1} has NaN or infinite values")
    comparison = _Comparison(torch.from_numpy(rows), threshold)
    told = progress or (lambda _: None)
    if linkage == "first":
        return _first(comparison, told)
    stands_for = _chain(comparison, told)
    return stands_for, _cosines(rows, stands_for)


class _Comparison:
    """Finds the pairs of two sets of rows whose cosine reaches the threshold."""

    def __init__(self, rows_ND: Tensor, threshold: float) -> None:
        self.rows_ND = rows_ND
        self.threshold = min(threshold, 1 - 1e-6)  # equal vectors reach 1 up to rounding
        self.bound_NM = self._bounding()

    def __len__(self) -> int:
        return len(self.rows_ND)

    def pairs(self, one: Tensor, other: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(P,) places in ``one``, (P,) places in ``other``, (P,) cosines."""
        if self.bound_NM is not None:
            bound_AB = self.bound_NM[one] @ self.bound_NM[other].T
            least = self.threshold - _SLACK
            maybe = (bound_AB.amax(dim=1) >= least).nonzero().squeeze(1)
            if not len(maybe):
                return _NONE
            at, column = (bound_AB[maybe] >= least).nonzero(as_tuple=True)
            if len(at) <= _DENSE * bound_AB.numel():
                row = maybe[at]
                cosine = (self.rows_ND[one[row]] * self.rows_ND[other[column]]).sum(1)
                near = cosine >= self.threshold
                return row[near].numpy(), column[near].numpy(), cosine[near].numpy()
        cosine_AB = self.rows_ND[one] @ self.rows_ND[other].T
        rows = (cosine_AB.amax(dim=1) >= self.threshold).nonzero().squeeze(1)
        if not len(rows):
            return _NONE
        at, column = (cosine_AB[rows] >= self.threshold).nonzero(as_tuple=True)
        row = rows[at]
        return row.numpy(), column.numpy(), cosine_AB[row, column].numpy()

    def _bounding(self) -> Tensor | None:
        """(N, M + 1) whose products bound the cosines from above; None where that would not pay."""
        count, dim = self.rows_ND.shape
        if count <= _ROWS:
            return None
        rng = np.random.Generator(np.random.Philox(derive_seed(_STREAM)))
        sample = torch.from_numpy(np.sort(rng.choice(count, min(count, 8192), replace=False)))
        _, axes_DD = torch.linalg.eigh(self.rows_ND[sample].T @ self.rows_ND[sample])
        for most in (15, 23, 31, 47, 63):
            if 2 * most >= dim:
                return None
            axes = axes_DD[:, -most:]
            probe = _with_rest(self.rows_ND[sample[:2048]] @ axes)
            above = int(((probe @ probe.T) >= self.threshold - _SLACK).sum()) - len(
                probe
            )  # a row with itself is no pair
            if above <= _RARE * len(probe) ** 2:
                return torch.cat([_with_rest(rows @ axes) for rows in self.rows_ND.split(1 << 16)])
        return None


_NONE = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32))


def _with_rest(head_NM: Tensor) -> Tensor:
    rest_N = (1 - head_NM.square().sum(1)).clamp_(min=0).sqrt_()
    return torch.cat([head_NM, rest_N[:, None]], dim=1)


def _first(comparison: _Comparison, told: Callable[[float], None]) -> tuple[np.ndarray, np.ndarray]:
    count = len(comparison)
    stands_for = np.arange(count)
    similarity = np.ones(count, dtype=np.float32)
    kept = torch.empty(0, dtype=torch.int64)
    for start in range(0, count, _ROWS):
        block = torch.arange(start, min(start + _ROWS, count))
        best = np.full(len(block), -np.inf, dtype=np.float32)
        whom = np.full(len(block), -1, dtype=np.int64)
        for some in kept.split(_COLUMNS) if len(kept) else ():
            row, column, cosine = comparison.pairs(block, some)
            order = np.lexsort((column, -cosine, row))
            row, at = np.unique(row[order], return_index=True)
            value, column = cosine[order][at], column[order][at]
            better = value > best[row]
            best[row[better]], whom[row[better]] = value[better], some.numpy()[column[better]]
        row, column, cosine = comparison.pairs(block, block)
        earlier = column < row
        row, column, cosine = row[earlier], column[earlier], cosine[earlier]
        order = np.lexsort((column, row))
        row, column, cosine = row[order], column[order], cosine[order]
        stays = whom < 0
        places, begins = np.unique(row, return_index=True)
        for place, begin, end in zip(places, begins, np.append(begins, len(row))[1:], strict=True):
            near = stays[column[begin:end]]
            if near.any():
                values = np.where(near, cosine[begin:end], -np.inf)
                top = int(values.argmax())
                if values[top] > best[place]:
                    best[place], whom[place] = values[top], start + column[begin + top]
                stays[place] = False
        goes = ~stays
        stands_for[start : start + len(block)][goes] = whom[goes]
        similarity[start : start + len(block)][goes] = best[goes]
        kept = torch.cat([kept, block[torch.from_numpy(stays)]])
        told((start + len(block)) ** 2 / count**2)
    return stands_for, similarity.clip(max=1)


def _chain(comparison: _Comparison, told: Callable[[float], None]) -> np.ndarray:
    count = len(comparison)
    label = np.arange(count)
    every = torch.arange(count)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for start in range(0, count, _ROWS):
        block = every[start : start + _ROWS]
        for some in every[: start + len(block)].split(_COLUMNS):
            row, column, _ = comparison.pairs(block, some)
            i, j = start + row, int(some[0]) + column
            apart = (j < i) & (label[i] != label[j])
            waiting.append((label[i[apart]], label[j[apart]]))
            if sum(len(a) for a, _ in waiting) > _EDGES:
                label, waiting = _joined(label, waiting), []
        told((start + len(block)) ** 2 / count**2)
    return _joined(label, waiting)


def _joined(label: np.ndarray, edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The lowest row of each row's group once the groups at both ends of every edge are one."""
    i, j = (np.concatenate([np.empty(0, dtype=np.int64), *(edge[side] for edge in edges)]) for side in (0, 1))
    graph = sparse.coo_matrix((np.ones(len(i), dtype=bool), (i, j)), shape=(len(label), len(label)))
    _, group = connected_components(graph, directed=False)
    group = group[label]
    lowest = np.full(int(group.max()) + 1, len(label))
    np.minimum.at(lowest, group, np.arange(len(label)))
    return lowest[group]


def _cosines(rows: np.ndarray, stands_for: np.ndarray) -> np.ndarray:
    """(N,) with the row that stands for each; 1 for those that stand for themselves."""
    found = np.ones(len(rows), dtype=np.float32)
    goes = np.flatnonzero(stands_for != np.arange(len(rows)))
    for some in np.array_split(goes, max(1, len(goes) // 16384)):
        found[some] = np.einsum("nd,nd->n", rows[some], rows[stands_for[some]])
    return found.clip(max=1)
