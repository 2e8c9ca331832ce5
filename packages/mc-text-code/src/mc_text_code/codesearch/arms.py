"""One search: the words of a query in the word counts, its vector in the matrix, and the two lists as one.

Legend: F files, N chunks, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_text_code.codesearch.answer import Answer
from mc_text_code.codesearch.bm25 import best, bm25_scores
from mc_text_code.codesearch.chunking import words_of
from mc_text_code.codesearch.config import Mode, RankingConfig
from mc_text_code.codesearch.ranking import Candidate, depth, fuse, rank
from mc_text_code.codesearch.showing import Shower
from mc_text_code.codesearch.store import Chunk, Snapshot, Store
from mc_text_code.codesearch.vectors import Matrix
from mc_text_code.source.ignore import ignored_below, rules_of
from mc_text_code.source.languages import LANGUAGES, TEXTS

LONGEST_QUERY = 10_000
MOST_HITS = 1_000

_LANGUAGES = frozenset((*LANGUAGES, *TEXTS, "starlark"))


def check_request(text: str, k: int, mode: str, languages: Sequence[str]) -> None:
    """Refuse what cannot be answered.

    Raises:
        DataError: the query has no words, or is very long.
        ConfigError: no such mode or language, or a number of hits that makes no sense.
    """
    if mode not in get_args(Mode):
        raise ConfigError(f"mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
    if not 1 <= k <= MOST_HITS:
        raise ConfigError(f"{k} hits were asked for; ask for 1 to {MOST_HITS:,}")
    if len(text) > LONGEST_QUERY:
        raise DataError(f"the query has {len(text):,} characters; shorten it to {LONGEST_QUERY:,} or fewer")
    if not words_of(text):
        raise DataError(
            f"the query {text!r} has no letters or digits; describe in words what the code does, or give its name"
        )
    for name in languages:
        if name.lower() not in _LANGUAGES:
            raise ConfigError(f"language {name!r} is not known; closest: {closest(name.lower(), sorted(_LANGUAGES))}")


def files_taken(snapshot: Snapshot, languages: Sequence[str], paths: Sequence[str]) -> np.ndarray | None:
    """(F,) bool, files that are asked about; None where all are."""
    if not languages and not paths:
        return None
    names = {name.lower() for name in languages}
    patterns = [rules_of(_pattern(pattern)) for pattern in paths]
    return np.array(
        [
            (not names or language in names) and (not paths or any(ignored_below(one, path) for one in patterns))
            for path, language in zip(snapshot.paths, snapshot.languages, strict=True)
        ],
        dtype=bool,
    )


def _pattern(path: str) -> str:
    """A pattern as it is typed in a shell: ``./src`` is a folder of the root, ``!`` and ``#`` have no meaning."""
    path = "/" + path.removeprefix("./") if path.startswith("./") else path
    return "\\" + path if path.startswith(("!", "#")) else path


class Arms:
    """What a query is answered from.

    Args:
        store: gives the chunks that were found.
        snapshot: of N chunks.
        matrix: their vectors, or None.
        vector: (D,) float32 of the query, of length one; None without the dense arm.
        ranking: the order.
    """

    def __init__(
        self,
        store: Store,
        snapshot: Snapshot,
        matrix: Matrix | None,
        vector: np.ndarray | None,
        ranking: RankingConfig,
    ) -> None:
        self.store = store
        self.snapshot = snapshot
        self.matrix = matrix
        self.vector = vector
        self.ranking = ranking

    def lexical(self, text: str) -> np.ndarray:
        """(N,) BM25 scores; 0 for chunks with none of the words."""
        asked = Counter(words_of(text))
        numbers = self.store.term_numbers(asked)
        return bm25_scores(self.snapshot.postings, {numbers[word]: asked[word] for word in numbers})

    def dense(self) -> np.ndarray:
        """(N,) cosines, the higher of code and documentation; −∞ for chunks without a vector."""
        assert self.matrix is not None
        assert self.vector is not None
        # the last one is what the row −1 points at
        cosines = np.append(self.matrix.cosines(self.vector), np.float32(-np.inf))
        code, documentation = self.snapshot.rows.T
        return np.maximum(cosines[code], cosines[documentation]) if self.ranking.documentation else cosines[code]

    def answer(self, text: str, k: int, mode: Mode, taken: np.ndarray | None, *, root: Path) -> Answer:
        """The best chunks of the files that are asked about.

        Args:
            text: the query.
            k: most hits.
            mode: which arms.
            taken: (F,) bool, or None.
            root: of the files.
        """
        snapshot = self.snapshot
        most = depth(k, self.ranking)
        mask = None if taken is None else np.repeat(taken, snapshot.chunk_counts)
        with_dense = mode != "lexical" and self.matrix is not None and self.vector is not None
        lexical_scores, dense_scores = np.zeros(0), np.zeros(0)
        lexical: list[int] = []
        dense: list[int] = []
        if mode != "dense":
            lexical_scores = self.lexical(text)
            shown = lexical_scores if mask is None else np.where(mask, lexical_scores, 0)
            lexical = best(shown, most, above=self.ranking.lexical_floor * shown.max(initial=0)).tolist()
        if with_dense:
            dense_scores = self.dense()
            shown = dense_scores if mask is None else np.where(mask, dense_scores, -np.inf)
            dense = best(shown, most, above=-np.inf).tolist()
        chunks = self._chunks({*lexical, *dense})
        only_one = taken is not None and int(taken.sum()) == 1
        ranked = rank(
            fuse(lexical, dense, text, self.ranking),
            [_candidate(chunk) for chunk in chunks.values()],
            text,
            self.ranking,
            per_file=0 if only_one else None,
        )[:k]
        ranks = {number: place for place, number in enumerate(lexical, start=1)}
        dense_ranks = {number: place for place, number in enumerate(dense, start=1)}
        shower = Shower(self.store, root)
        hits = [
            shower.hit(
                chunks[one.number],
                one,
                lexical=(ranks.get(one.number), _score(one.number, ranks, lexical_scores)),
                dense=(dense_ranks.get(one.number), _score(one.number, dense_ranks, dense_scores)),
            )
            for one in ranked
        ]
        used: Mode = mode if with_dense or mode == "dense" else "lexical"
        searched = len(snapshot) if mask is None else int(mask.sum())
        return Answer(text, used, hits, chunks=searched, notes=tuple(shower.notes))

    def _chunks(self, numbers: set[int]) -> dict[int, Chunk]:
        wanted = []
        for number in sorted(numbers):
            file, place = self.snapshot.place_of(number)
            wanted.append((number, self.snapshot.ids[file], place))
        return {chunk.number: chunk for chunk in self.store.chunks_at(wanted)}


def _score(number: int, ranks: dict[int, int], scores: np.ndarray) -> float | None:
    return float(scores[number]) if number in ranks else None


def _candidate(chunk: Chunk) -> Candidate:
    return Candidate(
        chunk.number,
        chunk.path,
        chunk.language,
        chunk.kind,
        chunk.name,
        chunk.qualified_name,
        chunk.line,
        chunk.part,
        chunk.parts,
        bool(chunk.trivial),
    )
