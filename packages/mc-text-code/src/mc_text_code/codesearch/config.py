"""What an index holds, and what its answers are ordered by. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from mc_core.engine.config import StrictModel

Mode = Literal["hybrid", "dense", "lexical"]


class IndexConfig(StrictModel):
    """How files are cut into chunks, and what of them becomes a vector. An index made with other settings is built anew.

    >>> IndexConfig().max_tokens, IndexConfig(vectors="int8").vectors
    (256, 'int8')
    """

    max_tokens: int = Field(default=256, ge=16)
    """Longer functions are split at statements; words and single marks count."""
    window_lines: int = Field(default=30, ge=1)
    """Lines of a window, of files without a grammar and between functions."""
    names: bool = True
    """The qualified name stands before the code that is embedded."""
    documentation: bool = True
    """Functions and classes have a second vector, of their name and documentation; the nearer of the two counts."""
    vectors: Literal["float16", "int8"] = "float16"
    """How vectors are stored; `int8` takes half the room, cosines are off by up to about 0.005."""


class RankingConfig(StrictModel):
    """Every signal of the order of results, each a field of its own: 1 switches a factor off, 0 a weight.

    Reciprocal rank fusion is Cormack, Clarke & Büttcher 2009 (SIGIR), with their constant of 60. The other values are ours.

    >>> RankingConfig(test_factor=1.0).rrf_constant
    60
    """

    rrf_constant: int = Field(default=60, ge=1)
    """Added to ranks, which count from 1."""
    fewest_candidates: int = Field(default=50, ge=1)
    """An arm hands over so many candidates, or `candidates_per_hit` for each result asked for."""
    candidates_per_hit: int = Field(default=5, ge=1)
    """See `fewest_candidates`."""
    lexical_floor: float = Field(default=0.25, ge=0, lt=1)
    """BM25 hands over what reaches this share of its best score: in a small project, ranks alone would lift what hardly fits."""
    lexical_weight: float = Field(default=1.0, ge=0)
    """Of BM25's ranks."""
    dense_weight: float = Field(default=1.0, ge=0)
    """Of the encoder's ranks."""
    identifier_weight: float = Field(default=2.0, ge=0)
    """Of BM25's ranks instead, where the query looks like an identifier: CamelCase, snake_case, `::`, `.` between names."""
    documentation: bool = True
    """The encoder's score is the higher of code and documentation; without, that of code."""
    definition_factor: float = Field(default=2.0, gt=0)
    """For the definition of exactly the symbol that the query names."""
    stem_factor: float = Field(default=1.1, gt=0)
    """For files whose name without ending is in the query."""
    several_factor: float = Field(default=1.0, gt=0)
    """For the best hit of a file with several among the first ten, once for each further one up to three. Off: where one function
    was meant, as in documentation that is looked up, each value above 1 made the answer worse."""
    test_factor: float = Field(default=0.5, gt=0)
    """For tests, unless the query asks for them."""
    vendor_factor: float = Field(default=0.5, gt=0)
    """For copies of other projects."""
    generated_factor: float = Field(default=0.5, gt=0)
    """For files that look generated."""
    trivial_factor: float = Field(default=0.9, gt=0)
    """For functions of one line that nobody documented."""
    prose_factor: float = Field(default=0.8, gt=0)
    """For text that is no code, such as Markdown."""
    per_file: int = Field(default=2, ge=0)
    """Most hits in one file; 0: no limit. It does not hold where a search is about one file."""
