"""From studies and a recipe to a trained model: what the command and the benchmarks run.

A run folder holds what :func:`mc_core.fit` leaves, and besides::

    tokenizer/      of the text encoder
    cohort.json     counts, what was left out and why, and which salted patient is in which split: no text, no path, no raw id
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from mc_core.data import StepPlan
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import Evaluator, RunResult, fit
from mc_core.errors import DataError
from mc_core.export import staging
from mc_core.files import read_json, write_json
from mc_medical.data.cohort import Studies
from mc_medical.data.image_config import SplitOptions
from mc_medical.data.pairs import PairData
from mc_medical.data.pixels import PixelStore
from mc_medical.data.splits import check_splits
from mc_medical.methods import METHODS
from mc_medical.model import ImageTextModel
from mc_medical.recipe import Recipe
from mc_medical.tokenizers import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from mc_medical.methods.msd.model import MSD

TOKENIZER_FOLDER = "tokenizer"
COHORT_FILE = "cohort.json"
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Cohort:
    """Studies with their decoded images, row for row, each patient in one split.

    Attributes:
        studies: N images with reports, labels and splits.
        pixels: their squares.
        dropped: reasons why images were left out, and how many for each; those of the table and those of decoding.
        examples: one line for the first of each reason.
        notes: doubts about images that were kept, and how many.
    """

    studies: Studies
    pixels: PixelStore
    dropped: Counter[str]
    examples: Mapping[str, str]
    notes: Counter[str]

    def __len__(self) -> int:
        return len(self.studies)

    def take(self, rows: np.ndarray) -> Cohort:
        """Those at these positions."""
        return replace(self, studies=self.studies.take(rows), pixels=self.pixels.take(rows))

    def part(self, name: str) -> Cohort:
        """Those of a split, or of ``"all"``.

        Raises:
            DataError: none are.
        """
        if name == "all":
            return self
        rows = np.flatnonzero(self.studies.splits == name)
        if not len(rows):
            raise DataError(f"no image is in the {name} split, only {_counted(self.studies.splits)}")
        return self.take(rows)

    def counts(self) -> dict[str, Any]:
        """Images, studies and patients of each split."""
        found: dict[str, Any] = {}
        for name in SPLITS:
            rows = self.studies.splits == name
            found[name] = {
                "images": int(rows.sum()),
                "studies": len(np.unique(self.studies.studies[rows])),
                "patients": len(np.unique(self.studies.patients[rows])),
            }
        return found


def prepare_cohort(
    studies: Studies,
    split: SplitOptions = SplitOptions(),  # noqa: B008 - frozen
    *,
    known: Mapping[int, str] | None = None,
    cache: Path | None = None,
    processes: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Cohort:
    """Decode the images and see to it that each patient is in one split.

    Args:
        studies: as :func:`mc_medical.data.studies.open_studies` gives them.
        split: how patients are divided where the studies do not say.
        known: splits of patients that an earlier run used (:func:`patient_splits`); other patients go to the test split.
        cache: folder of decoded images, where there are more than memory holds.
        processes: to decode with; 0: as many as there are processors. They import the main module anew, so that a script that
            asks for several needs its ``if __name__ == "__main__":``.
        progress: called with (done, of) while images are decoded.

    Raises:
        DataError: a patient in two splits, too few patients to divide, or no image that can be read.
    """
    if known is not None:
        studies = replace(studies, splits=np.array([known.get(int(one), "test") for one in studies.patients]))
    studies = studies.divided(split.shares, split.seed)
    check_splits(studies)
    store = PixelStore.build(studies, cache=cache, processes=processes, progress=progress)
    good = store.good
    dropped = Counter(studies.dropped) + store.dropped
    examples = {**studies.examples, **store.examples}
    if not len(good):
        first = next(iter(examples.values()), "the source has no rows")
        raise DataError(f"no image could be read; the first problem: {first}")
    return Cohort(studies.take(good), store.take(good), dropped, examples, store.notes)


def pretrain_pairs(
    recipe: Recipe[Any],
    cohort: Cohort,
    run_dir: Path | str,
    *,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
    length_buckets: bool = True,
) -> RunResult:
    """Train on the cohort's training split. The same call made again goes on where the run was.

    Args:
        recipe: see :func:`mc_medical.recipe.resolve_recipe`.
        cohort: see :func:`prepare_cohort`.
        run_dir: the run folder.
        evaluators: see :func:`mc_core.fit`.
        resume: see :func:`mc_core.fit`.
        length_buckets: texts of like length share a micro-batch. Off, micro-batches are drawn at random: fairer to ``keys: batch``,
            whose negatives are those of the micro-batch.

    Returns:
        ``method.model`` is the trained :class:`~mc_medical.model.ImageTextModel`.

    Raises:
        ConfigError: fewer pairs than a batch, an encoder that cannot be reached, or settings that cannot work.
        CheckpointError, DataError, RunError: as :func:`mc_core.fit`.
    """
    join_processes(recipe.fit)
    run_dir = Path(run_dir)
    train = cohort.part("train")
    StepPlan(len(train), recipe.fit.batch_size, 0)  # too few pairs are said before anything is written
    place = run_dir / TOKENIZER_FOLDER
    tokenizer = _tokenizer(recipe, train.studies.reports, place)
    data = PairData(
        train.studies,
        train.pixels,
        tokenizer,
        reports=recipe.reports,
        max_length=recipe.method.text.max_length,
        augment=recipe.augment,
        length_buckets=length_buckets,
    )
    method = build_method(recipe, tokenizer)
    method.check(recipe.fit.batch_size // recipe.fit.accumulation)  # before anything is written
    if rank() == 0 and not place.exists():
        with staging(place) as stage:
            tokenizer.save_pretrained(stage)
            stage.rename(place)
        _write_cohort(cohort, run_dir)
    resolved = recipe.model_copy(update={"method": method.config})
    return fit(
        method,
        data,
        fit=recipe.fit,
        run_dir=run_dir,
        evaluators=evaluators,
        resume=resume,
        recipe=resolved.model_dump(mode="json"),
    )


def build_method(recipe: Recipe[Any], tokenizer: PreTrainedTokenizerFast | None) -> MSD:
    """The recipe's method with the initial weights that its seed gives."""
    torch.manual_seed(recipe.fit.seed)
    return METHODS.method_class(recipe.system)(recipe.method, tokenizer)


