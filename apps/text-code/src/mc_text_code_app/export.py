"""``mc-text-code sentences export``: the encoder for sentence-transformers, or as ONNX."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_core.export import export_onnx
from mc_text_code.encoders import SentenceEncoder
from mc_text_code.saving import save_sentence_transformer
from mc_text_code_app.opening import open_encoder

_EXAMPLE = ["A sentence of some words.", "Another one, a little longer than the first of the two."]


def run_export(run: Path, *, format: Literal["sentence-transformers", "onnx"], out: Path | None, as_json: bool) -> Path:
    """Export, and say what was written."""
    encoder = open_encoder(run, "cpu")
    if not isinstance(encoder, SentenceEncoder):
        raise ConfigError(
            f"{run} is made of more than a transformer and its pooling: export it with sentence-transformers itself"
        )
    target = out or run / "export" / ("sentence-transformers" if format == "sentence-transformers" else "encoder.onnx")
    fields: dict[str, Any] = {"format": format, "out": str(target)}
    if format == "sentence-transformers":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(
                f"{target} exists and {'is not empty' if target.is_dir() else 'is a file'}; name another with --out"
            )
        with Status("writing"):
            save_sentence_transformer(encoder, target, card={"run": run.name})
        lines = [f'load it with: SentenceTransformer("{target}")']
    else:
        with Status("exporting and comparing with PyTorch"):
            report = export_onnx(_WithMask(encoder), _example(encoder), target)
            assert encoder.tokenizer is not None
            encoder.tokenizer.backend_tokenizer.save(str(target.with_name("tokenizer.json")))
        fields |= {"difference": report.max_abs_difference, "opset": report.opset}
        lines = [
            f"takes    input_ids, attention_mask: (batch, {_LENGTH}) int64, padded with {encoder.pad_id}",
            f"gives    (batch, {encoder.num_features}), not normalised",
            f"agrees   largest difference from PyTorch {report.max_abs_difference:.1e}",
            f"tokens   {target.with_name('tokenizer.json')}",
        ]
    if as_json:
        print_json(fields)
    else:
        sys.stdout.write("\n".join([str(target), *lines]) + "\n")
    return target


_LENGTH = 64


class _WithMask(nn.Module):
    """The encoder without its grouping by length, which depends on the data."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder._pooled(input_ids, attention_mask)


def _example(encoder: SentenceEncoder) -> tuple[Tensor, Tensor]:
    assert encoder.tokenizer is not None
    length = min(_LENGTH, encoder.positions)
    rows = encoder.tokenizer(_EXAMPLE, padding="max_length", max_length=length, truncation=True)
    return torch.tensor(rows["input_ids"]), torch.tensor(rows["attention_mask"])
