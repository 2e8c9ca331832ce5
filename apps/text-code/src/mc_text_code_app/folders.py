"""Where things are in the folder of a run. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def model_folder(run: Path) -> Path:
    """Where the encoder's own files are: of a run its ``model/``."""
    return run / "model" if (run / "model" / "modules.json").is_file() else run
