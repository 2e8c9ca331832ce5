"""Opening what a run left: the model of one that is finished, or the newest checkpoint of one that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import CheckpointError, ConfigError, DataError
from mc_core.export import load_model
from mc_core.recipes import MethodTable


def open_model(folder: Path, recipe: Any | None, methods: MethodTable, *, command: str) -> tuple[nn.Module, int | None]:
    """The encoder of a run folder, or a saved model, and the optimizer steps behind it where they are known.

    Args:
        folder: a run (with ``model/``, or checkpoints only), or what :func:`mc_core.export.save_model` wrote.
        recipe: of the run, with ``system`` and ``method``; None for a saved model.
        methods: of the package; a method says by its attribute ``encoder`` what it keeps.
        command: that makes runs, for messages.

    Raises:
        DataError: nothing of ours in the folder.
        CheckpointError: what is there cannot be read.
    """
    if recipe is None:
        if not (folder / "config.json").exists():
            raise DataError(f"{folder} is neither a run folder (no recipe.yaml) nor a saved encoder (no config.json)")
        return load_model(folder), None
    if (folder / "config.json").exists():  # an encoder that was written with the recipe beside it
        return load_model(folder), None
    checkpoints = CheckpointFolder(folder / "checkpoints")
    if (folder / "model" / "config.json").exists():
        paths = checkpoints.paths()
        return load_model(folder / "model"), int(paths[0].stem.removeprefix("step-")) if paths else None
    state = checkpoints.load_newest()
    if state is None:
        raise CheckpointError(f"{folder} holds no model and no checkpoint yet: let `{command}` go on for a while")
    method = methods.method_class(recipe.system)(_without_pretrained(recipe.method))
    method.load_state_dict(state["method"])
    return method.encoder, int(state["step"])


def _without_pretrained(config: Any) -> Any:
    """The settings of a method whose weights come from a checkpoint, whatever they began as."""
    encoder: Any = getattr(config, "encoder", None)
    if not getattr(encoder, "pretrained", False):
        return config
    return config.model_copy(update={"encoder": encoder.model_copy(update={"pretrained": False})})


def need_run_folder(folder: Path, *, command: str) -> None:
    """Raise DataError when there is no such folder."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such run folder; `{command}` makes them, under runs/ unless --out says otherwise"
        )


def folder_name(text: str) -> str:
    """``text`` with what a folder's name should not hold made a dash, such as a recipe or data set in the name of a run.

    >>> folder_name("hf:cifar 10"), folder_name("...")
    ('hf-cifar-10', 'run')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"


def pick_device(name: str) -> torch.device:
    """``auto``: a GPU if there is one.

    Raises:
        ConfigError: a GPU is asked for, and there is none that torch can use.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device '{name}', but torch sees no GPU here; take cpu")
    return torch.device(name)
