"""Astrea from scratch on real photographs with captions, boxes and masks: the whole chain of stages, beside one encoder with as
many parameters as the four experts together, and beside other ways to fuse them.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mc_benchmarks.astrea_claims import CONCAT, FIT, ONLY, ROUTING, UNIFORM, best_single
from mc_benchmarks.contract import Report, Row, environment
from mc_benchmarks.vl_real import SETS, in_memory
from mc_core.errors import CheckpointError, ConfigError
from mc_core.files import read_json, write_json
from mc_core.recipes import merge
from mc_core.runs import folder_name
from mc_core.seeds import Spread
from mc_vision_language.data import SplitOptions
from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.data.annotated_sources import open_annotated
from mc_vision_language.data.class_masks import ArrayMasks, ClassMasks
from mc_vision_language.evaluation.retrieval import retrieval
from mc_vision_language.experts.base import build_expert, load_expert
from mc_vision_language.experts.config import KINDS, ExpertConfig, Kind
from mc_vision_language.experts.evaluating import measure_expert
from mc_vision_language.experts.training import expert_data
from mc_vision_language.methods.astrea.model import AstreaModel, load_astrea
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.staged.ablation import FULL, Arm, arm_of, run_arm
from mc_vision_language.staged.evaluating import measure_captions

_log = logging.getLogger("mc_core")

SHARES = (0.7, 0.0, 0.3)
WIDE: Kind = "captioning"
"""The kind of the one wide encoder: every photograph has captions, and captions are what is measured."""
WIDE_ROW, RANDOM = "one encoder, as many parameters", "random encoders"
_SIDE, _STORED = 64, 80  # pixels of a view, and as kept in memory
_LANGUAGE: dict[str, Any] = {"hidden_size": 96, "heads": 4, "layers": 2, "positions": 128, "answer_length": 24}
SETTINGS: dict[str, Any] = {  # written out, so that a better recipe for laptops changes nothing here
    "method": {
        "experts": [
            {"kind": "classification", "image_size": _SIDE, "family": "resnet", "width": 32, "stages": 3, "stem": 4},
            {
                "kind": "captioning",
                "image_size": _SIDE,
                "family": "resnet",
                "width": 32,
                "stages": 3,
                "stem": 4,
                "lr_scale": 0.5,  # of 2e-3
                "captioning": {"language": {**_LANGUAGE, "question_length": 8}},
            },
            {
                "kind": "detection",
                "image_size": _SIDE,
                "family": "resnet",
                "width": 28,
                "stages": 3,
                "stem": 4,
                "levels": 2,
                "detection": {"width": 48, "depth": 1},
            },
            {
                "kind": "segmentation",
                "image_size": _SIDE,
                "family": "convnext",
                "width": 32,
                "stages": 3,
                "stem": 4,
                "levels": 3,
                "segmentation": {"width": 48, "depth": 1, "upsample": 1, "background": 0.3},
            },
        ],
        "image": {"image_size": _SIDE},
        "grid": 4,
        "width": 64,
        "dim": 64,
        "text": {
            "text_layers": 1,
            "hidden_size": 64,
            "heads": 4,
            "vocabulary": 1500,
            "max_length": 24,
            "dropout": 0.0,
        },
        "language": {**_LANGUAGE, "question_length": 8},
        **ROUTING,
        "momentum": 0.98,
        "queue_size": 256,
    },
    "augment": {"size": _SIDE, "resize": "squash", "flip": 0.0, "rand_augment": 0},
    # a row that learns nothing is a result here
    "fit": {**FIT, "lr": 1e-3, "warmup_epochs": 1.0, "stop_on_collapse": False},
}
_EXPERT_RATE = 2e-3
FIGURES = {
    "parameters": "parameters of encoders, M",
    "mean_recall": "R_m",
    "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4",
    "cider_other": "CIDEr-D, captions of other pictures",
    "own": "the expert's own figure",
    "blind": "the same without looking",
}


def base_recipe(steps: int) -> Recipe[Any]:
    """The settings of all rows: each expert, joint training and instruction tuning take so many updates."""
    stages = {"experts": {"steps": steps, "lr": _EXPERT_RATE}, "instruct": {"steps": steps}}
    return resolve_recipe("astrea-laptop", merge(SETTINGS, {"method": {"stages": stages}, "fit": {"steps": steps}}))


def widened(recipe: Recipe[Any]) -> Recipe[Any]:
    """One encoder that has as many parameters as the experts of ``recipe`` together, trained for as many updates."""
    experts: Sequence[ExpertConfig] = recipe.method.experts
    target = sum(encoder_size(one) for one in experts)
    one = next(config for config in experts if config.kind == WIDE)
    widths = range(4, 513, 4)
    above = bisect_left(widths, target, key=lambda w: encoder_size(one.model_copy(update={"width": w})))
    near = widths[max(above - 1, 0) : above + 1]
    width = min(near, key=lambda w: abs(encoder_size(one.model_copy(update={"width": w})) - target))
    stages = recipe.method.stages
    longer = stages.experts.model_copy(update={"steps": len(experts) * stages.experts.steps})
    method = recipe.method.model_copy(
        update={
            "experts": (one.model_copy(update={"width": width}),),
            "stages": stages.model_copy(update={"experts": longer}),
        }
    )
    return recipe.model_copy(update={"method": method})


@cache
def _size(description: str) -> int:
    config = ExpertConfig.model_validate_json(description)
    named = config.model_copy(update={"class_names": ("one",), "kind": "classification"})  # heads are not counted
    return sum(p.numel() for p in build_expert(named).backbone.parameters())


def encoder_size(config: ExpertConfig) -> int:
    """Parameters of an expert without its head.

    >>> encoder_size(ExpertConfig(kind="detection", width=8)) < encoder_size(ExpertConfig(kind="detection", width=16))
    True
    """
    return _size(config.model_dump_json())


def photographs(data: Path, seed: int) -> AnnotatedPairs:
    """COCO's, in memory, divided anew by picture."""
    found = open_annotated(data / f"{SETS['COCO']}.tar", split=SplitOptions(own=False))
    pairs = replace(found.pairs, images=in_memory(found.pairs.images, _STORED)).divided(SHARES, seed)
    masks = None if found.masks is None else masks_in_memory(found.masks, _STORED)
    return replace(found, pairs=pairs, masks=masks)


