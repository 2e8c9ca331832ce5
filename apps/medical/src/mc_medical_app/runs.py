"""Opening what ``mc-medical pretrain`` left, and the studies that a verb works on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mc_core.engine.checkpoint import CheckpointFolder
from mc_core.errors import CheckpointError, DataError
from mc_core.privacy import Salt, salt_path
from mc_core.runs import need_run_folder
from mc_medical.data.cohort import Studies
from mc_medical.data.image_config import ImageOptions, SplitOptions
from mc_medical.data.studies import open_studies
from mc_medical.model import ImageTextModel, load_image_text_model
from mc_medical.phantom import write_phantoms
from mc_medical.recipe import Recipe, resolve_recipe
from mc_medical.tokenizers import load_tokenizer
from mc_medical.training import (
    COHORT_FILE,
    TOKENIZER_FOLDER,
    Cohort,
    build_method,
    patient_splits,
    prepare_cohort,
    untrained_model,
)
from mc_medical_app.study_options import StudyOptions

COMMAND = "mc-medical pretrain"
PHANTOMS = "phantoms"
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
    model: ImageTextModel
    recipe: Recipe[Any] | None
    device: torch.device

    @property
    def image(self) -> ImageOptions:
        """How images are read: as in training."""
        return self.recipe.image if self.recipe is not None else ImageOptions()

    def untrained(self) -> ImageTextModel | None:
        """What the run started from; None for a saved model, which does not say."""
        if self.recipe is None:
            return None
        return untrained_model(self.recipe, self.model.tokenizer).to(self.device)

    def cohort(self, source: Path | None, options: StudyOptions, *, part: str | None = None) -> tuple[Cohort, str]:
        """The studies to measure on, decoded, and what to call them; see :meth:`studies`.

        Args:
            source: of the user; None for the phantoms of the run.
            options: of the user.
            part: of the split. Default: test where the run knows some of the patients, all where it knows none of them.
        """
        whole, name, foreign = self.studies(source, options)
        part = part or ("all" if foreign else "test")
        return whole.part(part), name if part == "all" else f"{name}, {part} split"

    def studies(self, source: Path | None, options: StudyOptions) -> tuple[Cohort, str, bool]:
        """All images of a source, decoded, their name, and whether the run knows none of the patients.

        Patients that the run was trained on keep their split, and others are held out from them: they go to the test split. Of a
        source with none of them the splits are its own, or drawn as the recipe says.

        Raises:
            DataError: no source and no phantoms, or no image left.
        """
        known = None
        if source is None:
            table = self.folder / PHANTOMS / "studies.csv"
            if not table.is_file():
                raise DataError(f"{self.folder} was not trained on phantoms: say which studies, as a table or a tar")
            studies, foreign, name = open_phantoms(table, self.recipe), False, PHANTOMS
        else:
            salted = (self.folder / COHORT_FILE).is_file() and salt_path(self.folder).is_file()
            studies = opened(source, options, self.recipe, salt=Salt.beside(self.folder).secret if salted else None)
            splits = patient_splits(self.folder) if salted else {}
            foreign, name = not any(int(patient) in splits for patient in studies.patients), source.name
            known = None if foreign else splits
        split = self.recipe.split if self.recipe is not None else SplitOptions()
        with DecodingBar(len(studies)) as bar:
            cohort = prepare_cohort(studies, split, known=known, processes=0, progress=bar)
        tell_left_out(cohort.dropped, cohort.examples, cohort.notes)
        return cohort, name, foreign


def open_run(folder: Path, device: torch.device) -> OpenedRun:
    """A run folder with a model or a checkpoint, or a folder that ``ImageTextModel.save`` wrote.

    Raises:
        DataError: no such folder. CheckpointError: nothing in it, or damaged.
    """
    need_run_folder(folder, command=COMMAND)
    recipe = resolve_recipe(folder) if (folder / "recipe.yaml").is_file() else None
    if recipe is None or (folder / "model" / "config.json").is_file():
        return OpenedRun(folder, load_image_text_model(folder, device=device), recipe, device)
    state = CheckpointFolder(folder / "checkpoints").load_newest()
    if state is None:
        raise CheckpointError(f"{folder} holds no model and no checkpoint yet: let `{COMMAND}` go on for a while")
    method = build_method(recipe, load_tokenizer(folder / TOKENIZER_FOLDER))
    method.load_state_dict(state["method"])
    _log.info("the run is not finished: this is step %d", state["step"])
    return OpenedRun(folder, method.model.to(device).eval(), recipe, device)


def opened(
    source: Path,
    options: StudyOptions,
    recipe: Recipe[Any] | None,
    *,
    salt: bytes | None,
    need_reports: bool = False,
) -> Studies:
    """The studies of a table or tar, read as the recipe says. What each column was taken for is told."""
    studies = open_studies(
        source,
        images=options.images,
        texts=options.texts,
        need_reports=need_reports,
        columns=options.column,
        image=recipe.image if recipe is not None else ImageOptions(),
        patient_ids=not options.no_patient_ids,
        labels=options.labels,
        splits=options.splits,
        salt=salt,
        **({"reports": recipe.reports} if recipe is not None else {}),
    )
    taken = ", ".join(f"{what} from {column}" for what, column in studies.columns.items())
    _log.info("%s: %d images; %s", source.name, len(studies), taken)
    return studies


def phantoms_of(run: Path, recipe: Recipe[Any], progress: Callable[[int, int], None] | None = None) -> Studies:
    """The phantoms that a run trains on; they are written into its folder the first time."""
    table = run / PHANTOMS / "studies.csv"
    if not table.is_file():
        write_phantoms(run / PHANTOMS, seed=0, progress=progress)
    return open_phantoms(table, recipe)


def open_phantoms(table: Path, recipe: Recipe[Any] | None) -> Studies:
    """The phantoms of a table; they are nobody's, so that their keys need no secret."""
    if recipe is None:
        return open_studies(table)
    return open_studies(table, image=recipe.image, reports=recipe.reports)


def tell_left_out(dropped: Counter[str], examples: Mapping[str, str], notes: Counter[str]) -> None:
    """One line for each reason why images were left out, and for each doubt about images that were kept."""
    for reason, count in dropped.most_common():
        example = examples.get(reason)
        _log.warning("left out %d: %s%s", count, reason, f" ({example})" if example and example != reason else "")
    for note, count in notes.most_common():
        _log.warning("%d kept, but look at them (mc-medical inspect): %s", count, note)


class DecodingBar:
    """A progress bar on standard error while images are decoded or drawn; silent without a terminal."""

    def __init__(self, total: int, what: str = "reading images") -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn(what),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> DecodingBar:
        self._bar.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
