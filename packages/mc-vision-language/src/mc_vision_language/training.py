"""From pairs and a recipe to a trained model: what the command and the benchmarks run.

A run folder holds what :func:`mc_core.fit` leaves, and besides::

    tokenizer/      of the text encoder
    pairs.json      how many images and captions in each split, what columns were taken for what, what was left out and why
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from mc_core.data import StepPlan
from mc_core.distributed import rank
from mc_core.engine.distribution import join_processes
from mc_core.engine.loop import Evaluator, RunResult, fit
from mc_core.errors import ConfigError
from mc_core.export import staging
from mc_core.files import write_json
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.methods import METHODS
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import Recipe
from mc_vision_language.tokenizers import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger("mc_core")
TOKENIZER_FOLDER = "tokenizer"
PAIRS_FILE = "pairs.json"
SPLITS = ("train", "validation", "test")


def pretrain_pairs(
    recipe: Recipe[Any],
    pairs: Pairs,
    run_dir: Path | str,
    *,
    source: str = "",
    model: VisionLanguageModel | None = None,
    evaluators: Sequence[Evaluator] = (),
    resume: Literal["auto", "never", "must"] = "auto",
) -> RunResult:
    """Train on the training split. The same call made again goes on where the run was.

    Args:
        recipe: see :func:`mc_vision_language.recipe.resolve_recipe`.
        pairs: with splits.
        run_dir: the run folder.
        source: what to call the data, so that the run knows them again.
        model: to go on from, as fine-tuning does, instead of the one that the recipe describes.
        evaluators: see :func:`mc_core.fit`.
        resume: see :func:`mc_core.fit`.

    Returns:
        ``method.model`` is the trained :class:`~mc_vision_language.model.VisionLanguageModel`.

    Raises:
        ConfigError: fewer pairs than a batch, an encoder that cannot be reached, or settings that cannot work.
        CheckpointError, DataError, RunError: as :func:`mc_core.fit`.
    """
    join_processes(recipe.fit)
    run_dir = Path(run_dir)
    train = pairs.part("train")
    text = recipe.method.text
    count = len(train) if recipe.unit == "image" else len(train.captions)
    StepPlan(count, recipe.fit.batch_size, 0)  # too few pairs are said before anything is written
    place = run_dir / TOKENIZER_FOLDER
    tokenizer = _tokenizer(recipe, train.captions, place) if model is None else model.tokenizer
    method = build_method(recipe, tokenizer, model)
    side = method.model.image_size
    if side != recipe.augment.size:
        raise ConfigError(
            f"augment.size {recipe.augment.size} is not the {side} pixels that this model takes: set it to {side}"
        )
    assert method.model.tokenizer is not None
    data = PairData(
        train,
        method.model.tokenizer,
        augment=recipe.augment,
        max_length=text.max_length,
        unit=recipe.unit,
        add_sep=text.add_sep,
    )
    for line in data.advice() if rank() == 0 else ():
        _log.warning("%s", line)
    method.check(recipe.fit.batch_size // recipe.fit.accumulation)  # before anything is written
    if rank() == 0 and not place.exists():
        with staging(place) as stage:
            method.model.tokenizer.save_pretrained(stage)
            stage.rename(place)
        _write_pairs(pairs, run_dir, source)
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


def build_method(
    recipe: Recipe[Any], tokenizer: PreTrainedTokenizerFast | None, model: VisionLanguageModel | None = None
) -> Any:
    """The recipe's method with the initial weights that its seed gives, or those of ``model``."""
    torch.manual_seed(recipe.fit.seed)
    return METHODS.method_class(recipe.system)(recipe.method, tokenizer, model)


def untrained_model(recipe: Recipe[Any], tokenizer: PreTrainedTokenizerFast | None) -> VisionLanguageModel:
    """What the recipe starts from: the baseline of every figure.

    With encoders from scratch these are random weights; with published ones it is what they know without this training, through
    random projections.
    """
    return build_method(recipe, tokenizer).model.eval()


def split_counts(pairs: Pairs) -> dict[str, dict[str, int]]:
    """Images and captions of each split."""
    found = {}
    for name in SPLITS:
        images = pairs.splits == name
        found[name] = {"images": int(images.sum()), "captions": int(images[pairs.image_of].sum())}
    return found


def _write_pairs(pairs: Pairs, run_dir: Path, source: str) -> None:
    write_json(
        run_dir / PAIRS_FILE,
        {
            "source": source,
            "splits": split_counts(pairs),
            "columns": dict(pairs.columns),
            "left_out": dict(pairs.dropped),
        },
    )


def _tokenizer(recipe: Recipe[Any], captions: Sequence[str], place: Path) -> PreTrainedTokenizerFast:
    text = recipe.method.text
    if (place / "tokenizer.json").exists():
        return load_tokenizer(place)
    if text.name is not None:
        return load_tokenizer(text.name, download=text.download)
    return train_tokenizer(list(dict.fromkeys(captions)), text.vocabulary)
