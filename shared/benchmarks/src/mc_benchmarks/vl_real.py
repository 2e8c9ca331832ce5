"""ALBEF from scratch on real photographs and product pictures with captions: retrieval, boxes, questions and statements."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mc_benchmarks.contract import Report, Row, environment
from mc_benchmarks.vl_sizes import SIZES
from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_core.runs import pick_device
from mc_core.seeds import Spread
from mc_vision_language.data import ArrayImages, ColumnOptions, Pairs, SplitOptions, open_pairs, text_key
from mc_vision_language.data.images import ImageSet
from mc_vision_language.data.pairs import divide
from mc_vision_language.data.phrases import Phrases, open_phrases
from mc_vision_language.data.questions import open_questions
from mc_vision_language.data.statements import open_statements
from mc_vision_language.data.task_rows import TaskRows
from mc_vision_language.evaluation.ranking import Recalls
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.gallery import picture_batches
from mc_vision_language.methods.albef.model import ALBEF
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.recipe import resolve_recipe
from mc_vision_language.tasks import finetune_task, measure_task, resolve_task_recipe
from mc_vision_language.tasks.training import SCRATCH
from mc_vision_language.training import pretrain_pairs, untrained_model

_log = logging.getLogger("mc_core")

SETS = {
    "COCO": "coco-captions-mini",
    "fashion": "fashion-products",
    "IKEA": "ikea-products",
    "grocery": "grocery-products",
}
CAPTIONS = {"COCO": "captions", "fashion": "text", "IKEA": "text", "grocery": "text"}
SHARES = (0.7, 0.0, 0.3)
RANDOM, CONTRAST, ALL = "random encoder", "ITC alone", "ALBEF"
ARMS: dict[str, dict[str, Any]] = {
    CONTRAST: {"itm": 0.0, "mlm": 0.0, "distil_itc": False, "distil_mlm": False},
    ALL: {},
}
K = 32
_METHOD: dict[str, Any] = {
    "queue_size": 1024,
    "momentum": 0.99,
    "alpha": 0.4,
    "alpha_ramp_epochs": 1.0,
    "temperature": 0.07,
    "mask_rate": 0.15,
    "itc": 1.0,
    "itm": 1.0,
    "mlm": 1.0,
    "hard_negative_strength": 1.0,
    "ids": True,
}
_FIT: dict[str, Any] = {
    "batch_size": 64,
    "optimizer": "adamw",
    "weight_decay": 0.02,
    "decay_1d": False,
    "schedule": "cosine",
    "warmup_epochs": 2.0,
    "decay_to": 0.01,
    "clip_norm": 1.0,
    "stop_on_collapse": False,  # a row that learns nothing is a result here
}
_RATES = {"pocket": 2e-3, "laptop": 1e-3, "vit-small": 3e-4, "vit-base": 1e-4}
_TASKS = {"vqa": "DAQUAR questions, accuracy", "nlvr2": "NLVR statements, accuracy"}
_BOXES = "COCO boxes, accuracy at IoU 0.5"
COLUMNS = ["without looking", RANDOM, CONTRAST, "ALBEF, by cosine", f"ALBEF, best {K} ranked again, or fine-tuned"]


def run_vl_real(
    *,
    data: Path,
    seeds: int,
    steps: int,
    task_steps: int,
    size: str,
    device: str,
    keep: Path,
    only_seed: int | None = None,
) -> Report | None:
    """Train on seven tenths of the pictures of all sets together and measure on the others, for several splits.

    Args:
        data: the folder of the sets.
        seeds: splits and initial weights.
        steps: optimizer steps of pretraining.
        task_steps: optimizer steps of each task.
        size: of the model.
        device: where.
        keep: where runs and finished splits are kept.
        only_seed: compute this split alone and report nothing.
    """
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder; name it with --data, or the folder above it with MC_DATA")
    settings = settings_of(size, steps, task_steps, device)
    folder = keep / f"vl-real-{size}"
    found = [
        _split(data, seed, settings, folder / f"split-{seed}")
        for seed in (range(seeds) if only_seed is None else (only_seed,))
    ]
    if only_seed is not None:
        return None
    name = (
        "vl_real"
        + ("" if size == "pocket" else f"_{size.replace('-', '_')}")
        + ("" if device == "cpu" else f"_{device}")
    )
    given = (
        ("size", size, "pocket"),
        ("device", device, "cpu"),
        ("seeds", seeds, 5),
        ("steps", steps, 1500),
        ("task-steps", task_steps, 500),
    )
    report = Report(
        benchmark=name,
        command="uv run mc-benchmark vl-real" + "".join(f" --{n} {v}" for n, v, usual in given if v != usual),
        question=f"What ALBEF learns from scratch on {found[0]['images']['train']:,} real pictures with captions, {seeds} splits",
        settings={
            **_plain(settings),
            "seeds": seeds,
            "images": found[0]["images"],
            "each": [one["figures"] for one in found],
        },
        environment=environment(pick_device(device)),
        columns=COLUMNS,
        rows=_rows([one["figures"] for one in found]),
        reading=_reading(found),
    )
    report.save()
    report.show()
    return report


def settings_of(size: str, steps: int, task_steps: int, device: str) -> dict[str, Any]:
    """Written out, so that a better recipe for laptops changes nothing here."""
    model = SIZES[size]
    side = int(model["image"]["image_size"])
    text = {**model["text"], "vocabulary": 2000, "max_length": 30}
    precision = "bf16" if device == "cuda" else "fp32"
    fit = {**_FIT, "lr": _RATES[size], "device": device, "precision": precision}
    return {
        "pretrain": {
            "method": {**_METHOD, "image": model["image"], "text": text, "dim": model["dim"]},
            "unit": "image",
            "augment": {"size": side, "scale": (0.5, 1.0), "flip": 0.5, "rand_augment": 0},
            "fit": {**fit, "steps": steps},
        },
        "task": {
            "method": {"text": {"max_length": 30}, "alpha": 0.4, "momentum": 0.99},
            "augment": {"size": side, "scale": (0.7, 1.0), "flip": 0.0, "rand_augment": 0},
            "fit": {**fit, "warmup_epochs": 1.0, "steps": task_steps},
        },
        "stored": side + side // 4,
    }


def _split(data: Path, seed: int, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Figures of one split: row → column → value. A split that is done is read."""
    path = folder / "figures.json"
    if path.is_file():
        content = read_json(path)
        if content["settings"] != _plain(settings):
            raise CheckpointError(f"{folder} holds this split under other settings: name another --keep, or remove it")
        return content
    sets = {name: _opened(data, name, int(settings["stored"]), seed) for name in SETS}
    pairs = joined(list(sets.values()))
    figures: dict[str, dict[str, Any]] = {}
    models: dict[str, VisionLanguageModel] = {}
    own_seed = merge(settings["pretrain"], {"fit": {"seed": seed}})
    recipe = resolve_recipe("albef-laptop", own_seed)
    for arm, method in ARMS.items():
        changed = resolve_recipe("albef-laptop", merge(own_seed, {"method": method}))
        trained = pretrain_pairs(changed, pairs, folder / arm.replace(" ", "-")).method
        assert isinstance(trained, ALBEF)
        models[arm] = trained.model.eval()
    random = untrained_model(recipe, models[ALL].tokenizer).to(models[ALL].device)
    for name, own in sets.items():
        figures |= _retrieval_rows(name, own.part("test"), {RANDOM: random, **models})
    phrases = _phrases(data / f"{SETS['COCO']}.tar", sets["COCO"])
    figures[_BOXES] = _boxes(phrases, {RANDOM: random, **models})
    for task, row in _TASKS.items():
        figures[row] = _task(task, data, models[ALL], settings, seed, folder / task)
    content = {
        "figures": figures,
        "images": {part: len(pairs.part(part)) for part in ("train", "test")},
        "settings": _plain(settings),
    }
    write_json(path, content)
    return read_json(path)


