"""Pictures of the label-free evaluations: IoU over the threshold, and how similarities are distributed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mc_core.errors import DataError
from mc_core.files import StrPath, atomic_path
from mc_core.optional import require
from mc_vision.patch_evaluation.config import PromptKind
from mc_vision.patch_evaluation.evaluate import PatchResult

_DPI = 160
_INK, _MUTED, _GRID = "#1c2430", "#5b6675", "#e7eaef"
_LINES = (
    "#2f5fd0",
    "#d1662b",
    "#2e9e5b",
    "#8a4fc0",
    "#b0407a",
    "#5b6675",
    "#0f8f9c",
    "#a98600",
)  # also told apart in grey
_STYLES = ("-", "--", "-.", ":")
_INTRA, _INTER = "#2f5fd0", "#d1662b"


def threshold_curves(
    results: Mapping[str, PatchResult],
    path: StrPath,
    *,
    prompt: PromptKind = "center",
    level: Literal["patch", "pixel"] = "patch",
) -> Path:
    """Mean IoU over the threshold, a line for each model, a dot at t*.

    Args:
        results: of :func:`~mc_vision.patch_evaluation.evaluate_patches`.
        path: of the PNG file.
        prompt: which way of pointing.
        level: IoU of patches or of pixels.

    Raises:
        DataError: no result has such scores.
        MissingDependencyError: matplotlib is not installed.
    """
    lines = []
    for name, result in results.items():
        segmentation = result.segmentation
        scores = None if segmentation is None else segmentation.prompts.get(prompt)
        chosen = None if scores is None else (scores.patch if level == "patch" else scores.pixel)
        if segmentation is not None and chosen is not None:
            lines.append((name, segmentation.thresholds, chosen.curve, segmentation.threshold))
    if not lines:
        raise DataError(f"no result has {level} scores of the prompt '{prompt}': there is no curve to draw")
    figure = _figure(6.4, 4.0)
    axes = figure.add_subplot()
    for i, (name, thresholds, curve, tuned) in enumerate(lines):
        color, style = _LINES[i % len(_LINES)], _STYLES[i // len(_LINES) % len(_STYLES)]
        axes.plot(thresholds, curve, color=color, linestyle=style, linewidth=1.7, label=name)
        axes.plot([tuned], [curve[thresholds.index(tuned)]], "o", color=color, markersize=5)
    axes.set(
        xlabel="threshold t (dot: t*)", ylabel=f"mean IoU of {level}es" if level == "patch" else "mean IoU of pixels"
    )
    axes.set_title(f"One threshold for all objects, prompt: {prompt}", fontsize=10, color=_INK)
    axes.set_ylim(bottom=0)
    axes.set_xlim(lines[0][1][0], lines[0][1][-1])
    axes.grid(color=_GRID)
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def similarity_histograms(results: Mapping[str, PatchResult], path: StrPath) -> Path:
    """Similarities within and across objects, a panel for each model; the darker ground is the overlap.

    Args:
        results: of :func:`~mc_vision.patch_evaluation.evaluate_patches`.
        path: of the PNG file.

    Raises:
        DataError: no result has similarities.
        MissingDependencyError: matplotlib is not installed.
    """
    found = {name: result.similarity for name, result in results.items() if result.similarity is not None}
    if not found:
        raise DataError("no result has similarities: there is no histogram to draw")
    columns = 2 if len(found) == 4 else min(3, len(found))
    rows = math.ceil(len(found) / columns)
    figure = _figure(3.1 * columns + 0.4, 2.3 * rows + 0.5)
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, (name, result) in zip(panels, found.items(), strict=False):
        edges = np.linspace(-1, 1, len(result.intra_histogram) + 1)
        for label, shares, color in (
            ("within an object", result.intra_histogram, _INTRA),
            ("across objects", result.inter_histogram, _INTER),
        ):
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.45)
            axes.stairs(shares, edges, color=color, linewidth=1.1, label=label)
        axes.set_title(f"{name}\noverlap {result.overlap:.2f}, AUC {result.auc:.2f}", fontsize=9, color=_INK)
        axes.set_yticks([])
        axes.set_xticks([-1, -0.5, 0, 0.5, 1], ["−1", "−.5", "0", ".5", "1"])
        axes.set_xlim(-1, 1)
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    panels[0].legend(frameon=False, fontsize=7, loc="upper left")
    figure.supxlabel("cosine similarity of two patches", fontsize=9, color=_MUTED)
    return _save(figure, path)


def _figure(width: float, height: float) -> Any:
    """By matplotlib's objects alone: no global state, safe beside a user's own figures."""
    require("matplotlib", extra="mc-core[report]", purpose="draw the curves")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, facecolor="white", layout="constrained")


def _save(figure: Any, path: StrPath) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for axes in figure.axes:
        for label in (axes.xaxis.label, axes.yaxis.label):
            label.set(fontsize=9, color=_MUTED)
        axes.tick_params(colors=_MUTED, labelsize=8)
        for spine in axes.spines.values():
            spine.set_color(_GRID)
    FigureCanvasAgg(figure)
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png")
    return Path(path)
