"""``mc-vision evaluate``: what a run's frozen features are worth on labelled images, beside baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from mc_core.cli import Clock, Result, Status
from mc_core.errors import ConfigError
from mc_core.runs import pick_device
from mc_vision.clustering import cluster
from mc_vision.data import ImageSource, open_source, split_source
from mc_vision.data.source import align_labels
from mc_vision.encoders import TimmEncoder
from mc_vision.evaluation import encoder_of, knn, linear, need_labels, raw_pixels
from mc_vision_app.runs import OpenedRun, open_run


def run_evaluate(
    run: Path,
    *,
    data: str | None,
    test: str | None,
    protocol: str,
    k: int,
    size: int | None,
    seed: int,
    device: str,
    as_json: bool,
) -> Result:
    """Evaluate and print."""
    if k < 1:
        raise ConfigError(f"--k {k}: take at least one neighbour")
    clock = Clock()
    target = pick_device(device)
    opened = open_run(run, target)
    bank, asked = _sources(opened, data, test, seed)
    torch.manual_seed(seed)
    fresh = TimmEncoder(opened.encoder.config.model_copy(update={"pretrained": False})).to(target)
    encoders = {"trained": encoder_of(opened.encoder), "random_encoder": encoder_of(fresh), "raw_pixels": raw_pixels}
    train_data, test_data = opened.eval_data(bank, size), opened.eval_data(asked, size)
    with Status(f"{protocol} on {len(bank)} + {len(asked)} images"):
        more: dict[str, Any] = {"train_images": len(bank), "test_images": len(asked), "step": opened.step}
        if protocol == "knn":
            scores = knn(encoders, train_data, test_data, k=k, device=target)
        elif protocol == "linear":
            scores = linear(encoders, train_data, test_data, device=target)
        else:
            clusters = cluster(encoders, train_data, test_data, seed=seed, device=target)
            scores = {name: result.scores.accuracy for name, result in clusters.items()}
            more["clusters"] = {name: result.to_dict() for name, result in clusters.items()}
    metric = f"{protocol}_accuracy"
    trained = scores.pop("trained")
    found = Result(metric, trained, scores, run=run, seconds=clock.seconds(), more=more)
    found.show(as_json=as_json, title=f"{run.name}: {protocol}, {len(asked)} test images")
    found.write(run, f"evaluate-{protocol}.json")
    return found


def _sources(opened: OpenedRun, data: str | None, test: str | None, seed: int) -> tuple[ImageSource, ImageSource]:
    channels = opened.encoder.config.channels
    if data is None:
        if test is not None:
            raise ConfigError("--test needs --data, the labelled images to learn from")
        from mc_vision_app.pretrain import embedded_sample

        return embedded_sample()
    with Status(f"reading {data}"):
        bank = open_source(data, channels=channels)
        need_labels(bank, "evaluate")
        if test is None:
            return split_source(bank, 0.2, seed)
        asked = open_source(test, channels=channels)
        need_labels(asked, "evaluate --test")
    if bank.classes and asked.classes and bank.classes != asked.classes:
        asked.labels = align_labels(asked, bank.classes)
    return bank, asked
