"""``mc-vision pretrain``: from pictures to an encoder, its measure beside baselines, and a report."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel

from mc_core.cli import Clock, Result, Status, given_fields, keep_freed_memory
from mc_core.data import BadSampleError
from mc_core.distributed import rank
from mc_core.engine import Fit, fit
from mc_core.engine.distribution import join_processes
from mc_core.errors import ConfigError, DataError
from mc_core.export import save_model
from mc_core.recipes import merge, to_yaml
from mc_core.report import write_report
from mc_core.runs import folder_name
from mc_vision.data import ArraySource, ImageSource, open_source, split_source, take
from mc_vision.evaluation import encoder_of, instance_retrieval, knn, raw_pixels
from mc_vision.methods import METHODS
from mc_vision.methods.base import ImageMethod
from mc_vision.recipe import Recipe, ViewOptions, resolve_recipe
from mc_vision.transforms import EvalDataset, ViewDataset, view_sheet
from mc_vision_app.figures import neighbour_sheet

SAMPLE = "digit-scenes"
_SAMPLE_TRAIN, _SAMPLE_TEST, _SAMPLE_SIDE = 6000, 1500, 32
_BANK, _MOST_TEST = 10_000, 2_000  # images that the kNN measure reads at most, so that it stays a matter of seconds
_RETRIEVAL = 500


@dataclass(frozen=True)
class PretrainOptions:
    """The options of ``mc-vision pretrain`` as parsed."""

    data: str | None
    recipe: str | None
    out: Path | None
    backbone: str | None
    pretrained: bool | None
    image_size: int | None
    labels: Literal["auto", "none"]
    holdout: float
    max_bad: str | None
    json: bool
    print_recipe: bool
    fit: Fit | None
    views: ViewOptions | None
    method: BaseModel | None

    def changes(self) -> dict[str, Any]:
        """What the command line changes of the recipe, nested."""
        encoder: dict[str, Any] = {}
        if self.backbone is not None:
            encoder["backbone"] = self.backbone
        if self.pretrained is not None:
            encoder["pretrained"] = self.pretrained
        if self.image_size is not None:
            encoder["image_size"] = self.image_size
        changes = {
            "method": merge({"encoder": encoder} if encoder else {}, given_fields(self.method)),
            "views": {**({"size": self.image_size} if self.image_size is not None else {}), **given_fields(self.views)},
            "fit": given_fields(self.fit),
        }
        if self.max_bad is not None:
            changes["fit"]["max_bad"] = share(self.max_bad, "--max-bad")
        return {name: value for name, value in changes.items() if value}


def share(text: str, option: str) -> float:
    """0.01 or 1% as a number between 0 and 1."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", text)
    try:
        value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ConfigError(f"{option} {text}: give a share such as 0.01 or 1%")
    return value


def embedded_sample() -> tuple[ImageSource, ImageSource]:
    """The digit scenes as (training, test) sources, made from disjoint scans."""
    from mc_core.samples import digit_scenes

    def source(count: int, split: Any) -> ImageSource:
        scenes = digit_scenes(count, size=_SAMPLE_SIDE, split=split)
        return ArraySource(scenes.images, scenes.labels, classes=[str(d) for d in range(10)])

    return source(_SAMPLE_TRAIN, "train"), source(_SAMPLE_TEST, "test")


def run_pretrain(options: PretrainOptions) -> None:
    """Do it, and print the result to standard output."""
    name = options.recipe or ("dcl-laptop" if options.data is None else "moco-v2")
    recipe = resolve_recipe(name, options.changes())
    if options.print_recipe:
        sys.stdout.write(to_yaml(recipe))
        return
    if not 0 <= options.holdout < 1:
        raise ConfigError(f"--holdout {options.holdout}: give a share of the images from 0 to below 1")
    clock = Clock()
    keep_freed_memory()
    train, test = _sources(options, recipe)
    data = Path((options.data or SAMPLE).rstrip("/")).name or "run"
    run_dir = options.out or Path("runs") / f"{folder_name(Path(name).stem)}-{folder_name(data)}"
    pretrain(recipe, train, test, run_dir=run_dir, clock=clock, as_json=options.json)


def _sources(options: PretrainOptions, recipe: Recipe[Any]) -> tuple[ImageSource, ImageSource | None]:
    if options.data is None:
        with Status("composing the embedded sample"):
            return embedded_sample()
    channels = recipe.method.encoder.channels
    with Status(f"reading {options.data}"):
        side = recipe.views.views().min_side
        source = open_source(options.data, labels=options.labels, channels=channels, min_side=side)
    held = round(options.holdout * len(source))
    if held < 2:
        return source, None
    train, test = split_source(source, options.holdout, recipe.fit.seed)
    return train, test


