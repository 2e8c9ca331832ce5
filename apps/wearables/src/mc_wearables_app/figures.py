"""Pictures of signals, probes and embeddings, for reports and the demo page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.data import finish_on_device
from mc_core.files import atomic_path
from mc_wearables.data.pairs import PairData
from mc_wearables.evaluation import Features
from mc_wearables.evaluation.comparison import Comparison

# Okabe and Ito's colours, which colour-blind eyes tell apart, and two grays
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_METRIC = {"regression": "R²", "classification": "AUROC"}
_PEOPLE = 12
_SECONDS = 10.0


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> Path:
    """Write a figure whole, and close it."""
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", dpi=110, bbox_inches="tight")
    _pyplot().close(figure)
    return path


def views(data: PairData, path: Path, *, seed: int, pairs: int = 4) -> Path:
    """A row for each pair: the first seconds of both segments, and the random view of each; first channel."""
    batch = data.get_batch(range(min(pairs, len(data))), 0, seed)
    seen = finish_on_device(data, batch | {"index": torch.arange(len(batch["ids"])), "epoch": 0}, seed)
    shown = min(data.segments.samples, round(_SECONDS * data.segments.sampling_rate))
    time = np.arange(shown) / data.segments.sampling_rate
    figure, axes = _pyplot().subplots(
        len(batch["ids"]), 2, figsize=(10, 1.5 * len(batch["ids"])), sharex=True, squeeze=False
    )
    for number, row in enumerate(axes):
        for axis, name, color in zip(row, ("view_1", "view_2"), COLORS[:2], strict=True):
            axis.plot(time, batch[name][number, 0, :shown], color="#bbbbbb", linewidth=1)
            axis.plot(time, seen[name][number, 0, :shown], color=color, linewidth=0.9)
            axis.set_yticks([])
    axes[0][0].set_title("segment 1 (gray) and its view", fontsize=9)
    axes[0][1].set_title("segment 2 (gray) and its view", fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("seconds")
    return save(figure, path)


def probes(found: Comparison, path: Path) -> Path:
    """A panel for each target: the headline metric of each kind of features, with its interval."""
    names = list(found.probes)
    targets = list(found.levels)
    if not targets:
        return _identity(found, path)
    columns = min(4, len(targets))
    rows = -(-len(targets) // columns)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(3 * columns, 0.6 + 0.42 * (len(names) + 1) * rows), squeeze=False
    )
    for axis in axes.flat[len(targets) :]:
        axis.set_visible(False)
    for number, (axis, target) in enumerate(zip(axes.flat, targets, strict=False)):
        for place, name in enumerate(names):
            if not found.has(name, target):
                continue
            _, value, low, high = found.headline(name, target)
            color = COLORS[0] if place == 0 else "#999999"
            axis.barh(place, value, color=color, height=0.6)
            axis.plot([low, high], [place, place], color="black", linewidth=1.2)
        task = found.probes[names[0]][target].task
        if task == "classification":
            axis.axvline(0.5, color="black", linewidth=0.6, linestyle=":")
            axis.set_xlim(0.3, 1.02)
        else:
            axis.set_xlim(max(axis.get_xlim()[0], -1.0), min(axis.get_xlim()[1], 1.02))  # worse than −1 is just bad
        level = "segment" if found.levels[target] == "segment" else "person"
        axis.set_title(f"{target.partition('@')[0]} ({_METRIC[task]}, per {level})", fontsize=9)
        labels = [name.replace("_", " ") for name in names] if number % columns == 0 else [""] * len(names)
        axis.set_yticks(range(len(names)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    return save(figure, path)


def _identity(found: Comparison, path: Path) -> Path:
    figure, axis = _pyplot().subplots(figsize=(6, 0.8 + 0.4 * len(found.identity)))
    for place, result in enumerate(found.identity.values()):
        axis.barh(place, result.top1.value, color=COLORS[0] if place == 0 else "#999999", height=0.6)
        axis.plot([result.top1.low, result.top1.high], [place, place], color="black", linewidth=1.2)
    axis.set_yticks(range(len(found.identity)), [name.replace("_", " ") for name in found.identity])
    axis.invert_yaxis()
    axis.set_title("re-identification of people held out, top 1", fontsize=9)
    return save(figure, path)


def plane(values: np.ndarray) -> np.ndarray:
    """(N, 2) first two principal components of (N, D) standardised embeddings."""
    x = (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)
    _, _, vt = np.linalg.svd(x[:: max(1, len(x) // 4000)], full_matrices=False)
    axes = (
        vt[:2] * np.sign(vt[:2, np.abs(vt[:2]).argmax(1)].diagonal())[:, None]
    )  # a sign of one's own, or pictures flip
    return x @ axes.T


def map_of(features: Features, path: Path, *, label: str | None = None) -> Path:
    """The embeddings in their two main directions, coloured by twelve participants or by a label."""
    xy = plane(features.values)
    figure, axis = _pyplot().subplots(figsize=(5.5, 5))
    if label is None:
        axis.scatter(*xy.T, s=5, color="#dddddd", linewidths=0)
        markers = ("o", "^")
        for number, person in enumerate(np.unique(features.participant)[:_PEOPLE]):
            rows = features.participant == person
            marker = markers[number // len(COLORS) % len(markers)]
            axis.scatter(*xy[rows].T, s=22, marker=marker, color=COLORS[number % len(COLORS)], linewidths=0)
    else:
        known = ~np.isnan(features.labels[label])
        axis.scatter(*xy[~known].T, s=5, color="#dddddd", linewidths=0)
        points = axis.scatter(*xy[known].T, s=10, c=features.labels[label][known], cmap="viridis", linewidths=0)
        figure.colorbar(points, ax=axis, label=label)
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel("first principal component")
    axis.set_ylabel("second")
    return save(figure, path)
