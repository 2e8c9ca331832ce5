"""How good are frozen image features? The protocols of the papers, on labelled folders, and one that needs no labels.

Every protocol takes encoders by name, so that the trained one stands beside what it should beat on the same images.

Legend: N images, D feature width, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.data import finish_on_device, in_order, to_device
from mc_core.errors import DataError
from mc_core.evaluation import knn_accuracy, linear_probe, retrieval_metrics
from mc_vision.data import ImageSource
from mc_vision.transforms import EvalDataset, ViewDataset
from mc_vision.transforms_config import Views

_log = logging.getLogger("mc_core")
Encode = Callable[[dict[str, Any]], Tensor]
RAW_SIDE = 32
"""Side in pixels to which images are shrunk for the raw-pixel baseline."""


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set.

    Attributes:
        values: (N, D) float32 on the CPU.
        index: (N,) int64, positions in the data; unreadable images are missing.
        labels: (N,) int64, where the data has them.
        bad: (index, name, reason) of unreadable images.
    """

    values: Tensor
    index: Tensor
    labels: Tensor | None = None
    bad: list[tuple[int, str, str]] = field(default_factory=list)


@torch.no_grad()
def batches_of_features(
    encode: Encode,
    data: EvalDataset,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    device: torch.device,
    start: int = 0,
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(batch, (B, D) features on the CPU) in order, for callers that write as they go."""
    for batch in in_order(data, batch_size=batch_size, workers=workers, start=start):
        if len(batch["index"]):
            yield batch, encode(to_device(batch, device)).float().cpu()
        else:
            yield batch, torch.empty(0, 0)


def extract_features(
    encode: Encode,
    data: EvalDataset,
    *,
    batch_size: int = 256,
    workers: int | None = None,
    device: torch.device | None = None,
) -> Features:
    """Features of all readable images.

    Args:
        encode: takes a batch with ``image`` (B, C, H, W) and gives (B, D).
        data: images as they are evaluated.
        batch_size: images at a time.
        workers: loader processes.
        device: where ``encode`` works; default CPU.

    Raises:
        DataError: no image can be read.
    """
    values, index, labels, bad = [], [], [], []
    for batch, features in batches_of_features(
        encode, data, batch_size=batch_size, workers=workers, device=device or torch.device("cpu")
    ):
        bad += batch.get("bad", [])
        if len(batch["index"]):
            values.append(features)
            index.append(batch["index"])
            if "label" in batch:
                labels.append(batch["label"].cpu())
    if not values:
        raise DataError(f"none of the {len(data)} images can be read; the first: {bad[0][1]}: {bad[0][2]}")
    for _, name, reason in bad[:5]:
        _log.warning("left out %s: %s", name, reason)
    return Features(torch.cat(values), torch.cat(index), torch.cat(labels) if labels else None, bad)


def encoder_of(module: nn.Module) -> Encode:
    """The encode function of an image encoder, in eval mode."""
    module.eval()
    return lambda batch: module(batch["image"])


def raw_pixels(batch: dict[str, Any]) -> Tensor:
    """The baseline that sees nothing but pixels: the image shrunk to at most 32×32, flattened, its mean taken out."""
    image = batch["image"]
    if max(image.shape[-2:]) > RAW_SIDE:
        image = nn.functional.interpolate(
            image, size=(RAW_SIDE, RAW_SIDE), mode="bilinear", antialias=True, align_corners=False
        )
    flat = image.flatten(1)
    return flat - flat.mean(dim=1, keepdim=True)


def need_labels(source: ImageSource, what: str) -> None:
    """Raise DataError when ``source`` has no labels, or one class only."""
    if source.labels is None:
        raise DataError(f"{what} needs labels: class folders, a label column, or .cls files in the shards")
    if len(set(source.labels.tolist())) < 2:
        raise DataError(f"{what} needs at least two classes, the data has one")


def knn(
    encoders: Mapping[str, Encode],
    train: EvalDataset,
    test: EvalDataset,
    *,
    k: int = 20,
    temperature: float = 0.07,
    device: torch.device | None = None,
    workers: int | None = None,
) -> dict[str, float]:
    """Weighted kNN accuracy of each encoder: ``train`` is the bank, without augmentation, ``test`` is classified.

    Cosine similarity, votes weighted by exp(s/τ) (Wu et al. 2018, arXiv:1805.01978, §3.4).
    """
    scores = {}
    for name, encode in encoders.items():
        bank = extract_features(encode, train, device=device, workers=workers)
        asked = extract_features(encode, test, device=device, workers=workers)
        assert bank.labels is not None
        assert asked.labels is not None
        scores[name] = float(
            knn_accuracy(bank.values, bank.labels, asked.values, asked.labels, k=k, temperature=temperature)
        )
    return scores


def linear(
    encoders: Mapping[str, Encode],
    train: EvalDataset,
    test: EvalDataset,
    *,
    device: torch.device | None = None,
    workers: int | None = None,
) -> dict[str, float]:
    """Accuracy of a logistic regression on each encoder's frozen features; its weight decay is chosen on training images.

    The papers train the linear layer by SGD over augmented views for 90 or 100 epochs; this fits it to convergence on the
    features of un-augmented images, which takes seconds and has no learning rate to tune.
    """
    scores = {}
    for name, encode in encoders.items():
        bank = extract_features(encode, train, device=device, workers=workers)
        asked = extract_features(encode, test, device=device, workers=workers)
        assert bank.labels is not None
        assert asked.labels is not None
        scores[name] = float(linear_probe(bank.values, bank.labels, asked.values, asked.labels).accuracy)
    return scores


@torch.no_grad()
def instance_retrieval(
    encoders: Mapping[str, Encode],
    source: ImageSource,
    views: Views,
    *,
    seed: int = 0,
    channels: int = 3,
    device: torch.device | None = None,
) -> dict[str, float]:
    """Without labels: how often is an image's other random view its nearest neighbour among those of all images? (Recall@1)

    It measures what the contrast trains, on images it was not trained on; it does not say that classes separate.
    """
    device = device or torch.device("cpu")
    data = ViewDataset(source, Views(views=views.views[:2]), where="worker", channels=channels)
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in encoders}
    for batch in in_order(data, batch_size=256):
        if not len(batch["index"]):
            continue
        batch = finish_on_device(data, {**to_device(batch, device), "epoch": 0}, seed)
        for name, encode in encoders.items():
            for side, key in enumerate(("view_1", "view_2")):
                found[name][side].append(nn.functional.normalize(encode({"image": batch[key]}).float().cpu(), dim=1))
    if sum(len(part) for part in next(iter(found.values()), ([],))[0]) < 2:
        raise DataError(
            f"fewer than two of the {len(source)} images to measure on can be read, such as {source.name(0)}"
        )
    scores = {}
    for name, (first, second) in found.items():
        a, b = torch.cat(first), torch.cat(second)
        scores[name] = float(retrieval_metrics(a @ b.T, torch.arange(len(a)), ks=(1,)).recall[1])
    return scores
