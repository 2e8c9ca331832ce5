"""``mc-wearables inspect``: what a store or a run holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mc_core.cli import print_json, print_table
from mc_core.files import read_json
from mc_wearables.data.segmenter import REASONS
from mc_wearables.data.store import SegmentStore
from mc_wearables_app.runs import open_run


def run_inspect(target: Path, *, as_json: bool) -> dict[str, Any]:
    """Print it."""
    fields = _store(target) if (target / "manifest.json").exists() else _run(target)
    if as_json:
        print_json(fields)
        return fields
    plain = {name: value for name, value in fields.items() if not isinstance(value, dict)}
    rows = [(name.replace("_", " "), _text(value)) for name, value in plain.items()]
    nested = [(name, found) for name, found in fields.items() if isinstance(found, dict)]
    rows += [(f"{name}: {key}", _text(value)) for name, found in nested for key, value in found.items()]
    print_table(str(target), ["", ""], rows)
    return fields


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _store(path: Path) -> dict[str, Any]:
    store = SegmentStore.open(path)
    segments = store.segments()
    each = np.bincount(segments.participant, minlength=1)
    usable = store.usable() if len(store) else np.zeros(0, dtype=bool)
    return {
        "signal": segments.kind,
        "sampling_rate": segments.sampling_rate,
        "seconds": segments.duration,
        "channels": segments.channels,
        "segments": len(store),
        "hours": len(store) * segments.duration / 3600,
        "participants": len(store.participant_keys),
        "fewest_segments_of_a_participant": int(each.min()) if len(each) else 0,
        "most_segments_of_a_participant": int(each.max()) if len(each) else 0,
        "devices": ", ".join(segments.devices),
        "median_quality": float(np.nanmedian(segments.quality)) if len(store) else float("nan"),
        "share_that_passes_the_quality_thresholds": float(usable.mean()) if len(usable) else float("nan"),
        "labels": {
            name: f"known for {int((~np.isnan(column)).sum()):,} segments" for name, column in segments.labels.items()
        },
        "rejected": {REASONS[reason]: count for reason, count in store.rejected_counts().items()},
    }


def _run(path: Path) -> dict[str, Any]:
    opened = open_run(path)
    config = opened.encoder.config
    result = read_json(path / "result.json") if (path / "result.json").exists() else {}
    return {
        "signal": opened.kind or "unknown",
        "trained_on": opened.trained_on or "unknown",
        "system": opened.recipe.system if opened.recipe else "unknown",
        "steps": opened.step or 0,
        "architecture": config.architecture,
        "parameters": sum(p.numel() for p in opened.encoder.parameters()),
        "embedding": opened.encoder.num_features,
        "takes": f"{config.channels} × {config.samples} samples at {config.sampling_rate:g} Hz ({config.seconds:g} s)",
        "metric": result.get("metric", "not measured"),
        "trained": result.get("trained", float("nan")),
        "baselines": result.get("baselines", {}),
    }
