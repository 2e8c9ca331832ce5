"""``mc-text-code sentences embed``: embeddings of sentences, to Parquet or npz."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from mc_core.cli import Clock, Status, print_json
from mc_core.embeddings import check_format, write_embeddings
from mc_core.errors import ConfigError
from mc_text_code_app.opening import open_corpus, open_encoder


def run_embed(
    run: Path,
    corpus: Sequence[str],
    *,
    column: str | None,
    out: Path,
    normalize: bool,
    batch_size: int,
    device: str,
    as_json: bool,
) -> Path:
    """Embed, and say where the result is. Every sentence has its row, equal ones too."""
    check_format(out)
    if batch_size < 1:
        raise ConfigError(f"--batch-size {batch_size}: take at least one sentence at a time")
    clock = Clock()
    sentences = open_corpus(corpus, column, deduplicate=False)
    encoder = open_encoder(run, device)
    with Status(f"embedding {len(sentences):,} sentences"):
        features = encoder.encode(sentences.texts, batch_size=batch_size, normalize=normalize)
    write_embeddings(out, features, {"sentence": sentences.texts})
    seconds = clock.seconds()
    fields = {"out": str(out), "sentences": len(features), "dim": features.shape[1], "seconds": round(seconds, 1)}
    if as_json:
        print_json(fields)
    else:
        sys.stdout.write(f"{len(features):,} sentences × {features.shape[1]} numbers → {out}\n")
    return out