def _opened(data: Path, name: str, side: int, seed: int) -> Pairs:
    """A set, its pictures in memory, divided anew by picture."""
    pairs = open_pairs(
        data / f"{SETS[name]}.tar", columns=ColumnOptions(caption=CAPTIONS[name]), split=SplitOptions(own=False)
    )
    return replace(pairs, images=in_memory(pairs.images, side)).divided(SHARES, seed)


def in_memory(images: ImageSet, side: int) -> ArrayImages:
    """All pictures squashed to squares."""
    pixels = [part.numpy() for _, part in picture_batches(images, side)]
    return ArrayImages(np.concatenate(pixels), location=str(images.describe()["location"]))


def joined(sets: Sequence[Pairs]) -> Pairs:
    """Several sets of pictures in memory as one, with their splits."""
    starts = np.cumsum([0, *(len(one) for one in sets)])
    return Pairs(
        ArrayImages(np.concatenate([one.images.array for one in sets])),  # type: ignore[attr-defined]
        tuple(text for one in sets for text in one.captions),
        np.concatenate([one.image_of + start for one, start in zip(sets, starts, strict=False)]),
        image_ids=np.concatenate([one.image_ids for one in sets]),
        text_ids=np.concatenate([one.text_ids for one in sets]),
        splits=np.concatenate([one.splits for one in sets]),
        location=" + ".join(one.location for one in sets),
    )


