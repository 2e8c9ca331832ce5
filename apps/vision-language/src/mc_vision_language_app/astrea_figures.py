"""Pictures of a run of Astrea: its experts, what the router gives them where, how that came about, what the model says."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_vision_language.data.annotated import AnnotatedPairs
from mc_vision_language.methods.astrea.model import AstreaModel
from mc_vision_language.staged.inspecting import RouterReport, contribution_over_training, weight_maps
from mc_vision_language.staged.running import StagedRun
from mc_vision_language_app.figures import image_row, pyplot, save
from mc_vision_language_app.measure import METRIC

COLORS = {"classification": "#1b6ca8", "captioning": "#d1495b", "detection": "#66a182", "segmentation": "#edae49"}
_OTHER = "#888888"
_SHOWN = 5
_JUMPING = ("load", "usefulness")
_TITLES = {
    "weight": "mean weight",
    "load": "share of places with most weight",
    "usefulness": "usefulness in a step",
    "entropy": "entropy of weights",
    "alpha": "calibration α",
    "beta": "balancing bias β",
}


def run_figures(
    run: StagedRun, test: AnnotatedPairs, report: RouterReport | None, beside: Mapping[str, float], folder: Path
) -> list[tuple[str, Path]]:
    """(caption, path) of every picture of the report."""
    found: list[tuple[str, Path]] = []
    if any(one["figures"] for one in run.stage("experts")):
        found.append(
            ("Each expert on pictures held out; grey: who does not look at them", experts(run, folder / "experts.png"))
        )
    if beside and (joint := run.stage("joint")):
        bars = {"routed": float(joint[-1]["figures"][METRIC]), **beside}
        found.append(("Retrieval after joint training, with as many updates", compared(bars, folder / "fusion.png")))
    if run.model is None:
        return found
    rows = range(min(_SHOWN, len(test)))
    pictures = [test.pairs.images.read(row) for row in rows]
    if report is not None:
        captions = [test.pairs.captions_of(row) for row in rows]
        names = [texts[0] if texts else "" for texts in captions]
        where = "How much each expert counts at each place; brighter is more, the same scale everywhere"
        found.append((where, weight_pictures(run.model, pictures, names, folder / "weights.png")))
        curves = contribution_over_training(run.run_dir)
        if curves:
            found.append(("Experts over training", contribution(curves, folder / "contribution.png")))
    if run.model.answers:
        texts = run.model.caption(pictures)
        found.append(
            ("What the model writes of pictures held out", image_row(pictures, texts, folder / "captions.png"))
        )
    return found


def experts(run: StagedRun, path: Path) -> Path:
    """A bar for each expert beside who does not look."""
    done = [one for one in run.stage("experts") if one["figures"]]
    figure, axis = pyplot().subplots(figsize=(1.6 + 1.3 * len(done), 3))
    for place, one in enumerate(done):
        found = one["figures"]
        axis.bar(place - 0.2, found["value"], 0.4, color=COLORS.get(one["expert"], _OTHER))
        axis.bar(place + 0.2, max(found["baselines"].values(), default=0.0), 0.4, color="#b8b8b8")
    labels = [f"{one['expert']}\n{one['figures']['metric'].replace('_', ' ')}" for one in done]
    axis.set_xticks(range(len(done)), labels, fontsize=8)
    axis.set_ylim(0, 1)
    _plain([axis])
    return save(figure, path)


def compared(values: Mapping[str, float], path: Path) -> Path:
    """A bar for each way to fuse."""
    figure, axis = pyplot().subplots(figsize=(1.6 + 1.3 * len(values), 3))
    axis.bar(range(len(values)), list(values.values()), color=["#1b6ca8", *["#b8b8b8"] * (len(values) - 1)])
    axis.set_xticks(range(len(values)), list(values), fontsize=8)
    axis.set_ylabel("R_m")
    _plain([axis])
    return save(figure, path)


def weight_pictures(model: AstreaModel, pictures: Sequence[Any], names: Sequence[str], path: Path) -> Path:
    """A line for each picture: itself, and the weight of each expert over it."""
    maps = weight_maps(model, list(pictures))
    kinds = model.config.kinds
    most = max(float(maps.max()), 1e-6)
    size = (2.3 * (1 + len(kinds)), 2.1 * len(pictures) + 0.4)
    figure, axes = pyplot().subplots(len(pictures), 1 + len(kinds), figsize=size, squeeze=False)
    shown = None
    for line, (picture, weights) in enumerate(zip(pictures, maps, strict=True)):
        axes[line][0].imshow(picture)
        axes[line][0].set_title("\n".join(textwrap.wrap(str(names[line]), 30)[:2]), fontsize=8)
        for column, kind in enumerate(kinds, 1):
            shown = axes[line][column].imshow(weights[..., column - 1], cmap="viridis", vmin=0, vmax=most)
            if line == 0:
                axes[line][column].set_title(kind, fontsize=9)
        for axis in axes[line]:
            axis.set_axis_off()
    if shown is not None:
        figure.colorbar(shown, ax=axes, shrink=0.6, label="weight")
    return save(figure, path)


def contribution(curves: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], path: Path) -> Path:
    """Weights, loads, usefulness and entropy over the updates; of values that jump, the mean of a tenth of training."""
    columns = min(2, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = pyplot().subplots(lines, columns, figsize=(4.6 * columns, 2.7 * lines + 0.4), squeeze=False)
    shared: dict[str, Any] = {}
    for axis, (head, each) in zip(axes.flat, curves.items(), strict=False):
        for kind, (steps, values) in each.items():
            if head in _JUMPING:
                axis.plot(steps, values, color=COLORS.get(kind), linewidth=0.5, alpha=0.25)
            smooth = moving_mean(values, len(values) // 10) if head in _JUMPING else values
            (line,) = axis.plot(steps, smooth, color=COLORS.get(kind), label=kind, linewidth=1.5)
            if kind in COLORS:
                shared[kind] = line
        if not set(each) & set(COLORS):
            axis.legend(frameon=False, fontsize=8)
        axis.set_title(_TITLES.get(head, head), fontsize=10)
        axis.set_xlabel("update")
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    _plain(axes.flat)
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    if shared:
        figure.legend(shared.values(), shared, loc="upper center", ncols=len(shared), frameon=False, fontsize=9)
    return save(figure, path)


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Each value's mean with those around it, fewer at the ends.

    >>> moving_mean(np.array([0.0, 3.0, 0.0, 3.0]), 3).tolist()
    [1.5, 1.0, 2.0, 1.5]
    """
    half = max(window // 2, 0)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _plain(axes: Any) -> None:
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
