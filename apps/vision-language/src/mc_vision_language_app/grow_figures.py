"""Pictures of a growing run: what it reached at each step, how large it was, and what it chose among."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mc_vision_language.growing.running import GrowthRun
from mc_vision_language_app.figures import COLORS, pyplot, save

_SIZES = ("blocks", "heads", "hidden")


def growth_figures(runs: Mapping[str, GrowthRun], metric: str, folder: Path) -> list[tuple[str, Path]]:
    """(caption, path) of every picture of the report."""
    found = [
        (
            "After each step; open circles: right after growth, before any training on the new slice",
            steps(runs, metric, folder / "steps.png"),
        ),
        ("Sizes chosen at each step", chosen_sizes(runs["grown"], folder / "sizes.png")),
    ]
    if any(step["selection"] for step in runs["grown"].steps):
        found.append(
            (
                "Candidates of each search: held-out loss against cost; the line is the power law by which they are compared",
                searches(runs["grown"], folder / "candidates.png"),
            )
        )
    return found


def steps(runs: Mapping[str, GrowthRun], metric: str, path: Path) -> Path:
    """The metric of every arm after each step, and of the grown one before."""
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 3.4))
    for place, (arm, run) in enumerate(runs.items()):
        at = [step["step"] for step in run.steps]
        color = COLORS[place % len(COLORS)]
        values = [step["end"][metric] for step in run.steps]
        axes[0].plot(at, values, "o-", color=color, label=arm)
        axes[1].plot([step["cumulative_training_flops"] for step in run.steps], values, "o-", color=color, label=arm)
        if arm == "grown":
            axes[0].plot(
                at[1:],
                [step["start"][metric] for step in run.steps[1:]],
                "o",
                markerfacecolor="none",
                color=color,
            )
    axes[0].set_xlabel("step")
    axes[0].set_xticks([step["step"] for step in runs["grown"].steps])
    axes[0].set_ylabel(metric.replace("_", " "))
    axes[1].set_xlabel("FLOPs of training so far")
    axes[0].legend(frameon=False, fontsize=8)
    _plain(axes)
    return save(figure, path)


def chosen_sizes(run: GrowthRun, path: Path) -> Path:
    """Blocks, heads and hidden units of each part, and parameters, step by step."""
    figure, axes = pyplot().subplots(1, 4, figsize=(11, 2.8))
    at = [step["step"] for step in run.steps]
    for axis, size in zip(axes, _SIZES, strict=False):
        for place, part in enumerate(run.steps[0]["spec"]["parts"]):
            values = [step["spec"]["parts"][part][size] for step in run.steps]
            axis.plot(at, values, "o-", color=COLORS[place % len(COLORS)], label=part, alpha=0.8)
        axis.set_title({"hidden": "hidden units"}.get(size, size), fontsize=10)
    axes[3].plot(at, [step["parameters"] / 1e3 for step in run.steps], "o-", color="#444444")
    axes[3].set_title("parameters, thousands", fontsize=10)
    for axis in axes:
        axis.set_xticks(at)
        axis.set_xlabel("step")
    axes[0].legend(frameon=False, fontsize=8)
    _plain(axes)
    return save(figure, path)


def searches(run: GrowthRun, path: Path) -> Path:
    """Held-out loss of each candidate against its cost, for each search."""
    searched = [step for step in run.steps if step["selection"]]
    figure, axes = pyplot().subplots(1, len(searched), figsize=(3.6 * len(searched), 3.2), squeeze=False)
    for axis, step in zip(axes[0], searched, strict=True):
        _search(axis, step)
    axes[0][0].set_ylabel("held-out loss")
    _plain(axes[0])
    return save(figure, path)


def _search(axis: Any, step: Mapping[str, Any]) -> None:
    found = step["selection"]
    rows = found["candidates"]
    least = min(row["cost"] for row in rows)
    costs = [row["cost"] / least for row in rows]
    for row, cost in zip(rows, costs, strict=True):
        special = {found["chosen"]: COLORS[0], found["current"]: COLORS[1]}.get(row["name"])
        axis.plot(cost, row["loss"], "o", color=special or COLORS[2], zorder=3 if special else 2)
        if row["name"] == found["chosen"]:
            axis.annotate(row["name"], (cost, row["loss"]), fontsize=8, xytext=(4, 4), textcoords="offset points")
    level = sum(row["loss"] * cost ** found["exponent"] for row, cost in zip(rows, costs, strict=True)) / len(rows)
    ends = sorted({1.0, *costs})
    axis.plot(ends, [level * cost ** -found["exponent"] for cost in ends], "-", color="#888888", linewidth=1)
    axis.set_title(f"step {step['step']}", fontsize=10)
    axis.set_xlabel("cost / smallest")


def _plain(axes: Any) -> None:
    for axis in axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
