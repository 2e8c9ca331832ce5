"""Checkpoints of a run: one safetensors file each, written under a temporary name, synced and renamed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mc_core.errors import CheckpointError
from mc_core.files import load_state, save_state

FORMAT = 1
_log = logging.getLogger("mc_core")

# What may differ between the runs before and after a resume: where and how the work is done, not what is computed.
_FREE = {
    "fit.accumulation",
    "fit.strategy",
    "fit.device",
    "fit.compile",
    "fit.deterministic",
    "fit.workers",
    "fit.max_bad",
    "fit.log_every",
    "fit.checkpoint_every",
    "fit.checkpoint_minutes",
    "fit.keep_checkpoints",
    "fit.evaluate_every",
    "fit.health_every",
    "fit.stop_on_collapse",
    "data.location",
}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names.

    >>> flatten({"fit": {"lr": 0.1}, "seed": 0})
    {'fit.lr': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{dotted}.")
        else:
            flat[dotted] = list(value) if isinstance(value, tuple) else value
    return flat


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The fields in which two fingerprints differ, as ``name: saved → wanted``, leaving out what may differ."""
    old, new = flatten(saved), flatten(wanted)
    names = [name for name in sorted(old.keys() | new.keys()) if name not in _FREE]
    return [
        f"{n}: {old.get(n, 'absent')!r} → {new.get(n, 'absent')!r}" for n in names if old.get(n, ...) != new.get(n, ...)
    ]


class CheckpointFolder:
    """The checkpoints of one run, by step.

    Args:
        folder: ``run_dir/checkpoints``; made when the first checkpoint is written.
        keep: how many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def paths(self) -> list[Path]:
        """Existing checkpoints, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, then remove the oldest beyond ``keep``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09d}.safetensors"
        save_state({"format": FORMAT, "step": step, **state}, path)
        for old in self.paths()[self.keep :]:
            old.unlink(missing_ok=True)
        return path

    def load_newest(self) -> dict[str, Any] | None:
        """The newest checkpoint that can be read, or None when there is none.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        problems = []
        for path in self.paths():
            try:
                state = load_state(path)
            except CheckpointError as error:
                _log.warning("%s; trying the one before", error)
                problems.append(str(error))
                continue
            if state.get("format") != FORMAT:
                raise CheckpointError(f"{path}: checkpoint format {state.get('format')}, this version reads {FORMAT}")
            return state
        if problems:
            raise CheckpointError(
                f"no readable checkpoint in {self.folder}: {problems[0]}; remove the folder to start anew"
            )
        return None
