"""Code that was copied and changed a little: MinHash over shingles of five tokens, then the exact overlap.

MinHash (Broder 1997): the share of equal minima of two sets under random hashes estimates their Jaccard overlap. Bands of minima
that agree make candidates; candidates are then compared exactly, so that only misses are left to chance: with the 25 bands of 5
used here, a pair that overlaps by 0.8 is missed once in 20,000 times, one by 0.9 hardly ever.

Legend: N texts, T tokens of some texts, H hashes of shingles, P permutations (25 bands of 5).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mc_core.errors import ConfigError

SHINGLE = 5
THRESHOLD = 0.8

_BANDS, _ROWS = 25, 5
_BLOCK = 1 << 22  # bytes of text hashed at once
_HASHES = 1 << 18  # shingles hashed by all permutations at once
_WORD = np.zeros(256, dtype=bool)
_WORD[list(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")] = True
_WORD[128:] = True
_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\f\v\0")] = True


def _mix(x: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _constants(count: int, stream: int) -> np.ndarray:
    return _mix(np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(stream))


_BYTE_VALUES = _constants(256, 1)
_PLACES = _constants(256, 2) | np.uint64(1)
_SHINGLE_PLACES = _constants(SHINGLE, 3) | np.uint64(1)
_FACTORS = _constants(_BANDS * _ROWS, 4) | np.uint64(1)
_SHIFTS = _constants(_BANDS * _ROWS, 5)
_BAND_PLACES = _constants(_ROWS, 6) | np.uint64(1)


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all runs of five tokens; a text of fewer tokens is one shingle, an empty one none.

    Tokens are words and each other mark by itself; white space does not count.

    Args:
        texts: N of them.

    Returns:
        (H,) uint64, each text's sorted and different, and (N + 1,) int64, where each text's begin.

    >>> hashes, begins = shingles(["a = b + c", "a=b+c", "", "x"])
    >>> begins.tolist(), bool(hashes[0] == hashes[1])
    ([0, 1, 2, 2, 3], True)
    """
    found, counts = [], []
    for block in _blocks(texts):
        hashes, owner = _block_shingles(block)
        order = np.lexsort((hashes, owner))
        hashes, owner = hashes[order], owner[order]
        new = np.ones(len(hashes), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | (owner[1:] != owner[:-1])
        found.append(hashes[new])
        counts.append(np.bincount(owner[new], minlength=len(block)))
    begins = np.concatenate([[0], np.cumsum(np.concatenate(counts))]) if counts else np.zeros(1)
    return (np.concatenate(found) if found else np.zeros(0, dtype=np.uint64)), begins.astype(np.int64)


def _blocks(texts: Sequence[str]) -> Iterator[list[bytes]]:
    block: list[bytes] = []
    size = 0
    for text in texts:
        block.append(text.encode("utf-8", "replace"))
        size += len(block[-1])
        if size > _BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


def _block_shingles(block: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(H,) hashes, not yet made different, and (H,) which text of the block each is of."""
    data = np.frombuffer(b"\n".join(block) + b"\n", dtype=np.uint8)
    lengths = np.array([len(text) + 1 for text in block], dtype=np.int64)
    word, ink = _WORD[data], ~_SPACE[data]
    begins = ink.copy()
    begins[1:] &= ~(word[1:] & word[:-1])
    inked = np.flatnonzero(ink)
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64)
    first = np.searchsorted(inked, starts)  # where each token begins among the inked bytes, which are all in tokens
    place = np.arange(len(inked)) - np.repeat(first, np.diff(np.append(first, len(inked))))
    tokens = _mix(np.add.reduceat(_BYTE_VALUES[data[inked]] * _PLACES[place & 255], first))
    owner = np.searchsorted(np.cumsum(lengths), starts, side="right")
    count = np.bincount(owner, minlength=len(block))
    begin = np.cumsum(count) - count
    # the shingle that starts at each token; those that would reach into the next text are not shingles
    padded = np.concatenate([tokens, np.zeros(SHINGLE - 1, dtype=np.uint64)])
    left = (begin + count)[owner] - np.arange(len(tokens))
    total = np.zeros(len(tokens), dtype=np.uint64)
    for offset in range(SHINGLE):
        part = padded[offset : offset + len(tokens)] * _SHINGLE_PLACES[offset]
        total += np.where(left > offset, part, np.uint64(0))
    whole = (left >= SHINGLE) | ((count[owner] < SHINGLE) & (begin[owner] == np.arange(len(tokens))))
    return _mix(total[whole]), owner[whole]


def _band_keys(hashes: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(N, 25) uint64, equal where a band of minima is; of texts that have shingles."""
    count = len(begins) - 1
    minima = np.zeros((count, _BANDS * _ROWS), dtype=np.uint64)
    first = 0
    while first < count:
        last = int(np.searchsorted(begins, begins[first] + _HASHES, side="right")) - 1
        last = min(max(last, first + 1), count)
        some = hashes[begins[first] : begins[last]]
        offsets = begins[first:last] - begins[first]
        filled = np.flatnonzero(np.diff(begins[first : last + 1]))
        if len(filled):
            for number, (factor, shift) in enumerate(zip(_FACTORS, _SHIFTS, strict=True)):
                mixed = (some * factor + shift) >> np.uint64(32)
                minima[first + filled, number] = np.minimum.reduceat(mixed, offsets[filled])
        first = last
    return _mix((minima.reshape(count, _BANDS, _ROWS) * _BAND_PLACES).sum(axis=2, dtype=np.uint64))


def near_duplicates(texts: Sequence[str], *, threshold: float = THRESHOLD, known: Sequence[str] = ()) -> np.ndarray:
    """Which texts nearly repeat an earlier one that was kept.

    Args:
        texts: N of them; of a group of like ones the first is kept.
        threshold: least Jaccard overlap of their five-token shingles.
        known: texts that count as earlier than all; for what may not be in a training set because it is in the test.

    Returns:
        (N,) int64: −1 for those to keep, else the number of the text that it repeats; ``known`` texts count from −2 downwards.

    Raises:
        ConfigError: ``threshold`` is not above 0.5 and at most 1.

    >>> one = "def area(r): return 3.14159 * r * r if r > 0 else 0 # of a disc, in square units"
    >>> near_duplicates([one, "def f(): pass", one.replace("  ", " ") + " !"])
    array([-1, -1,  0])
    >>> near_duplicates(["x = 1"], known=["y = 2", "x = 1"])
    array([-3])
    """
    if not 0.5 < threshold <= 1:
        raise ConfigError(f"threshold={threshold}: near-duplicates are found from above 0.5 up to 1")
    every = [*known, *texts]
    hashes, begins = shingles(every)
    keys = _band_keys(hashes, begins)
    tables: list[dict[int, list[int]]] = [{} for _ in range(_BANDS)]
    repeats = np.full(len(every), -1, dtype=np.int64)
    sizes = np.diff(begins)
    for row, row_keys in enumerate(keys.tolist()):
        if not sizes[row]:
            continue
        own = hashes[begins[row] : begins[row + 1]]
        if row >= len(known):
            tried: set[int] = set()
            for table, key in zip(tables, row_keys, strict=True):
                for other in table.get(key, ()):
                    if other not in tried:
                        tried.add(other)
                        if _overlap(own, hashes[begins[other] : begins[other + 1]]) >= threshold:
                            repeats[row] = other
                            break
                if repeats[row] >= 0:
                    break
        if repeats[row] < 0:
            for table, key in zip(tables, row_keys, strict=True):
                table.setdefault(key, []).append(row)
    found = repeats[len(known) :]
    return np.where(found < 0, -1, np.where(found < len(known), -2 - found, found - len(known)))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard overlap of two sorted arrays of different values."""
    if min(len(a), len(b)) < 0.5 * max(len(a), len(b)):
        return 0.0  # it cannot reach any threshold
    both = int(np.isin(a, b, assume_unique=True).sum())
    return both / (len(a) + len(b) - both)
