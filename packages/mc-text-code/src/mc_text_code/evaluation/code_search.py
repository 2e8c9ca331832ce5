"""How well are functions found by what is said of them: by words, by an encoder, and by both as one list?

Two protocols, whose figures cannot be compared (CodeSearchNet's self-attention baseline: 0.701 by A, 0.419 by B):

* **B** (GraphCodeBERT, UniXcoder, CoCoSoDa): every query among all candidates; a rank beyond the first 1,000 counts 0. Ties
  share their mean rank, where published code takes the order of a sort.
* **A** (CodeSearchNet, arXiv:1909.09436; CodeBERT): shuffled pairs in batches of 1,000, each answer among 999 distractors, the
  last, partial batch dropped, ties count against. Its published script ranks the queries for each piece of code; here the
  direction is said.

Alignment and uniformity are eq. 11 of CoCoSoDa (arXiv:2204.03293). Words are BM25 over identifiers taken apart, and both together
are fused by rank as a search does it, from the best 1,000 of each and without the signals of names and paths.

Legend: Q queries, C candidates, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_text_code.codesearch.config import RankingConfig
from mc_text_code.codesearch.embedding import CodeEncoder
from mc_text_code.codesearch.ranking import looks_like_identifier
from mc_text_code.data.code_pairs import hide_name
from mc_text_code.data.code_search_sets import CodeSearchSet
from mc_text_code.evaluation.code_lexical import lexical_scores
from mc_text_code.evaluation.ranks import MISSING, Ranks, fused_scores, rank_blocks, ranks_of
from mc_text_code.evaluation.retrieval import TIE, Retrieval
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized, similarity_blocks

LEXICAL, DENSE, HYBRID = "lexical", "dense", "hybrid"
CUTOFF, BATCH = 1_000, 1_000
DENSE_WEIGHTS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
"""Weights of an encoder's ranks beside those of words, to choose from."""
Protocol = Literal["a", "b"]
Direction = Literal["query to code", "code to query"]

_VALUES = 1 << 22  # scores of a block
_SPREAD_ROWS = 4_096
_NO_TIE = 1e-12  # sums of a few reciprocals


@dataclass(frozen=True)
class OneEncoder:
    """One function for queries and code, as a :class:`~mc_text_code.codesearch.embedding.CodeEncoder`.

    Attributes:
        encode: texts → (N, D) vectors.
        identity: what they depend on.
    """

    encode: Encode
    identity: str = ""

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D)."""
        return self.encode(texts)

    def encode_code(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D)."""
        return self.encode(texts)


@dataclass(frozen=True)
class CodeSpread:
    """How the vectors of an encoder lie.

    Attributes:
        alignment: mean squared distance of a query and its code; 0 is best, 2 is unrelated.
        query_uniformity: log of the mean over pairs of queries of exp(−2 · squared distance); lower is more even.
        code_uniformity: the same of code.
    """

    alignment: float | None
    query_uniformity: float | None
    code_uniformity: float | None


