"""Sentences in memory: texts, what they come from, and what was left out on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np


@dataclass(frozen=True)
class Sentences(Sequence[str]):
    """A list of sentences.

    Attributes:
        texts: N sentences.
        groups: what each belongs to, such as a module, to split by whole groups; None where nothing is known.
        source: where they come from, for messages.
        left_out: what was met on the way and how often: lines, empty, too_long, invalid, duplicates, one_word.

    >>> sentences = Sentences.of(["a boat", "a house", "a boat"])
    >>> len(sentences), len(sentences.deduplicated()), sentences[1]
    (3, 2, 'a house')
    """

    texts: list[str]
    groups: list[str] | None = None
    source: str = ""
    left_out: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: Sequence[str], *, groups: Sequence[str] | None = None, source: str = "memory") -> Sentences:
        """Sentences from texts, as they are."""
        return cls(list(texts), None if groups is None else list(groups), source)

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self.texts[index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)

    @cached_property
    def hashes(self) -> np.ndarray:
        """(N,) int64, equal for equal sentences, the same on every machine."""
        digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in self.texts)
        return np.frombuffer(digests, dtype="<i8").astype(np.int64)

    def select(self, rows: np.ndarray | Sequence[int]) -> Sentences:
        """These sentences, in this order."""
        kept = np.asarray(rows, dtype=np.int64).tolist()
        groups = None if self.groups is None else [self.groups[i] for i in kept]
        return Sentences([self.texts[i] for i in kept], groups, self.source, self.left_out)

    def deduplicated(self) -> Sentences:
        """The first of equal sentences each, in the same order."""
        _, first = np.unique(self.hashes, return_index=True)
        if len(first) == len(self):
            return self
        return self.select(np.sort(first))

    def describe(self) -> dict[str, Any]:
        """What identifies them, compared when a run is resumed."""
        return {
            "kind": "sentences",
            "location": self.source,
            "count": len(self),
            "hash": int(self.hashes.view(np.uint64).sum(dtype=np.uint64) & np.uint64((1 << 53) - 1)),
        }
