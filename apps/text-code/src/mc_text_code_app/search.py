"""``mc-text-code sentences search``: the sentences of a corpus that are nearest to a query."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from mc_core.cli import Clock, Status, print_json
from mc_core.errors import ConfigError
from mc_text_code.data.sentences import Sentences
from mc_text_code.fingerprint import model_fingerprint
from mc_text_code.search import Hits, SentenceIndex, search_lexical
from mc_text_code_app.folders import model_folder
from mc_text_code_app.opening import AnyEncoder, chosen_run, corpus_name, open_corpus, open_encoder

NOTHING_FOUND = 1


def run_search(
    corpus: str,
    query: str,
    *,
    run: Path | None,
    mode: Literal["dense", "lexical"] | None,
    column: str | None,
    k: int,
    index: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Search and print; exit code 1 when nothing is found."""
    if not query.strip():
        raise ConfigError("the query is empty: say what to look for")
    if k < 1:
        raise ConfigError(f"--top {k}: ask for at least one sentence")
    if mode == "lexical" and (run is not None or index is not None):
        raise ConfigError("--mode lexical needs neither --run nor --index: leave them out")
    clock = Clock()
    sentences = open_corpus([corpus], column)
    chosen = None if mode == "lexical" else chosen_run(run)
    if chosen is None and mode == "dense":
        raise ConfigError("--mode dense needs an encoder: name one with --run, or train one (sentences pretrain)")
    if chosen is None:
        hits = search_lexical(sentences.texts, [query], k)
        hits = _with_a_shared_word(hits)
    else:
        encoder = open_encoder(chosen, device)
        found = opened_index(sentences, encoder, chosen, index or chosen / "index" / corpus_name([corpus]))
        hits = found.search(encoder.encode([query]), k)
    rows = [
        (float(score), int(row), sentences[int(row)]) for row, score in zip(hits.rows[0], hits.scores[0], strict=True)
    ]
    if as_json:
        results = [{"score": score, "row": row, "sentence": text} for score, row, text in rows]
        fields = {"query": query, "mode": "lexical" if chosen is None else "dense", "results": results}
        print_json({**fields, "encoder": str(chosen) if chosen else None, "seconds": round(clock.seconds(), 2)})
    else:
        sys.stdout.write("".join(f"{score:6.3f}  {text}\n" for score, _, text in rows))
    if not rows:
        sys.exit(NOTHING_FOUND)


def _with_a_shared_word(hits: Hits) -> Hits:
    there = hits.scores[0] > 0
    return Hits(hits.rows[:, there], hits.scores[:, there])


def opened_index(sentences: Sentences, encoder: AnyEncoder, run: Path, folder: Path) -> SentenceIndex:
    """The corpus's vectors in ``folder``, made or brought up to date."""
    with Status(f"indexing {len(sentences):,} sentences") as status:

        def told(share: float) -> None:
            status.say(f"indexing {len(sentences):,} sentences, {share:.0%}")

        return SentenceIndex.open(
            folder, sentences.texts, encoder.encode, model=model_fingerprint(model_folder(run)), progress=told
        )


def best(texts: Sequence[str], scores: np.ndarray, rows: np.ndarray) -> list[list[str]]:
    """Rows of a table: score and sentence."""
    return [[f"{score:.3f}", texts[int(row)]] for row, score in zip(rows, scores, strict=True)]
