"""``mc-text-code sentences inspect``: what a run or a corpus holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import print_json, print_table
from mc_core.files import read_json, read_jsonl
from mc_text_code.evaluation.length_bias import word_counts
from mc_text_code_app.opening import open_corpus, open_encoder, read_held_out


def run_inspect(target: str, *, column: str | None, as_json: bool) -> dict[str, Any]:
    """Print it."""
    fields = _run(Path(target)) if Path(target).is_dir() else _corpus(target, column)
    if as_json:
        print_json(fields)
        return fields
    rows = []
    for name, value in fields.items():
        if isinstance(value, dict):
            rows += [
                (f"{name.replace('_', ' ')}: {key.replace('_', ' ')}", _text(found)) for key, found in value.items()
            ]
        else:
            rows.append((name.replace("_", " "), _text(value)))
    print_table(target, ["", ""], rows)
    return fields


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _corpus(target: str, column: str | None) -> dict[str, Any]:
    sentences = open_corpus([target], column, deduplicate=False)
    words = word_counts(sentences.texts)
    quantiles = np.quantile(words, [0.05, 0.5, 0.95])
    return {
        "sentences": len(sentences),
        "different": len(sentences.deduplicated()),
        "words": dict(zip(("5_%", "median", "95_%"), map(int, quantiles), strict=True)) | {"longest": int(words.max())},
        "left_out": {name: count for name, count in sentences.left_out.items() if name != "lines"},
    }


def _run(folder: Path) -> dict[str, Any]:
    encoder = open_encoder(folder, "cpu")
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    metrics = read_jsonl(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
    held_out = read_held_out(folder)
    return {
        "architecture": type(getattr(encoder, "transformer", encoder)).__name__,
        "embedding": encoder.num_features,
        "longest_input": encoder.positions,
        "vocabulary": len(encoder.tokenizer) if encoder.tokenizer is not None else 0,
        "steps": int(metrics[-1]["step"]) if metrics else 0,
        "loss": float(metrics[-1].get("loss", float("nan"))) if metrics else float("nan"),
        "held_out": len(held_out) if held_out is not None else 0,
        "metric": result.get("metric", "not measured"),
        "trained": result.get("trained", float("nan")),
        "baselines": result.get("baselines", {}),
    }
