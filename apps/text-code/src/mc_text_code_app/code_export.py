"""``mc-text-code code export``: an encoder for queries in int8, or a static table, from a model of code."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_text_code.codesearch.onnx_queries import FOLDER, export_queries
from mc_text_code.codesearch.static import distil_encoder, is_static_folder
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.fingerprint import model_fingerprint
from mc_text_code_app.code_eval import held_out_pairs
from mc_text_code_app.folders import model_folder
from mc_text_code_app.opening import open_encoder

_TRIED = 200


def run_export(model: Path, *, format: Literal["onnx-int8", "static"], out: Path | None, as_json: bool) -> Path:
    """Export, and say what was written and how near it is."""
    if is_static_folder(model):
        raise ConfigError(f"{model} is a static table already, which is as fast as it gets")
    encoder = open_encoder(model, "cpu")
    if not isinstance(encoder, SentenceEncoder):
        raise ConfigError(f"{model} is made of more than a transformer and its pooling, which cannot be exported here")
    place = model_folder(model)
    beside = model / "static" if place != model else model.with_name(f"{model.name}-static")
    target = out or (place / FOLDER if format == "onnx-int8" else beside)
    fields: dict[str, Any] = {"format": format, "out": str(target)}
    queries = [pair.query for pair in held_out_pairs(model)]
    if format == "onnx-int8":
        with Status("exporting and comparing with PyTorch"):
            report = export_queries(
                encoder,
                target,
                model=model_fingerprint(place),
                length=min(64, encoder.positions),
                texts=queries[:_TRIED],
            )
        fields |= asdict(report)
        lines = [
            f"takes    token ids and mask, (queries, {report.length}) int64; longer queries are cut",
            f"agrees   with PyTorch to {report.float32_difference:.1e} before int8; then the cosine is",
            f"         {report.mean_cosine:.4f} on average, {report.lowest_cosine:.4f} at the least, over {report.texts:,} queries",
            f"size     {report.megabytes:.1f} MB",
            "used     by code search --model and code watch --model"
            if out is None
            else f"used     when it is in {place / FOLDER}",
        ]
    else:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(f"{target} exists; name another with --out")
        with Status("distilling"):
            assert encoder.tokenizer is not None
            table = distil_encoder(encoder, encoder.tokenizer, corpus=queries, name=str(model))
            table.save(target)
        fields |= {"tokens": len(table.table), "dim": table.dim}
        lines = [
            f"holds    {len(table.table):,} tokens, {table.dim} dimensions",
            f"used     code search --model {target}",
        ]
    if as_json:
        print_json(fields)
    else:
        sys.stdout.write("\n".join([str(target), *lines]) + "\n")
    return target
