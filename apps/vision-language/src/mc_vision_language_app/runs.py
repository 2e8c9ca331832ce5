"""Opening what ``mc-vision-language pretrain`` left, and the pairs that a verb works on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import CheckpointError, DataError
from mc_core.files import read_json
from mc_core.listing import walk
from mc_core.remote import is_url
from mc_core.runs import need_run_folder
from mc_vision_language.data import FileImages, ImageSet, Pairs, TarImages, open_pairs
from mc_vision_language.data.options import CaptionOptions, SplitOptions
from mc_vision_language.growing.sample import GROWING_SAMPLE, growing_pairs
from mc_vision_language.methods import METHODS
from mc_vision_language.model import VisionLanguageModel, load_vision_language_model
from mc_vision_language.recipe import Recipe, resolve_recipe, system_of
from mc_vision_language.sample import SAMPLE, sample_pairs
from mc_vision_language.staged.sample import STAGED_SAMPLE, staged_sample
from mc_vision_language.tasks.nlvr2 import AssignmentModel
from mc_vision_language.tasks.training import load_task_model
from mc_vision_language.tokenizers import load_tokenizer
from mc_vision_language.training import PAIRS_FILE, TOKENIZER_FOLDER, build_method, untrained_model
from mc_vision_language_app.pair_options import PairOptions

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
COMMAND = "mc-vision-language pretrain"
SAMPLES = {SAMPLE: sample_pairs, GROWING_SAMPLE: growing_pairs, STAGED_SAMPLE: lambda: staged_sample().pairs}
"""By the name that a run remembers."""
_TASK_OF_CLASS = {
    "mc_vision_language.tasks.vqa:VQAModel": "vqa",
    "mc_vision_language.tasks.nlvr2:StatementModel": "nlvr2",
    "mc_vision_language.tasks.entailment:EntailmentModel": "entailment",
}
_ASSIGNMENT = "mc_vision_language.tasks.nlvr2:AssignmentModel"
_log = logging.getLogger("mc_core")


@dataclass(frozen=True)
class OpenedRun:
    """A run folder, or a saved model.

    Attributes:
        folder: of the run or the model.
        model: on the device, in evaluation mode.
        recipe: of the run; None for a saved model.
        device: where to compute.
    """

    folder: Path
    model: VisionLanguageModel
    recipe: Recipe[Any] | None
    device: torch.device

    def untrained(self) -> VisionLanguageModel | None:
        """What the run started from; None for a saved model, which does not say, and for a run of several stages."""
        if self.recipe is None or self.recipe.system == "astrea":
            return None
        return untrained_model(self.recipe, self.model.tokenizer).to(self.device)

    def pairs(self, source: str | None, options: PairOptions, *, part: str | None = None) -> tuple[Pairs, str]:
        """The pairs to measure on, and what to call them.

        Args:
            source: of the user; None for the sample, where the run was trained on it.
            options: of the user.
            part: of the split. Default: test for the data that the run was trained on, all for others.

        Raises:
            DataError: no source, and the run was not trained on the sample; or no pair in that part.
        """
        known = read_json(self.folder / PAIRS_FILE) if (self.folder / PAIRS_FILE).is_file() else {}
        if source is None:
            name, own = known.get("source", SAMPLE), True
            if name not in SAMPLES or self.recipe is None:
                raise DataError(f"{self.folder} was not trained on the {SAMPLE}: say which pairs to measure on")
            whole = SAMPLES[name]()
        else:
            split = self.recipe.split if self.recipe is not None else SplitOptions()
            whole, name = opened(source, options, self.model.config.captions, split), Path(source).name
            own = known.get("source") == source_name(source)
        part = part or ("test" if own else "all")
        if part == "all":
            return whole, name
        return whole.part(part), f"{name}, {part} split"


def source_name(source: str) -> str:
    """What a run remembers of a source, to know it again."""
    return source if "://" in source else Path(source).name


def open_run(folder: Path, device: torch.device) -> OpenedRun:
    """A run folder with a model or a checkpoint, or a folder that ``VisionLanguageModel.save`` wrote.

    Raises:
        DataError: no such folder. CheckpointError: nothing in it, or damaged.
    """
    need_run_folder(folder, command=COMMAND)
    task = task_of_run(folder)
    recipe = resolve_recipe(folder) if task is None and (folder / "recipe.yaml").is_file() else None
    if recipe is None or (folder / "model" / "config.json").is_file():
        return OpenedRun(folder, load_vision_language_model(folder, device=device), recipe, device)
    state = CheckpointFolder(folder / "checkpoints").load_newest()
    if state is None:
        raise CheckpointError(f"{folder} holds no model and no checkpoint yet: let `{COMMAND}` go on for a while")
    method = build_method(recipe, load_tokenizer(folder / TOKENIZER_FOLDER))
    method.load_state_dict(state["method"])
    _log.info("the run is not finished: this is step %d", state["step"])
    return OpenedRun(folder, method.model.to(device).eval(), recipe, device)


def open_start(folder: Path, device: torch.device) -> VisionLanguageModel | AssignmentModel:
    """What a task's training starts from: as :func:`open_run`, or a model that has learnt text assignment.

    Raises:
        DataError: no such folder. CheckpointError: nothing in it, or damaged.
    """
    need_run_folder(folder, command=COMMAND)
    for place in (folder / "model", folder):
        if (place / "config.json").is_file():
            if read_json(place / "config.json").get("class") == _ASSIGNMENT:
                model = load_task_model(place, device=device)
                assert isinstance(model, AssignmentModel)
                return model
            break
    return open_run(folder, device).model


def task_of_run(folder: Path) -> str | None:
    """The task that a run was trained for, or that a saved model does; None for pretrained ones."""
    if (folder / "recipe.yaml").is_file():
        system = system_of(folder)
        return None if system in METHODS.names else system
    saved = read_json(folder / "config.json") if (folder / "config.json").is_file() else None
    return _TASK_OF_CLASS.get(str(saved.get("class"))) if isinstance(saved, dict) else None


def opened(source: str, options: PairOptions, captions: CaptionOptions, split: SplitOptions) -> Pairs:
    """The pairs of a source. What each column was taken for, and what was left out, is told."""
    pairs = open_pairs(
        source, images=options.images, columns=options.column, captions=captions, read=options, split=split
    )
    taken = ", ".join(f"{what} from {column}" for what, column in pairs.columns.items())
    _log.info("%s: %d images, %d captions%s", source, len(pairs), len(pairs.captions), f"; {taken}" if taken else "")
    for reason, count in pairs.dropped.most_common():
        _log.warning("left out %d: %s", count, reason)
    for example in pairs.examples:
        _log.warning("for example %s", example)
    return pairs


def open_images(source: str, options: PairOptions) -> tuple[ImageSet, Sequence[str]]:
    """Images to look at, without captions, and their names: a folder, one image, tars, or the images of a list of pairs.

    Raises:
        DataError: nothing there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = list(walk(os.fspath(path)))
        found = sorted(one for one in files if one.lower().endswith(ENDINGS))
        shards = sorted(os.path.join(path, one) for one in files if one.lower().endswith(".tar"))
        if not found and not shards:
            raise DataError(f"{source} holds no image ({', '.join(ENDINGS)}) and no .tar")
        images: ImageSet = FileImages(found, path) if found else TarImages.every("::".join(shards))
    elif path.suffix.lower() in ENDINGS:
        images = FileImages([os.fspath(path)])
    elif source.partition("?")[0].lower().endswith(".tar"):
        images = TarImages.every(source if is_url(source) else os.fspath(path), options.cache)
    else:
        images = opened(source, options, CaptionOptions(), SplitOptions()).images
    return images, [images.name(row) for row in range(len(images))]


def need_image(path: Path) -> Path:
    """The path of one image of the user.

    Raises:
        DataError: no such file.
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not an image' if path.is_dir() else 'no such file'}")
    return path
