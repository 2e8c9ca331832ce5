"""What sentence encoders are worth, beside one another, on the same sentences: figures, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mc_core.cli import Status
from mc_core.errors import DataError
from mc_text_code.data.sentences import Sentences
from mc_text_code.data.sts import StsTask
from mc_text_code.encoders import SentenceEncoder, new_transformer
from mc_text_code.evaluation.baselines import MeanWordVectors, bm25_scores, tfidf_encoder
from mc_text_code.evaluation.groups import group_agreement, group_agreement_by_scores
from mc_text_code.evaluation.length_bias import evaluate_length_bias
from mc_text_code.evaluation.retrieval import evaluate_retrieval, half_queries, retrieval_by_scores
from mc_text_code.evaluation.spread import sentence_spread
from mc_text_code.evaluation.sts import StsResult, evaluate_sts
from mc_text_code.evaluation.vectors import Encode

TRAINED, UNTRAINED, TFIDF, WORDS, BM25 = "trained", "untrained", "tf_idf", "mean_word_vectors", "bm25"
STS, GROUP, HALVES, LEAK = "sts_spearman", "same_group_top1", "half_sentence_mrr", "length_leak"
FEWEST = 8
"""Sentences, below which nothing is measured on them."""


@dataclass
class Measured:
    """Figures by encoder.

    Attributes:
        rows: encoder → figure → value.
        sts: encoder → its STS result, where pairs were given.
        more: whatever else belongs into the JSON.
    """

    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    sts: dict[str, StsResult] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def headline(self) -> str:
        """The figure that stands for the run: scored pairs where there are any, else groups, else halves."""
        return self.figures()[0]

    def figures(self) -> list[str]:
        """Names of the figures that some encoder has, in the order of the table."""
        return [name for name in _HEADINGS if any(name in row for row in self.rows.values())]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a value that is not defined is null."""
        rows = {
            name: {figure: value if math.isfinite(value) else None for figure, value in row.items()}
            for name, row in self.rows.items()
        }
        return {"figures": rows, "sts": {name: result.to_dict() for name, result in self.sts.items()}, **self.more}


def measure(
    encoders: Mapping[str, Encode],
    *,
    test: Sentences | None,
    fitted_on: Sentences | None,
    tasks: Mapping[str, StsTask] | None,
    split: str | None = None,
    baselines: bool = True,
    seed: int = 0,
) -> Measured:
    """Measure all encoders, and lexical baselines beside them.

    Args:
        encoders: name → encoder of texts; the trained one is called :data:`TRAINED`.
        test: sentences that none of them was trained on, for retrieval, groups and length leak; None: not measured.
        fitted_on: what TF-IDF and word vectors learn from; None: the sentences they are measured on.
        tasks: scored pairs; None: not measured.
        split: of the tasks.
        baselines: whether TF-IDF, word vectors and BM25 stand beside.
        seed: of what is drawn.

    Raises:
        DataError: nothing to measure on.
    """
    test = None if test is not None and len(test) < FEWEST else test
    if test is None and not tasks:
        raise DataError(
            f"nothing to measure on: give --corpus with at least {FEWEST} sentences, or --sts with scored pairs"
        )
    found = Measured()
    measured = dict(encoders)
    if baselines:
        own = test.texts if test is not None else _texts_of(tasks or {}, split)
        measured |= _counted(fitted_on.texts if fitted_on is not None else own, found)
    for name, encode in measured.items():
        with Status(f"measuring {name.replace('_', ' ')}"):
            found.rows[name] = _figures(name, encode, test, tasks, split, seed, found)
    if baselines and test is not None:
        found.rows[BM25] = _bm25(test)
    if test is not None:
        found.more["held_out"] = len(test)
    return found


def untrained_like(encoder: SentenceEncoder, seed: int) -> SentenceEncoder:
    """The same encoder with random weights."""
    torch.manual_seed(seed)
    return SentenceEncoder(encoder.config, encoder.tokenizer, transformer=new_transformer(encoder.architecture)).eval()


def _counted(texts: list[str], found: Measured) -> dict[str, Encode]:
    encoders: dict[str, Encode] = {}
    makers: dict[str, Callable[[list[str]], Encode]] = {TFIDF: tfidf_encoder, WORDS: MeanWordVectors}
    for name, make in makers.items():
        try:
            encoders[name] = make(texts)
        except DataError as error:  # too few words: the others are still measured
            found.more.setdefault("left_out", {})[name] = str(error)
    return encoders


def _texts_of(tasks: Mapping[str, StsTask], split: str | None) -> list[str]:
    return [text for task in tasks.values() for text in task.select(split)[1].sentences()]


def _figures(
    name: str,
    encode: Encode,
    test: Sentences | None,
    tasks: Mapping[str, StsTask] | None,
    split: str | None,
    seed: int,
    found: Measured,
) -> dict[str, float]:
    row: dict[str, float] = {}
    if tasks:
        result = evaluate_sts(encode, tasks, split=split)
        found.sts[name] = result
        row[STS] = result.average
        if name in (TRAINED, UNTRAINED):
            bias = evaluate_length_bias(encode, tasks, split=split, seed=seed)
            found.more.setdefault("length_bias", {})[name] = bias.columns()
            if "STS-B" in tasks:
                spread = sentence_spread(encode, tasks)
                found.more.setdefault("spread", {})[name] = spread.to_dict()
    if test is not None:
        if test.groups is not None and len(set(test.groups)) > 1:
            agreement = group_agreement(encode, test.texts, test.groups)
            row[GROUP] = agreement.top1
            found.more["chance_of_same_group"] = agreement.chance
        asked = half_queries(test.texts)
        if len(asked.queries):
            row[HALVES] = evaluate_retrieval(encode, asked).mrr
        row[LEAK] = evaluate_length_bias(encode, texts=test.texts, sources=test.groups, seed=seed).leak.value
    return row


def _bm25(test: Sentences) -> dict[str, float]:
    row: dict[str, float] = {}
    if test.groups is not None and len(set(test.groups)) > 1:
        row[GROUP] = group_agreement_by_scores(bm25_scores, test.texts, test.groups).top1
    asked = half_queries(test.texts)
    if len(asked.queries):
        row[HALVES] = retrieval_by_scores(bm25_scores, asked).mrr
    return row


_HEADINGS = {
    STS: "STS",
    GROUP: "same module nearest",
    HALVES: "half → whole, MRR",
    LEAK: "length leak",
}


def heading(figure: str) -> str:
    """A figure's name for people."""
    return _HEADINGS[figure]


def label(encoder: str) -> str:
    """An encoder's name for people."""
    return {TFIDF: "TF-IDF", BM25: "BM25"}.get(encoder, encoder.replace("_", " "))


def table(found: Measured) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for :func:`mc_core.cli.print_table`."""
    names = found.figures()
    rows = [[label(encoder), *(_cell(name, row.get(name)) for name in names)] for encoder, row in found.rows.items()]
    return ["", *map(heading, names)], rows


def sts_table(found: Measured) -> tuple[list[str], list[list[str]]]:
    """A column for each task."""
    columns = next(iter(found.sts.values())).columns()
    rows = [
        [label(name), *(_cell(STS, value) for value in result.columns().values())] for name, result in found.sts.items()
    ]
    return ["", *columns], rows


def _cell(name: str, value: float | None) -> str:
    if value is None or not np.isfinite(value):
        return "–"
    return f"{value:.1f}" if name == STS else f"{value:.3f}"