def build_method(recipe: Recipe[Any]) -> ImageMethod:
    """The recipe's method with the initial weights its seed gives."""
    torch.manual_seed(recipe.fit.seed)
    return METHODS.method_class(recipe.system)(recipe.method)


def pretrain(
    recipe: Recipe[Any],
    train: ImageSource,
    test: ImageSource | None,
    *,
    run_dir: Path,
    clock: Clock,
    as_json: bool,
) -> Result | None:
    """Train, measure, report, and print; under torchrun, process 0 does the latter three and the others return None."""
    join_processes(recipe.fit)
    views = recipe.views.views()
    channels = recipe.method.encoder.channels
    data = ViewDataset(train, views, where=recipe.views.where, channels=channels)
    method = build_method(recipe)
    result = fit(method, data, fit=recipe.fit, run_dir=run_dir, recipe=recipe.model_dump(mode="json"))

    if rank() != 0:
        return None
    trained = result.method
    assert isinstance(trained, ImageMethod)
    for name, encoder in trained.encoders().items():
        if encoder is not trained.encoder:
            save_model(encoder, run_dir / f"model-{name}")
    with Status("measuring beside the baselines"):
        metric, scores = measure(recipe, trained, train, test)
    more = {
        "training_seconds": round(result.seconds, 1),
        "steps": result.step,
        "images": len(train),
        "bad_images": result.bad_samples,
    }
    baselines = {name: value for name, value in scores.items() if name != "trained"}
    found = Result(metric, scores["trained"], baselines, run=run_dir, seconds=clock.seconds(), more=more)
    found.write(run_dir)
    with Status("writing the report"):
        figures = [("What the network sees: originals and random views of each", run_dir / "views.png")]
        view_sheet(data, list(islice(_readable(train), 6)), seed=recipe.fit.seed).save(run_dir / "views.png")
        if test is not None:
            encode = encoder_of(trained.encoder)
            device = next(trained.parameters()).device
            sheet = neighbour_sheet(encode, _eval_data(recipe, test, train), device=device)
            sheet.save(run_dir / "neighbours.png")
            figures.append(
                ("Held-out images (left) and their nearest neighbours among the others", run_dir / "neighbours.png")
            )
        report = write_report(run_dir, title=f"{run_dir.name}: {recipe.system}", result=found.fields, figures=figures)
    found.fields["report"] = str(report)
    found.show(as_json=as_json, title=f"{recipe.system}, {recipe.method.encoder.backbone}, {len(train)} images")
    if not as_json:
        sys.stdout.write(f"run     {run_dir}\nencoder {run_dir / 'model'}\nreport  {report}\n")
    return found


def _readable(source: ImageSource) -> Iterator[int]:
    for index in range(len(source)):
        try:
            source.load(index)
        except BadSampleError:
            continue
        yield index


def _eval_data(recipe: Recipe[Any], source: ImageSource, like: ImageSource) -> EvalDataset:
    view = recipe.views.views().views[0]
    ratio = 1.0 if view.size <= 64 else 256 / 224  # small pictures are shown whole
    return EvalDataset(
        source, view.size, resize_ratio=ratio, mean=view.mean, std=view.std, channels=recipe.method.encoder.channels
    )


def measure(
    recipe: Recipe[Any], method: ImageMethod, train: ImageSource, test: ImageSource | None
) -> tuple[str, dict[str, float]]:
    """(metric, scores by name): held-out kNN accuracy where there are labels, else retrieval of an image's other view."""
    device = next(method.parameters()).device
    encoder = recipe.method.encoder.model_copy(update={"pretrained": False})
    start = recipe.model_copy(update={"method": recipe.method.model_copy(update={"encoder": encoder})})
    fresh = build_method(start).encoder.to(device)
    encoders = {"trained": encoder_of(method.encoder), "random_encoder": encoder_of(fresh), "raw_pixels": raw_pixels}
    seed = recipe.fit.seed
    if test is not None and train.labels is not None and len(set(train.labels.tolist())) > 1:
        bank = _eval_data(recipe, take(train, _BANK, seed=seed), train)
        asked = _eval_data(recipe, take(test, _MOST_TEST, seed=seed), train)
        return "knn_accuracy", knn(encoders, bank, asked, device=device)
    where = "held_out" if test is not None else "training"
    source = take(test if test is not None else train, _RETRIEVAL, seed=seed)
    if len(source) < 2:
        raise DataError("fewer than two images to measure on")
    views = recipe.views.views()
    scores = instance_retrieval(
        encoders, source, views, seed=seed + 1, channels=recipe.method.encoder.channels, device=device
    )
    return f"other_view_recall_at_1_{where}", scores
