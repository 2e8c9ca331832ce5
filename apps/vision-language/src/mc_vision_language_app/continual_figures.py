"""Pictures of a sequence of tasks: what the model knows of each task after each, and how the figure of all falls."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mc_core.runs import folder_name
from mc_vision_language.continual.running import SequenceRun
from mc_vision_language_app.figures import pyplot, save

_COLORS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#e08e0b", "#555555")


def report_figures(runs: Sequence[SequenceRun], folder: Path) -> list[tuple[str, Path]]:
    """(caption, path) of every picture of the report."""
    found = [
        (
            "R_m over the tasks so far, after each (the gallery grows); dashed: the last model on the same galleries",
            curves(runs, folder / "after-each-task.png"),
        )
    ]
    for run in runs:
        if len(run.results) == len(run.tasks):
            path = folder / f"matrix-{folder_name(run.method)}.png"
            text = f"{run.method}: R_m of each task in a gallery of its own (column), after each task (row)"
            found.append((text, matrix(run, path)))
    return found


def curves(runs: Sequence[SequenceRun], path: Path) -> Path:
    """A_k of every method, and F_k of its last model."""
    figure, axis = pyplot().subplots(figsize=(7, 3.6))
    names = runs[0].tasks
    at = np.arange(len(names))
    for place, run in enumerate(runs):
        color, scores = _COLORS[place % len(_COLORS)], run.scores()
        axis.plot(at, scores.at_the_end, "--", color=color, linewidth=1)
        axis.plot(at, scores.after_each, "o-", color=color, markersize=4)
        axis.plot([], [], "o-", color=color, markersize=4, label=run.method)
    axis.plot([], [], "--", color="#555555", linewidth=1, label="last model")
    axis.set_xticks(at, [f"{number + 1}\n{_short(name)}" for number, name in enumerate(names)], fontsize=7)
    axis.set_ylabel("R_m")
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return save(figure, path)


def matrix(run: SequenceRun, path: Path) -> Path:
    """R[k, j] as a heat map; what comes later is not measured."""
    values = run.scores().own
    size = len(values)
    figure, axis = pyplot().subplots(figsize=(1.6 + 0.75 * size, 1.2 + 0.6 * size))
    image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(~np.isnan(values)), strict=True):
        light = values[row, column] < 0.6
        axis.text(
            column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=8, color="w" if light else "k"
        )
    axis.set_xticks(range(size), [_short(name) for name in run.tasks], fontsize=7, rotation=30, ha="right")
    axis.set_yticks(range(size), [f"after {number + 1}" for number in range(size)], fontsize=7)
    figure.colorbar(image, ax=axis, fraction=0.046, label="R_m")
    return save(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"{name[:13]}…"
