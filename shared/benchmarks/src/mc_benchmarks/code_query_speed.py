"""How long does a query of code search take when a transformer encodes it: in PyTorch, and in its int8 copy by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mc_benchmarks.code_search_speed import copied_library, queries_of, timed
from mc_benchmarks.contract import Report, Row, environment, median, spread
from mc_text_code.codesearch import CodeIndex
from mc_text_code.codesearch.onnx_queries import OnnxQueries, export_queries
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.encoders_config import EncoderConfig
from mc_text_code.tokenizers import train_tokenizer

BAR = 300.0
"""Milliseconds that a query with an encoder may take, in the median."""
SIZES = {
    "1 layer of 128": EncoderConfig(pooling="mean", layers=1, hidden_size=128, heads=4),
    "12 layers of 768": EncoderConfig(pooling="mean", layers=12, hidden_size=768, heads=12),
}
FORMS = {"PyTorch": False, "int8 by ONNX Runtime": True}
MEDIAN, SPREAD, HIGH, ENCODING = "ms (median)", "IQR", "ms (95 %)", "of it the encoder"
_VOCABULARY, _TEXTS = 16_000, 4000
_WARM = "a first one"


class StandIn:
    """Random vectors under the identity of an encoder: which numbers they are changes nothing of what a search takes.

    Args:
        identity: of the encoder.
        dim: numbers of its vectors.
    """

    def __init__(self, identity: str, dim: int) -> None:
        self.identity = identity
        self._dim = dim
        self._drawn = np.random.default_rng(0)

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32."""
        return self._drawn.standard_normal((len(texts), self._dim), dtype=np.float32)

    encode_code = encode_queries


class Queries:
    """A transformer with random weights, asked for queries alone."""

    def __init__(self, encoder: SentenceEncoder, identity: str) -> None:
        self.encoder = encoder
        self.identity = identity

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32."""
        return self.encoder.encode(texts)

    encode_code = encode_queries


def run_code_query_speed(*, queries: int = 100, sizes: Sequence[str] = (), processes: int = 0) -> Report:
    """Measure, save, show.

    Args:
        queries: asked of each size and form.
        sizes: some of :data:`SIZES`; default: all.
        processes: that parse; 0 for all.
    """
    rows = []
    with copied_library() as root, CodeIndex.open(root, folder=root.parent / "index", processes=processes) as index:
        index.refresh()
        asked = queries_of(index, queries)
        texts = [text for (text,) in index._store.rows_of("SELECT code FROM chunks ORDER BY id LIMIT ?", (_TEXTS,))]
        for name in sizes or SIZES:
            rows += _of_size(index, SIZES[name], name, texts, asked, root.parent / "onnx")
        status = index.status()
    slowest = max(float(row.values[MEDIAN]) for row in rows)  # type: ignore[arg-type]
    report = Report(
        benchmark="code_query_speed",
        command="uv run mc-benchmark code-query-speed",
        question=f"A query by words and meaning over {status.chunks:,} pieces of code, its encoder in memory",
        settings={"queries": queries, "vocabulary": _VOCABULARY, "vectors": index._store.config.vectors},
        environment=environment(),
        columns=[MEDIAN, SPREAD, HIGH, ENCODING],
        rows=rows,
        reading=f"Over {status.chunks:,} pieces of code. A query is the first line of some documentation. "
        f"Bar {BAR:g} ms in the median: {'reached' if slowest < BAR else 'not reached'}. Weights and the vectors of code are "
        "random: this is about time alone. The int8 copy always takes 64 tokens, PyTorch as many as the query has.",
    )
    report.save()
    report.show()
    return report


def _of_size(
    index: CodeIndex, config: EncoderConfig, name: str, texts: list[str], asked: list[str], folder: Path
) -> list[Row]:
    torch.manual_seed(0)
    encoder = SentenceEncoder(config, train_tokenizer(texts, _VOCABULARY, "bpe")).eval()
    identity = f"benchmark of {name}"
    index.encoder = StandIn(identity, encoder.num_features)
    index.embed()
    index.encoder = real = Queries(encoder, identity)
    export_queries(encoder, folder, model=identity)
    copy = OnnxQueries(folder)
    whole: dict[str, list[float]] = {form: [] for form in FORMS}
    alone: dict[str, list[float]] = {form: [] for form in FORMS}
    for query in (_WARM, *asked):  # in turns
        for form, small in FORMS.items():
            index.queries = copy if small else None
            index._queries.clear()
            whole[form].append(timed(partial(index.search, query, mode="hybrid", refresh=False)))
            alone[form].append(timed(partial((copy if small else real).encode_queries, [query])))
    return [
        Row(
            name=f"{name}, {form}",
            values={
                MEDIAN: median(whole[form][1:]),
                SPREAD: spread(whole[form][1:]),
                HIGH: float(np.quantile(whole[form][1:], 0.95)),
                ENCODING: median(alone[form][1:]),
            },
        )
        for form in FORMS
    ]
