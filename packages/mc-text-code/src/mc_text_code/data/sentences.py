"""Sentences in memory: texts, what they come from, and what was left out on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from mc_core.errors import DataError


@dataclass(frozen=True)
class Sentences(Sequence[str]):
    """A list of sentences.

    Attributes:
        texts: N sentences.
        groups: what each belongs to, such as a module, to split by whole groups; None where nothing is known.
        source: where they come from, for messages.
        left_out: what was met on the way and how often, see :func:`mc_text_code.data.sentence_files.open_sentences`.
        first_invalid: file and line of the first that is no UTF-8.

    >>> sentences = Sentences.of(["a boat", "a house", "a boat"])
    >>> len(sentences), len(sentences.deduplicated()), sentences[1]
    (3, 2, 'a house')
    """

    texts: list[str]
    groups: list[str] | None = None
    source: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    first_invalid: str = ""

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
        return replace(self, texts=[self.texts[i] for i in kept], groups=groups)

    def split_by_group(self, share: float = 0.1) -> tuple[Sentences, Sentences]:
        """(the rest, the held-out groups): whole groups, drawn by their names alone.

        Args:
            share: of the groups that is held out, about; in (0, 1).

        Raises:
            DataError: no groups are known, or one side would be empty.

        >>> sentences = Sentences.of(["a", "b", "c", "d"], groups=["ast", "csv", "json", "ast"])
        >>> [part.groups for part in sentences.split_by_group(0.5)]
        [['csv'], ['ast', 'json', 'ast']]
        """
        if self.groups is None:
            raise DataError(f"{self.source}: nothing is known of what these sentences belong to; split them by number")
        held = {
            name
            for name in set(self.groups)
            if int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") < share * (1 << 32)
        }
        is_held = np.array([group in held for group in self.groups], dtype=bool)
        if is_held.all() or not is_held.any():
            raise DataError(
                f"{self.source}: {len(set(self.groups))} groups do not split into two with a share of {share:g}; "
                "take another share"
            )
        return self.select(np.flatnonzero(~is_held)), self.select(np.flatnonzero(is_held))

    def deduplicated(self) -> Sentences:
        """The first of equal sentences each, in the same order."""
        _, first = np.unique(self.hashes, return_index=True)
        if len(first) == len(self):
            return self
        return self.select(np.sort(first))

    def report(self) -> str:
        """What there is and what was left out, in one line.

        >>> Sentences(["a boat", "sea"], None, "x.txt", {"empty": 2, "one_word": 1}).report()
        '2 sentences of x.txt, 1 of a single word; left out: 2 empty lines'
        """
        words = {
            "empty": "empty lines",
            "invalid": "that are no UTF-8",
            "too_long": "too long to be a sentence",
            "duplicates": "duplicates",
        }
        left = [f"{self.left_out[name]:,} {text}" for name, text in words.items() if self.left_out.get(name)]
        if self.first_invalid:
            left = [f"{text} (first: {self.first_invalid})" if "UTF-8" in text else text for text in left]
        single = self.left_out.get("one_word", 0)
        return (
            f"{len(self):,} sentences of {self.source}"
            + (f", {single:,} of a single word" if single else "")
            + (f"; left out: {', '.join(left)}" if left else "")
        )

    def describe(self) -> dict[str, Any]:
        """What identifies them, compared when a run is resumed."""
        return {
            "kind": "sentences",
            "location": self.source,
            "count": len(self),
            "hash": int(self.hashes.view(np.uint64).sum(dtype=np.uint64) & np.uint64((1 << 53) - 1)),
        }