def masks_in_memory(masks: ClassMasks, side: int) -> ArrayMasks:
    """All masks squashed to squares, as the pictures are: each pixel takes the nearest one."""
    found = np.empty((len(masks), side, side), np.int16)
    for row in range(len(masks)):
        mask = masks.read(row)
        lines, columns = (((np.arange(side) + 0.5) * extent / side).astype(np.int64) for extent in mask.shape)
        found[row] = mask[np.ix_(lines, columns)]
    return ArrayMasks(found)


def run_astrea_real(*, data: Path, seeds: int, steps: int, keep: Path, only_seed: int | None = None) -> Report | None:
    """Every row under every split; those that are done are kept.

    Args:
        data: the folder of the sets.
        seeds: splits by picture, and initial weights.
        steps: updates of each stage, of each expert.
        keep: where finished rows are kept.
        only_seed: compute the rows of this split alone and report nothing, for several processes.
    """
    if not data.is_dir():
        raise ConfigError(f"{data}: no such folder; name it with --data, or the folder above it with MC_DATA")
    recipe = base_recipe(steps)
    folder = keep / "astrea-real"
    found: dict[str, list[dict[str, float]]] = {}
    count = {}
    for seed in range(seeds) if only_seed is None else (only_seed,):
        pictures = photographs(data, seed)
        count = {part: pictures.part(part).counts() for part in ("train", "test")}
        for row, figures in _split(recipe, pictures, seed, folder).items():
            found.setdefault(row, []).append(figures)
            _log.info(
                "split %d, %s: %s", seed, row, ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
            )
    if only_seed is not None:
        return None
    report = Report(
        benchmark="astrea_real",
        command="uv run mc-benchmark astrea-real"
        + "".join(f" --{n} {v}" for n, v, usual in (("seeds", seeds, 3), ("steps", steps, 300)) if v != usual),
        question=f"What Astrea learns from scratch on {count['train']['captions']} photographs with captions, "
        f"{count['train']['masks']} of them with boxes and masks, {seeds} splits",
        settings={"seeds": seeds, "steps": steps, "settings": SETTINGS, "pictures": count, "each": found},
        environment=environment(),
        columns=list(FIGURES.values()),
        rows=[
            Row(
                name=row,
                values={
                    title: (f"{Spread.of([one[name] for one in each]):.3f}" if name in each[0] else None)
                    for name, title in FIGURES.items()
                },
            )
            for row, each in found.items()
        ],
        reading=_reading(found, steps, count),
    )
    report.save()
    report.show()
    return report


