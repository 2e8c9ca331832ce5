"""``mc-vision inspect``: what a run folder, a saved encoder or a data set holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mc_core.cli import print_json, print_table
from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import DataError
from mc_core.files import load_state, read_json, read_jsonl
from mc_vision.data import inspect_source, open_source
from mc_vision.recipe import resolve_recipe


def run_inspect(target: str, *, as_json: bool) -> dict[str, Any]:
    """Look, and print."""
    folder = Path(target)
    if (folder / "recipe.yaml").exists():
        found = _run(folder)
    elif (folder / "config.json").exists() and (folder / "model.safetensors").exists():
        found = _encoder(folder)
    else:
        source = open_source(target, channels=None)
        found = {"data": target, **source.describe(), **inspect_source(source)}
        if source.classes:
            found["classes"] = len(source.classes)
    if as_json:
        print_json(found)
    else:
        print_table(target, ["what", "value"], [(name, _shown(value)) for name, value in found.items()])
    return found


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_shown(item)}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value)
    return str(value)


def _encoder(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    return {
        "encoder": str(folder),
        **{k: v for k, v in config.items() if not isinstance(v, dict)},
        **config.get("config", {}),
    }


def _run(folder: Path) -> dict[str, Any]:
    recipe = resolve_recipe(folder / "recipe.yaml")
    checkpoints = CheckpointFolder(folder / "checkpoints").paths()
    found: dict[str, Any] = {
        "run": str(folder),
        "system": recipe.system,
        "backbone": recipe.method.encoder.backbone,
        "finished": (folder / "model").exists(),
        "checkpoints": [path.name for path in checkpoints] or "none",
    }
    if checkpoints:
        state = load_state(checkpoints[0])
        tensors = {name: tensor for name, tensor in state["method"].items() if hasattr(tensor, "numel")}
        found["step"] = int(state["step"])
        found["samples_in_data"] = state["fingerprint"]["data"].get("samples")
        found["training_minutes"] = state["seconds"] / 60
        found["state_values"] = sum(tensor.numel() for tensor in tensors.values())
        found["unreadable_samples"] = len(state["bad"])
        for name, tensor in tensors.items():
            if name.endswith("cursor"):
                found["queue"] = f"{int(tensor[1])} keys, next write at {int(tensor[0])}"
    metrics = folder / "metrics.jsonl"
    if metrics.exists():
        lines = read_jsonl(metrics)
        last: dict[str, Any] = {}
        for line in lines:
            last |= {
                name: value for name, value in line.items() if isinstance(value, (int, float)) and math.isfinite(value)
            }
        found["last_metrics"] = last
    if (folder / "result.json").exists():
        found["result"] = read_json(folder / "result.json")
    if len(found) == 1:
        raise DataError(f"{folder} is empty")
    return found
