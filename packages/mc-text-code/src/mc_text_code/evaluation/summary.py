"""Everything that is measured of a sentence encoder, each sentence encoded once, with one row of figures for tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import sparse

from mc_core.errors import DataError
from mc_text_code.data.sts import StsTask
from mc_text_code.evaluation.length_bias import LengthBias, evaluate_length_bias
from mc_text_code.evaluation.retrieval import Queries, Retrieval, evaluate_retrieval
from mc_text_code.evaluation.spread import Spread, sentence_spread
from mc_text_code.evaluation.sts import StsResult, evaluate_sts
from mc_text_code.evaluation.vectors import CachedEncoder, Encode


@dataclass(frozen=True)
class SentenceReport:
    """What :func:`evaluate_sentences` returns; None or empty where there was nothing to measure on.

    Attributes:
        sts: rank correlations.
        length_bias: the four statistics of length.
        spread: alignment and uniformity on STS-B.
        retrieval: by the name of the test.
    """

    sts: StsResult | None = None
    length_bias: LengthBias | None = None
    spread: Spread | None = None
    retrieval: dict[str, Retrieval] = field(default_factory=dict)

    def columns(self) -> dict[str, float]:
        """Column → value, for tables and for :func:`mc_core.seeds.over_seeds`."""
        found: dict[str, float] = {}
        for part in (self.sts, self.length_bias):
            if part is not None:
                found |= part.columns()
        if self.spread is not None:
            found |= {"alignment": self.spread.alignment, "uniformity": self.spread.uniformity}
        return found | {f"{name} MRR": result.mrr for name, result in self.retrieval.items()}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            name: part.to_dict()
            for name in ("sts", "length_bias", "spread")
            if (part := getattr(self, name)) is not None
        }
        if self.retrieval:
            found["retrieval"] = {name: result.to_dict() for name, result in self.retrieval.items()}
        return found


def evaluate_sentences(
    encode: Encode,
    *,
    tasks: Mapping[str, StsTask] | None = None,
    texts: Sequence[str] | None = None,
    sources: Sequence[Any] | None = None,
    queries: Mapping[str, Queries] | None = None,
    split: str | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> SentenceReport:
    """All that the given data allows.

    Args:
        encode: sentences → vectors.
        tasks: pairs with gold scores, from :func:`mc_text_code.data.sts.open_sts`.
        texts: held-out sentences without labels, for the length leak; default: those of the tasks.
        sources: where each of ``texts`` comes from.
        queries: retrieval tests by name, from :mod:`mc_text_code.evaluation.retrieval`.
        split: of the tasks.
        resamples: for intervals around STS scores; 0: none.
        seed: of everything drawn; the same for all encoders that are compared.

    Raises:
        DataError: neither tasks nor texts nor queries, or what a part raises.

    >>> report = evaluate_sentences(
    ...     lambda texts: [[float(len(t)), 1.0] for t in texts], texts=["a", "b c", "d e f", "g h i j"]
    ... )
    >>> list(report.columns())
    ['length leak']
    """
    if not tasks and texts is None and not queries:
        raise DataError("nothing to evaluate on: give STS tasks, sentences or queries")
    encoder = CachedEncoder(encode)
    sts = evaluate_sts(encoder, tasks, split=split, resamples=resamples, seed=seed) if tasks else None
    bias = None
    if tasks or texts is not None:
        bias = evaluate_length_bias(encoder, tasks or None, texts=texts, sources=sources, split=split, seed=seed)
    spread = None
    if tasks and "STS-B" in tasks and (split in (None, "all") or split in tasks["STS-B"].splits):
        dense = not sparse.issparse(encoder(tasks["STS-B"].select(split)[1].sentence1[:1]))
        spread = sentence_spread(encoder, tasks, split=split) if dense else None
    found = {name: evaluate_retrieval(encoder, asked) for name, asked in (queries or {}).items()}
    return SentenceReport(sts, bias, spread, found)