@dataclass(frozen=True)
class CodeSearchReport:
    """What :func:`evaluate_code_search` returns.

    Attributes:
        protocol: a or b.
        direction: what was ranked for what.
        names_hidden: whether functions' own names were hidden in their code.
        rows: ``lexical``, with an encoder ``dense`` and ``hybrid``, and those of further encoders.
        ranks: of each row, behind its figures.
        spread: by encoder.
        cutoff: rank beyond which a reciprocal is 0; None: there is none.
        left_out: queries that were not asked: their answer is not among the candidates, or they stood in a partial batch.
    """

    protocol: Protocol
    direction: Direction
    names_hidden: bool
    rows: dict[str, Retrieval]
    ranks: dict[str, Ranks] = field(repr=False)
    spread: dict[str, CodeSpread]
    cutoff: int | None
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the ranks."""
        return {
            "protocol": self.protocol,
            "direction": self.direction,
            "names_hidden": self.names_hidden,
            "cutoff": self.cutoff,
            "left_out": self.left_out,
            "rows": {name: row.to_dict() for name, row in self.rows.items()},
            "spread": {name: asdict(spread) for name, spread in self.spread.items()},
        }


def evaluate_code_search(
    asked: CodeSearchSet,
    encoder: CodeEncoder | None = None,
    *,
    others: Mapping[str, CodeEncoder] | None = None,
    protocol: Protocol = "b",
    direction: Direction = "query to code",
    names_hidden: bool = False,
    cutoff: int | None = CUTOFF,
    batch: int = BATCH,
    seed: int = 0,
    ks: Sequence[int] = (1, 5, 10),
    ranking: RankingConfig | None = None,
) -> CodeSearchReport:
    """Words, an encoder, and both, on the same queries and candidates.

    Args:
        asked: questions and candidates.
        encoder: of queries and code; without one, words alone.
        others: further encoders to stand beside, such as the same one untrained.
        protocol: see above.
        direction: ``code to query``, as CodeSearchNet's script does it, belongs to protocol A.
        names_hidden: replace each function's own name in its code, for words and encoders alike.
        cutoff: of protocol B.
        batch: of protocol A.
        seed: of protocol A's order.
        ks: for recall.
        ranking: constants of the fusion.

    Raises:
        ConfigError: an argument that makes no sense.
        DataError: too few questions, or an encoder gives something else than a finite vector for each text.

    >>> from mc_text_code.data.code_pairs import CodePair
    >>> pairs = [CodePair("open a file", "def open_file(): ..."), CodePair("add numbers", "def add(a, b): ...")]
    >>> evaluate_code_search(CodeSearchSet.of(pairs)).rows["lexical"].mrr
    1.0
    """
    _check(asked, protocol, direction, batch)
    others = dict(others or {})
    if clash := {LEXICAL, DENSE, HYBRID} & set(others):
        raise ConfigError(f"an encoder is called {', '.join(sorted(clash))}, which is the name of another row")
    if names_hidden:
        asked = _with_names_hidden(asked)
    encoders = {**({} if encoder is None else {DENSE: encoder}), **others}
    vectors = {name: _Vectors.of(one, asked) for name, one in encoders.items()}
    config = ranking or RankingConfig()
    if protocol == "b":
        ranks = _all_candidates(asked, vectors, config)
        left_out = asked.left_out
    else:
        cutoff = None
        ranks = _batches(asked, vectors, config, direction, batch, seed)
        left_out = asked.left_out + len(asked.queries) % batch
    order = [name for name in (LEXICAL, DENSE, HYBRID, *others) if name in ranks]
    return CodeSearchReport(
        protocol=protocol,
        direction=direction,
        names_hidden=names_hidden,
        rows={name: ranks[name].retrieval(cutoff=cutoff, ks=ks, left_out=left_out) for name in order},
        ranks={name: ranks[name] for name in order},
        spread={name: found.spread(asked.answer, seed) for name, found in vectors.items()},
        cutoff=cutoff,
        left_out=left_out,
    )


def choose_dense_weight(
    asked: CodeSearchSet,
    encoder: CodeEncoder,
    *,
    weights: Sequence[float] = DENSE_WEIGHTS,
    names_hidden: bool = False,
    ranking: RankingConfig | None = None,
) -> float:
    """How much an encoder's ranks should count beside those of words: the weight with the highest MRR, protocol B.

    A weak encoder at full weight makes the answers of words worse, so the weight is chosen, on questions kept for choosing.

    Args:
        asked: questions and candidates; not those that the result is reported on.
        encoder: of queries and code.
        weights: to choose from, each above 0; of two that are equally good the smaller is taken.
        names_hidden: see :func:`evaluate_code_search`.
        ranking: the other constants of the fusion.

    Raises:
        ConfigError: no weights, or one that is not above 0.
        DataError: as :func:`evaluate_code_search`.
    """
    if not weights or not min(weights) > 0:
        raise ConfigError(f"weights {tuple(weights)}: give some, each above 0")
    _check(asked, "b", "query to code", BATCH)
    if names_hidden:
        asked = _with_names_hidden(asked)
    config = ranking or RankingConfig()
    vectors = _Vectors.of(encoder, asked)
    of_words = _weights(asked.queries, config)
    found: dict[float, list[Ranks]] = {weight: [] for weight in sorted(weights)}
    for rows, words in _small(lexical_scores(asked.queries, asked.codes), len(asked.codes)):
        near = np.rint(vectors.queries[rows] @ vectors.codes.T / TIE)
        for weight, parts in found.items():
            weighted = config.model_copy(update={"dense_weight": weight})
            both = fused_scores(words, near, of_words[rows], weighted, depth=CUTOFF)
            parts.append(ranks_of(both, asked.answer[rows], tie=_NO_TIE))
    mrr = {weight: Ranks.joined(parts).reciprocal(CUTOFF).mean() for weight, parts in found.items()}
    return max(mrr, key=lambda weight: mrr[weight])


def _with_names_hidden(asked: CodeSearchSet) -> CodeSearchSet:
    return replace(
        asked, codes=tuple(hide_name(code, name) for code, name in zip(asked.codes, asked.names, strict=True))
    )


def _check(asked: CodeSearchSet, protocol: str, direction: str, batch: int) -> None:
    if protocol not in get_args(Protocol) or direction not in get_args(Direction):
        raise ConfigError(
            f"protocol {protocol!r}, direction {direction!r}: choose of {', '.join(get_args(Protocol))} and of "
            f"{', '.join(get_args(Direction))}"
        )
    if not asked.queries or not asked.codes:
        raise DataError(f"{len(asked.queries)} questions and {len(asked.codes)} candidates: there is nothing to rank")
    if protocol == "b" and direction != "query to code":
        raise ConfigError("protocol b ranks code for each query; take protocol a for the other direction")
    if protocol == "a":
        if batch < 2:
            raise ConfigError(f"batch={batch}: protocol a ranks among two or more")
        if (asked.answer < 0).any():
            raise DataError("protocol a ranks pairs: each question needs its code")
        if len(asked.queries) < batch:
            raise DataError(
                f"protocol a ranks in batches of {batch:,} pairs, and there are {len(asked.queries):,}; take protocol b"
            )


@dataclass(frozen=True)
class _Vectors:
    """(Q, D) of queries and (C, D) of code, of length one."""

    queries: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, encoder: CodeEncoder, asked: CodeSearchSet) -> _Vectors:
        queries = normalized(encode_texts(encoder.encode_queries, list(asked.queries)))
        codes = normalized(encode_texts(encoder.encode_code, list(asked.codes)))
        if queries.shape[1] != codes.shape[1]:
            raise DataError(
                f"the encoder gives {queries.shape[1]} numbers for a query and {codes.shape[1]} for code; both must be in "
                "one space"
            )
        if not (np.isfinite(queries).all() and np.isfinite(codes).all()):
            raise DataError("the encoder gave a vector that is not finite (NaN); it cannot be ranked")
        return cls(queries, codes)

    def spread(self, answer: np.ndarray, seed: int) -> CodeSpread:
        import torch

        from mc_core.evaluation import alignment, uniformity

        def even(rows: np.ndarray) -> float | None:
            order = np.random.Generator(np.random.Philox(seed)).permutation(len(rows))[:_SPREAD_ROWS]
            return uniformity(torch.from_numpy(rows[np.sort(order)])) if len(rows) > 1 else None

        known = answer != MISSING
        return CodeSpread(
            alignment=alignment(torch.from_numpy(self.queries[known]), torch.from_numpy(self.codes[answer[known]]))
            if known.any()
            else None,
            query_uniformity=even(self.queries),
            code_uniformity=even(self.codes),
        )


def _all_candidates(asked: CodeSearchSet, vectors: Mapping[str, _Vectors], config: RankingConfig) -> dict[str, Ranks]:
    parts: dict[str, list[Ranks]] = {}
    dense = vectors.get(DENSE)
    weights = _weights(asked.queries, config)
    for rows, words in _small(lexical_scores(asked.queries, asked.codes), len(asked.codes)):
        near = None if dense is None else dense.queries[rows] @ dense.codes.T
        _rank_block(parts, words, near, asked.answer[rows], weights[rows], config)
    found = {name: Ranks.joined(some) for name, some in parts.items()}
    for name, other in vectors.items():
        if name != DENSE:
            blocks = similarity_blocks(other.queries, other.codes, values=_VALUES)
            found[name] = rank_blocks(blocks, asked.answer, tie=TIE)
    return found


def _batches(
    asked: CodeSearchSet,
    vectors: Mapping[str, _Vectors],
    config: RankingConfig,
    direction: Direction,
    batch: int,
    seed: int,
) -> dict[str, Ranks]:
    parts: dict[str, list[Ranks]] = {}
    order = np.random.Generator(np.random.Philox(seed)).permutation(len(asked.queries))
    turned = direction == "code to query"
    for start in range(0, len(order) - batch + 1, batch):
        rows = order[start : start + batch]
        codes = asked.answer[rows]
        texts = [asked.queries[row] for row in rows]
        words = np.concatenate([block for _, block in lexical_scores(texts, [asked.codes[row] for row in codes])])
        near = {name: found.queries[rows] @ found.codes[codes].T for name, found in vectors.items()}
        weights = np.full(batch, config.lexical_weight) if turned else _weights(texts, config)
        if turned:
            words, near = words.T, {name: cosines.T for name, cosines in near.items()}
        own = np.arange(batch)
        _rank_block(parts, words, near.pop(DENSE, None), own, weights, config)
        for name, cosines in near.items():
            parts.setdefault(name, []).append(ranks_of(cosines, own, tie=TIE))
    return {name: Ranks.joined(some).ties_against() for name, some in parts.items()}


def _rank_block(
    parts: dict[str, list[Ranks]],
    words: np.ndarray,
    near: np.ndarray | None,
    answer: np.ndarray,
    weights: np.ndarray,
    config: RankingConfig,
) -> None:
    parts.setdefault(LEXICAL, []).append(ranks_of(words, answer))
    if near is None:
        return
    parts.setdefault(DENSE, []).append(ranks_of(near, answer, tie=TIE))
    both = fused_scores(words, np.rint(near / TIE), weights, config, depth=CUTOFF)
    parts.setdefault(HYBRID, []).append(ranks_of(both, answer, tie=_NO_TIE))


def _weights(queries: Sequence[str], config: RankingConfig) -> np.ndarray:
    return np.array(
        [config.identifier_weight if looks_like_identifier(text) else config.lexical_weight for text in queries],
        dtype=np.float64,
    )


def _small(blocks: Iterator[tuple[slice, np.ndarray]], candidates: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The same in blocks of at most about :data:`_VALUES` scores."""
    step = max(1, _VALUES // candidates)
    for rows, scores in blocks:
        for start in range(0, len(scores), step):
            some = scores[start : start + step]
            yield slice(rows.start + start, rows.start + start + len(some)), some