def untrained_model(recipe: Recipe[Any], tokenizer: PreTrainedTokenizerFast | None) -> ImageTextModel:
    """What the recipe starts from: the baseline of every figure.

    With encoders from scratch these are random weights; with published ones it is what they know without this training, through
    random projections.
    """
    return build_method(recipe, tokenizer).model.eval()


def patient_splits(run_dir: Path) -> dict[int, str]:
    """Which salted patient was in which split of a run.

    Raises:
        DataError: the run folder has no readable ``cohort.json``.
    """
    path = run_dir / COHORT_FILE
    if not path.is_file():
        raise DataError(f"{run_dir} has no {COHORT_FILE}: it says which patients the run was trained on")
    found = read_json(path)
    try:
        return {int(patient): name for name, patients in found["patients"].items() for patient in patients}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): restore it from a copy") from error


def _write_cohort(cohort: Cohort, run_dir: Path) -> None:
    studies = cohort.studies
    patients = {
        name: sorted(np.unique(studies.patients[studies.splits == name]).tolist())
        for name in sorted(set(studies.splits.tolist()))
    }
    write_json(
        run_dir / COHORT_FILE,
        {
            "splits": cohort.counts(),
            "columns": dict(studies.columns),
            "labels": list(studies.label_names),
            "left_out": dict(cohort.dropped),
            "notes": dict(cohort.notes),
            "patients": patients,
        },
    )


def _tokenizer(recipe: Recipe[Any], reports: Sequence[str], place: Path) -> PreTrainedTokenizerFast:
    text = recipe.method.text
    if (place / "tokenizer.json").exists():
        return load_tokenizer(place)
    if text.name is not None:
        return load_tokenizer(text.name, download=text.download)
    return train_tokenizer(list(dict.fromkeys(reports)), text.vocabulary)


def _counted(splits: np.ndarray) -> str:
    names, counts = np.unique(splits, return_counts=True)
    return ", ".join(f"{count} in {name or 'none'}" for name, count in zip(names, counts, strict=True)) or "none at all"
