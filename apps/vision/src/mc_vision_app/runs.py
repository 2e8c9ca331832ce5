"""Opening what ``pretrain`` left: the encoder of a run, finished or not, or a saved encoder folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mc_core.errors import CheckpointError, ConfigError
from mc_core.export import load_model
from mc_core.runs import need_run_folder, open_model
from mc_vision.data import ImageSource
from mc_vision.encoders import TimmEncoder
from mc_vision.methods import METHODS
from mc_vision.recipe import Recipe, resolve_recipe
from mc_vision.transforms import EvalDataset
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

COMMAND = "mc-vision pretrain"


@dataclass(frozen=True)
class OpenedRun:
    """An encoder and how its images are prepared.

    Attributes:
        folder: the run, or the saved encoder.
        encoder: in eval mode.
        recipe: of the run; None for a bare encoder folder.
        step: optimizer steps behind it, where known.
    """

    folder: Path
    encoder: TimmEncoder
    recipe: Recipe[Any] | None
    step: int | None

    def other_encoders(self, device: torch.device) -> dict[str, TimmEncoder]:
        """Further encoders that the run kept, by name (MMC: the student, where the teacher is the run's encoder)."""
        folders = sorted(self.folder.glob("model-*/config.json"))
        found = {path.parent.name.removeprefix("model-"): load_model(path.parent) for path in folders}
        return {n: e.eval().to(device) for n, e in found.items() if isinstance(e, TimmEncoder)}

    def trained_on(self) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
        """Side of the views it was trained on, and the mean and standard deviation they were normalised with."""
        if self.recipe is None:
            return self.encoder.config.image_size or 224, IMAGENET_MEAN, IMAGENET_STD
        view = self.recipe.views.views().views[0]
        return view.size, view.mean, view.std

    def eval_data(self, source: ImageSource, size: int | None = None) -> EvalDataset:
        """``source`` as this encoder is to see it."""
        trained, mean, std = self.trained_on()
        size = trained if size is None else size
        if size < 1:
            raise ConfigError(f"image size {size}; give a side of 1 pixel or more")
        ratio = 1.0 if size <= 64 else 256 / 224
        return EvalDataset(source, size, resize_ratio=ratio, mean=mean, std=std, channels=self.encoder.config.channels)


def open_run(folder: Path, device: torch.device | None = None) -> OpenedRun:
    """Open a run folder (its ``model/``, or the newest checkpoint of an unfinished run) or a saved encoder.

    Raises:
        DataError: no such folder, or nothing of ours in it.
        CheckpointError: what is there cannot be read.
    """
    need_run_folder(folder, command=COMMAND)
    # an encoder inside a run is shown pictures as the run showed them
    places = (folder, folder.parent) if folder.name.startswith("model") else (folder,)
    told = next((place / "recipe.yaml" for place in places if (place / "recipe.yaml").exists()), None)
    recipe = None if told is None else resolve_recipe(told)
    encoder, step = open_model(folder, recipe, METHODS, command=COMMAND)
    if not isinstance(encoder, TimmEncoder):
        raise CheckpointError(f"{folder} holds a {type(encoder).__name__}, not an image encoder of mc-vision")
    return OpenedRun(folder, encoder.eval().to(device or "cpu"), recipe, step)
