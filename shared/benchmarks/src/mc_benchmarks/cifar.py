"""CIFAR-10 from files: kNN after pretraining, beside lightly's MoCo at equal backbone, views, optimizer and steps.

Both sides get the very same batches of views from the same loader and the same initial weights; what differs is what each library
brings: the momentum encoder, the queue, the loss, and whether BatchNorm is split (lightly's shuffle on one device is a no-op).
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mc_benchmarks.contract import Report, Row, environment
from mc_core.data import StepPlan, finish_on_device, step_loader, to_device
from mc_core.engine import Fit, fit
from mc_core.errors import ConfigError, DataError
from mc_core.evaluation import knn_accuracy
from mc_core.optim import build_optimizer
from mc_core.optional import require
from mc_core.recipes import merge
from mc_core.schedules import learning_rate_factor
from mc_vision.data import ArraySource, ImageSource, open_source, take
from mc_vision.evaluation import encoder_of, extract_features, raw_pixels
from mc_vision.methods import METHODS
from mc_vision.methods.base import ImageMethod
from mc_vision.recipe import Recipe, resolve_recipe
from mc_vision.transforms import EvalDataset, ViewDataset

Sets = tuple[ImageSource, ImageSource]


def load_cifar(folder: str | None = None) -> Sets:
    """(train, test) in memory, from the Parquet files ``cifar10-{train-*,test}.parquet`` in ``folder`` or ``$MC_DATA/vision``."""
    root = Path(folder or Path(os.environ.get("MC_DATA", "")) / "vision")
    if not (root / "cifar10-test.parquet").exists():
        raise DataError(f"{root}: no cifar10-test.parquet there; name the folder with --data, or set MC_DATA")

    def load(pattern: str) -> ArraySource:
        source = open_source(str(root / pattern))
        pixels = np.stack([np.asarray(source.load(i)) for i in range(len(source))]).transpose(0, 3, 1, 2)
        return ArraySource(np.ascontiguousarray(pixels), source.labels, source.classes)

    return load("cifar10-train-*.parquet"), load("cifar10-test.parquet")


def _eval_sets(recipe: Recipe[Any], sets: Sets) -> tuple[EvalDataset, EvalDataset]:
    view = recipe.views.views().views[0]
    train, test = (EvalDataset(s, 32, resize_ratio=1.0, mean=view.mean, std=view.std) for s in sets)
    return train, test


def _knn(encode: Any, recipe: Recipe[Any], sets: Sets, device: torch.device) -> float:
    train, test = _eval_sets(recipe, sets)
    bank, asked = (extract_features(encode, data, batch_size=500, device=device) for data in (train, test))
    assert bank.labels is not None
    assert asked.labels is not None
    return 100 * float(knn_accuracy(bank.values, bank.labels, asked.values, asked.labels, k=200, temperature=0.1))


def train_ours(recipe: Recipe[Any], sets: Sets, folder: Path) -> tuple[nn.Module, float]:
    """(encoder, seconds) through ``fit``."""
    torch.manual_seed(recipe.fit.seed)
    method = METHODS.method_class(recipe.system)(recipe.method)
    result = fit(method, ViewDataset(sets[0], recipe.views.views(), where="device"), fit=recipe.fit, run_dir=folder)
    trained = result.method
    assert isinstance(trained, ImageMethod)
    return trained.encoder, result.seconds


def train_lightly(recipe: Recipe[Any], sets: Sets, device: torch.device) -> tuple[nn.Module, float]:
    """(encoder, seconds): lightly's MoCo v2 example on the same batches, initial weights, optimizer and schedule."""
    purpose = "train lightly's MoCo"
    losses = require("lightly.loss", extra="lightly", purpose=purpose)
    utils = require("lightly.models.utils", extra="lightly", purpose=purpose)
    settings: Fit = recipe.fit
    torch.manual_seed(settings.seed)
    config = recipe.method.model_copy(update={"split_bn": 1})
    ours = METHODS.method_class(recipe.system)(config)
    online = ours.online.to(device).train()
    key_net = copy.deepcopy(online)
    utils.deactivate_requires_grad(key_net)
    criterion = losses.NTXentLoss(temperature=config.temperature, memory_bank_size=(config.queue_size, config.dim)).to(
        device
    )
    optimizer = build_optimizer(
        [{"params": list(online.parameters()), "weight_decay": settings.weight_decay}], settings
    )
    data = ViewDataset(sets[0], recipe.views.views(), where="device")
    plan = StepPlan(len(data), settings.batch_size, settings.seed)
    total = (settings.epochs or 1) * plan.steps_per_epoch
    start = time.perf_counter()
    for step, loaded in enumerate(step_loader(data, plan, start=0, stop=total, workers=0)):
        batch = finish_on_device(data, to_device(loaded, device), settings.seed)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at_batch() * learning_rate_factor(settings, step, plan.steps_per_epoch, total)
        utils.update_momentum(online, key_net, m=config.momentum.at(step / total, settings.batch_size))
        query = online(batch["view_1"])
        with torch.no_grad():
            shuffled, order = utils.batch_shuffle(batch["view_2"])
            key = utils.batch_unshuffle(key_net(shuffled), order)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"):
            loss = criterion(query, key)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return online.encoder, time.perf_counter() - start


