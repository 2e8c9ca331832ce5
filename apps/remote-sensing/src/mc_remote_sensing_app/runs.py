"""Opening what ``train`` left: its model, its recipe, its scenes and their blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mc_core.errors import CheckpointError, DataError
from mc_core.files import read_json
from mc_core.runs import need_run_folder
from mc_remote_sensing.model import SegmentationModel, load_segmentation_model
from mc_remote_sensing.recipe import Recipe, resolve_recipe

COMMAND = "mc-remote-sensing train"
DATA_FILE = "data.json"


@dataclass(frozen=True)
class OpenedRun:
    """A model and what it was trained on.

    Attributes:
        folder: the run, or the saved model.
        model: in eval mode.
        recipe: of the run; None for a bare model folder.
        data: what ``train`` wrote of its data; empty for a bare model folder.
    """

    folder: Path
    model: SegmentationModel
    recipe: Recipe[Any] | None
    data: Mapping[str, Any]


def open_run(folder: Path, device: str = "cpu") -> OpenedRun:
    """Open a finished run folder or a saved model.

    Raises:
        DataError: no such folder, or nothing of ours in it.
        CheckpointError: what is there cannot be read, or the run is not finished.
    """
    need_run_folder(folder, command=COMMAND)
    recipe_file = folder / "recipe.yaml"
    recipe = resolve_recipe(recipe_file) if recipe_file.exists() else None
    if recipe is None and not (folder / "config.json").exists():
        raise DataError(f"{folder} is neither a run folder (no recipe.yaml) nor a saved model (no config.json)")
    if recipe is not None and not (folder / "model" / "config.json").exists():
        raise CheckpointError(f"{folder} holds no model yet: run `{COMMAND}` again with the same options to finish it")
    model = load_segmentation_model(folder, device=device)
    data = read_json(folder / DATA_FILE) if (folder / DATA_FILE).exists() else {}
    return OpenedRun(folder, model.eval(), recipe, data)