def _retrieval_rows(name: str, test: Pairs, models: Mapping[str, VisionLanguageModel]) -> dict[str, dict[str, Any]]:
    """The mean of six recalls, and the recalls of each direction."""
    ways = {
        "image_to_text": f"{name}, image → text, R@1 / 5 / 10",
        "text_to_image": f"{name}, text → image, R@1 / 5 / 10",
    }
    mean = f"{name}, mean of six recalls"
    rows: dict[str, dict[str, Any]] = {mean: {}, **{row: {} for row in ways.values()}}
    for arm, model in models.items():
        result = retrieval(model, test, k=K, rerank=arm == ALL, draws=0)
        columns = {COLUMNS[3]: result.contrast, COLUMNS[4]: result.reranked} if arm == ALL else {arm: result.contrast}
        for column, recalls in columns.items():
            assert isinstance(recalls, Recalls)
            rows[mean][column] = recalls.mean.value
            for way, row in ways.items():
                rows[row][column] = [one.value for one in getattr(recalls, way).values()]
        rows[mean][COLUMNS[0]] = float(np.mean(result.chance))
        for way, row in enumerate(ways.values()):
            rows[row][COLUMNS[0]] = list(result.chance[3 * way : 3 * way + 3])
    return rows


def _phrases(tar: Path, pairs: Pairs) -> Phrases:
    """Objects with boxes in pictures that were held out, named by their category where it occurs once."""
    phrases = open_phrases(tar)
    names = open_pairs(tar, split=SplitOptions(own=False)).images
    held_out = {names.name(row) for row in np.flatnonzero(pairs.splits == "test").tolist()}
    return phrases.take(
        [row for row, at in enumerate(phrases.image_of.tolist()) if phrases.images.name(at) in held_out]
    )


def _boxes(phrases: Phrases, models: Mapping[str, VisionLanguageModel]) -> dict[str, Any]:
    found = {arm: measure_task(model, phrases, draws=0) for arm, model in models.items() if arm != CONTRAST}
    guess = max(found[ALL].baselines.values())
    return {COLUMNS[0]: guess, RANDOM: found[RANDOM].value, COLUMNS[4]: found[ALL].value}


def _task(
    task: Any, data: Path, model: VisionLanguageModel, settings: Mapping[str, Any], seed: int, folder: Path
) -> dict[str, Any]:
    rows: TaskRows
    if task == "vqa":
        rows = open_questions(data / "daquar-vqa-train.tar")
    else:
        rows = open_statements(data / "nlvr-dev.tar")
    rows = replace(rows, images=in_memory(rows.images, int(settings["stored"]))).divided(SHARES, seed, own=False)
    if task == "nlvr2":
        # a sentence is true of about half of its pictures: whoever remembers those seen would be wrong of the one held out
        rows = replace(rows, splits=divide(np.array([text_key(text) for text in rows.texts]), SHARES, seed))  # type: ignore[attr-defined]
    recipe = resolve_task_recipe(f"albef-{task}-laptop", merge(settings["task"], {"fit": {"seed": seed}}))
    scores = finetune_task(task, model, rows, recipe, folder, scratch=True, draws=0).scores
    guess = max(value for name, value in scores.baselines.items() if name != SCRATCH)
    return {COLUMNS[0]: guess, RANDOM: scores.baselines[SCRATCH], COLUMNS[4]: scores.value}


def _rows(each: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    for name in each[0]:
        values: dict[str, float | str | None] = {}
        for column in COLUMNS:
            found = [figures[name][column] for figures in each if column in figures[name]]
            if found and isinstance(found[0], list):
                values[column] = " / ".join(f"{100 * value:.1f}" for value in np.mean(found, axis=0))
            elif found:
                values[column] = f"{Spread.of([100 * value for value in found]):.1f}"
        rows.append(Row(name=name, values=values))
    return rows


def _reading(found: Sequence[Mapping[str, Any]]) -> str:
    images = found[0]["images"]
    gains = []
    for name in SETS:
        row = f"{name}, mean of six recalls"
        for more, less, what in (
            (COLUMNS[3], CONTRAST, "ALBEF − ITC alone, both by cosine"),
            (COLUMNS[4], COLUMNS[3], "ranking again"),
        ):
            gain = Spread.of([100 * (one["figures"][row][more] - one["figures"][row][less]) for one in found])
            gains.append(f"{name}, {what} {gain.mean:+.1f}" + ("" if gain.sd is None else f" ± {gain.sd:.1f}"))
    return (
        f"Per cent, mean ± deviation over {len(found)} splits by picture; one model for all four sets, encoders from scratch, "
        f"{images['train']:,} pictures to learn from and {images['test']:,} held out. Without looking: chance for retrieval, for "
        "the tasks the best of the usual answers and boxes. In the column of the random encoder, tasks are trained without "
        "pretraining. Boxes are never seen in training and are chosen among the true ones of the picture. NLVR shows one picture "
        f"in both places, and its sentences are divided instead of its pictures. Differences within a split: {'; '.join(gains)}."
    )


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return json.loads(json.dumps(settings))
