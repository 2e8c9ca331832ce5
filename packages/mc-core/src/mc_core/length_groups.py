"""Which rows of a batch to encode together, so that little work is spent on padding.

Encoding a group costs its rows times the longest of them, plus what any call costs. The cheapest division of the sorted rows into
groups is found by dynamic programming over the lengths that occur.
"""

from __future__ import annotations

import numpy as np

CALL = 64  # what a call of the encoder costs beyond its tokens, in tokens


def length_groups(lengths: np.ndarray, call: int = CALL) -> list[tuple[np.ndarray, int, bool]]:
    """The groups: (rows, longest, whether all are of that length), shortest first.

    Args:
        lengths: (B,) tokens of each row.
        call: what a group costs beyond its tokens.

    >>> [(rows.tolist(), longest, exact) for rows, longest, exact in length_groups(np.array([9, 3, 9, 3]), call=1)]
    [([1, 3], 3, True), ([0, 2], 9, True)]
    """
    order = np.argsort(lengths, kind="stable")
    sizes, counts = np.unique(lengths, return_counts=True)
    ends = np.cumsum(counts)
    cost = np.zeros(len(sizes) + 1)  # of the rows up to each length
    before = np.zeros(len(sizes) + 1, dtype=np.int64)
    starts = np.concatenate([[0], ends])
    for last in range(1, len(sizes) + 1):
        whole = cost[:last] + sizes[last - 1] * (ends[last - 1] - starts[:last]) + call
        before[last] = int(whole.argmin())
        cost[last] = whole[before[last]]
    groups = []
    last = len(sizes)
    while last:
        first = int(before[last])
        groups.append((order[starts[first] : starts[last]], int(sizes[last - 1]), last - first == 1))
        last = first
    return groups[::-1]