def _split(recipe: Recipe[Any], pictures: AnnotatedPairs, seed: int, folder: Path) -> dict[str, dict[str, float]]:
    path = folder / f"seed-{seed}" / "figures.json"
    wanted = {"recipe": recipe.model_dump(mode="json"), "pictures": pictures.describe()}
    if path.is_file():
        content = read_json(path)
        if content["settings"] != wanted:
            raise CheckpointError(f"{path.parent} holds other settings: name another --keep, or remove it")
        return content["figures"]
    test = pictures.part("test")
    figures: dict[str, dict[str, float]] = {}
    wide = widened(recipe)
    rows: list[tuple[str, Recipe[Any], Arm, Path, bool]] = [
        (FULL, recipe, Arm(FULL), folder, True),
        (WIDE_ROW, wide, arm_of(f"{ONLY}{WIDE}"), folder / "wide", True),
        *((name, recipe, arm_of(name), folder, False) for name in (UNIFORM, CONCAT)),
        *((f"{ONLY}{kind}", recipe, arm_of(f"{ONLY}{kind}"), folder, False) for kind in KINDS),
    ]
    for name, base, arm, place, answers in rows:
        scores = run_arm(base, arm, seed, pictures, place, answers=answers)
        figures[name] = {
            "parameters": sum(map(encoder_size, base.method.experts if arm.only is None else _of(base, arm.only)))
            / 1e6,
            "mean_recall": scores["mean_recall"],
        }
        if answers:
            figures[name] |= _captions(load_astrea(place / f"seed-{seed}" / folder_name(arm.name)), test)
    whole = load_astrea(folder / f"seed-{seed}" / folder_name(FULL))
    figures[RANDOM] = {"mean_recall": _untrained(recipe, whole, test, seed)}
    train = pictures.part("train")
    for kind in KINDS:
        expert = load_expert(folder / f"seed-{seed}" / "experts" / "stages" / f"0-{kind}" / "train")
        measured = measure_expert(expert, expert_data(expert, test, None), train=expert_data(expert, train, None))
        blind = max(measured.baselines.values(), default=float("nan"))
        figures[f"{kind} expert, {measured.metric.replace('_', ' ')}"] = {"own": measured.value, "blind": blind}
    write_json(path, {"figures": figures, "settings": wanted})
    return read_json(path)["figures"]


def _of(recipe: Recipe[Any], kind: Kind) -> list[ExpertConfig]:
    return [one for one in recipe.method.experts if one.kind == kind]


def _captions(model: AstreaModel, test: AnnotatedPairs) -> dict[str, float]:
    found = measure_captions(model, test.pairs)
    assert found.scores is not None
    assert found.other is not None
    return {"cider_d": found.scores.cider_d, "bleu_4": found.scores.bleu[3], "cider_other": found.other}


def _untrained(recipe: Recipe[Any], like: AstreaModel, test: AnnotatedPairs, seed: int) -> float:
    """R_m of the same networks with new weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = like.config.model_copy(update={"answers": False})
        experts: dict[str, nn.Module] = {
            one.kind: build_expert(
                one.model_copy(update={"class_names": one.class_names or ("one",)}),
                like.tokenizer if one.kind == "captioning" else None,
            )
            for one in config.experts
        }
        model = AstreaModel(config, like.tokenizer, experts=experts).eval()
    return retrieval(model, test.pairs, draws=0).contrast.mean.value


def _reading(found: Mapping[str, Sequence[Mapping[str, float]]], steps: int, count: Mapping[str, Any]) -> str:
    said = []
    for less in (WIDE_ROW, best_single(found), UNIFORM, CONCAT):
        if less is None:
            continue
        gain = Spread.of([a["mean_recall"] - b["mean_recall"] for a, b in zip(found[FULL], found[less], strict=True)])
        said.append(f"{FULL} − {less} {gain.mean:+.3f}" + ("" if gain.sd is None else f" ± {gain.sd:.3f}"))
    return (
        f"{steps} updates of batches of 32 for each expert and each later stage, the one encoder as many as four experts together; "
        f"nothing is pretrained. {count['test']['captions']} photographs held out, {count['test']['masks']} with boxes and masks. "
        f"Differences of R_m within a split, mean ± deviation: {', '.join(said)}."
    )
