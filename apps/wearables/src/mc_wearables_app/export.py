"""``mc-wearables export``: the encoder for a device, or for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from mc_core.cli import Status, print_json
from mc_core.errors import ConfigError
from mc_core.export import save_model
from mc_wearables.deployment import export_for_device
from mc_wearables_app.runs import open_run


def run_export(
    run: Path, store: Path | None, *, format: Literal["onnx", "int8", "hub"], out: Path | None, as_json: bool
) -> Path:
    """Export, and say what was written."""
    opened = open_run(run)
    config = opened.encoder.config
    names = {"onnx": "encoder.onnx", "int8": "encoder-int8.onnx", "hub": "hub"}
    target = out or run / "export" / names[format]
    fields: dict[str, Any] = {"format": format, "out": str(target)}
    if format == "hub":
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise ConfigError(
                f"{target} exists and {'is not empty' if target.is_dir() else 'is a file'}; name another with --out"
            )
        card = {
            "method": opened.recipe.system if opened.recipe else "unknown",
            "signal": opened.kind,
            "steps": opened.step,
        }
        save_model(opened.encoder, target, card={name: value for name, value in card.items() if value is not None})
        lines = [f"push it with: huggingface-cli upload NAME {target}"]
    else:
        with Status("opening the segments of the run"):
            segments = opened.data(store).train
        with Status("exporting and comparing with PyTorch"):
            report = export_for_device(opened.encoder, target, segments, format="fp32" if format == "onnx" else "int8")
        fields |= report.to_dict()
        lines = [
            f"takes    (batch, {config.channels}, {config.samples}) at {config.sampling_rate:g} Hz, filtered, in any unit",
            f"gives    (batch, {opened.encoder.num_features})",
            f"size     {report.megabytes:.2f} MB",
            f"agrees   largest difference {report.difference:.1e} of the spread of embeddings, median cosine {report.cosine:.4f}",
            f"time     {report.ms:.2f} ms a segment on {report.threads} threads of this CPU, PyTorch {report.ms_torch:.2f} ms",
            f"rate     {report.segments_per_second:,.0f} segments/s in batches of 32",
        ]
    if as_json:
        print_json(fields)
    else:
        print("\n".join([str(target), *lines]))
    return target