def run_cifar(
    *,
    data: str | None = None,
    recipe_name: str = "moco-v2-laptop",
    epochs: int | None = None,
    seeds: int = 3,
    device: str = "cpu",
    train_images: int | None = None,
    lightly: bool = True,
) -> Report:
    """Measure, save, show: mean and standard deviation over seeds."""
    target = torch.device(device)
    train, test = load_cifar(data)
    if train_images is not None:
        train = take(train, train_images)
    sets = (train, test)
    scores: dict[str, list[float]] = {}

    def note(name: str, accuracy: float, seconds: float) -> None:
        scores.setdefault(name, []).append(accuracy)
        print(f"{name}: kNN {accuracy:.2f} % after {seconds / 60:.1f} min", flush=True)

    recipe: Recipe[Any] | None = None
    for seed in range(seeds):
        changes: dict[str, Any] = {
            "views": {"preset": "cifar", "size": 32},
            "method": {"encoder": {"image_size": 32}},
            "fit": {"seed": seed, "device": device, "workers": 0},
        }
        recipe = resolve_recipe(recipe_name, merge(changes, {"fit": {"epochs": epochs}} if epochs else {}))
        if recipe.system != "moco":
            raise ConfigError(f"recipe {recipe_name} is of {recipe.system}; lightly is compared on MoCo with a queue")
        with tempfile.TemporaryDirectory() as folder:
            encoder, seconds = train_ours(recipe, sets, Path(folder) / "run")
        note("mc-vision MoCo", _knn(encoder_of(encoder), recipe, sets, target), seconds)
        torch.manual_seed(seed)
        fresh = METHODS.method_class(recipe.system)(recipe.method).encoder.to(target)
        note("random encoder", _knn(encoder_of(fresh), recipe, sets, target), 0.0)
        if lightly:
            encoder, seconds = train_lightly(recipe, sets, target)
            note("lightly MoCo", _knn(encoder_of(encoder), recipe, sets, target), seconds)
    assert recipe is not None
    note("raw pixels", _knn(raw_pixels, recipe, sets, target), 0.0)

    def row(name: str) -> Row:
        found = np.array(scores[name])
        return Row(
            name=name,
            values={
                "kNN % (mean)": float(found.mean()),
                "sd": float(found.std(ddof=1)) if len(found) > 1 else None,
                "seeds": str(len(found)),
            },
        )

    names = [name for name in ("mc-vision MoCo", "lightly MoCo", "random encoder", "raw pixels") if name in scores]
    ours = float(np.mean(scores["mc-vision MoCo"]))
    reading = f"{ours - float(np.mean(scores['random encoder'])):+.1f} points over the random encoder"
    if "lightly MoCo" in scores:
        reading += f", {ours - float(np.mean(scores['lightly MoCo'])):+.1f} over lightly at equal steps"
    report = Report(
        benchmark=f"cifar10_{target.type}",
        command="uv run --group peers mc-benchmark cifar" + ("" if device == "cpu" else f" --device {device}"),
        question=f"CIFAR-10, {recipe.method.encoder.backbone}, {recipe.fit.epochs} epochs of {len(train):,} images: 200-NN",
        settings={
            "recipe": recipe.model_dump(mode="json"),
            "seeds": seeds,
            "train_images": len(train),
            "test_images": len(test),
        },
        environment=environment(target),
        columns=["kNN % (mean)", "sd", "seeds"],
        rows=[row(name) for name in names],
        reading=reading + ".",
    )
    report.save()
    report.show()
    return report
