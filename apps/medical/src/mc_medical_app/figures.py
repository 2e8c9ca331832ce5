"""Pictures of a run's report: figures beside the random encoder, calibration, where phrases are seen, what a phrase finds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.files import atomic_path
from mc_core.modules import evaluating
from mc_medical.data.reports import sentences
from mc_medical.evaluation import overlay, phrase_map
from mc_medical.labels import label_report
from mc_medical.model import ImageTextModel
from mc_medical.training import Cohort
from mc_medical_app.measure import Comparison

COLORS = ("#1b6ca8", "#b8b8b8", "#d1495b")
_SHOWN = 4


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


def report_figures(
    found: Comparison, test: Cohort, model: ImageTextModel, folder: Path, *, phantoms: bool
) -> list[tuple[str, Path]]:
    """(caption, path) of every picture that these figures allow; radiographs and words of reports are shown of phantoms alone."""
    pictures: list[tuple[str, Path | None]] = []
    if all(one.binary is not None for one in found.rows.values()):
        caption = "Zero-shot AUROC of each finding, with 95 % intervals over patients"
        pictures.append((caption, findings(found, folder / "findings.png")))
        caption = "How often it is right, by how sure it is: zero-shot, which finding"
        pictures.append((caption, calibration(found, folder / "calibration.png")))
    if all(one.few_shot is not None for one in found.rows.values()):
        caption = "Heads from few labelled images: macro AUROC over findings"
        pictures.append((caption, heads(found, folder / "few-shot.png")))
    if phantoms:
        caption = "Where a phrase of the report is seen: cosine with each position of the image"
        pictures.append((caption, maps(test, model, folder / "phrases.png")))
    return [(caption, path) for caption, path in pictures if path is not None]


def findings(found: Comparison, path: Path) -> Path:
    """A row for each finding, a point for each model."""
    each = {name: one.binary for name, one in found.rows.items() if one.binary is not None}
    names = list(next(iter(each.values())).auroc)
    figure, axis = _pyplot().subplots(figsize=(7, 0.42 * len(names) + 1.2))
    for place, (model, one) in enumerate(each.items()):
        at = np.arange(len(names))[::-1] + 0.16 * (0.5 * (len(each) - 1) - place)
        values = [one.auroc[name] for name in names]
        x = np.array([value.value for value in values])
        low = np.array([x_ if v.low is None else v.low for v, x_ in zip(values, x, strict=True)])
        high = np.array([x_ if v.high is None else v.high for v, x_ in zip(values, x, strict=True)])
        error = np.maximum(np.stack([x - low, high - x]), 0)
        axis.errorbar(
            x, at, xerr=error, fmt="o", color=COLORS[place], markersize=5, linewidth=1.4, label=model.replace("_", " ")
        )
    axis.axvline(0.5, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_yticks(np.arange(len(names))[::-1], names)
    axis.set_xlim(0.0 if axis.get_xlim()[0] < 0.2 else 0.2, 1.02)
    axis.set_xlabel("AUROC (0.5: chance)")
    axis.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(each))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return save(figure, path)


def calibration(found: Comparison, path: Path) -> Path | None:
    """The reliability curve of the trained model."""
    one = next(iter(found.rows.values())).classes
    if one is None:
        return None
    curve = one.calibration
    figure, axis = _pyplot().subplots(figsize=(4, 4))
    axis.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle=":")
    axis.plot(curve.stated, curve.observed, "o-", color=COLORS[0])
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability it gives", ylabel="share that is right")
    axis.set_title(f"expected calibration error {curve.error:.3f}", fontsize=9)
    return save(figure, path)


def heads(found: Comparison, path: Path) -> Path:
    """Macro AUROC over the size of the support."""
    figure, axis = _pyplot().subplots(figsize=(6, 3.4))
    each = {name: one.few_shot for name, one in found.rows.items() if one.few_shot is not None}
    first = next(iter(each.values()))
    most = max(len(one) for one in first.auroc.values())
    sizes = [size for size in first.macro if all(len(one.auroc.get(size, ())) == most for one in each.values())]
    for color, (name, one) in zip(COLORS, each.items(), strict=False):
        here = [size for size in sizes if size in one.macro]
        at = [sizes.index(size) for size in here]
        axis.errorbar(
            at,
            [one.macro[s] for s in here],
            yerr=[one.macro_spread[s] for s in here],
            fmt="o-",
            color=color,
            label=name.replace("_", " "),
        )
    axis.set_xticks(range(len(sizes)), [s if s.endswith("%") else f"{s} + {s}" for s in sizes])
    axis.set(xlabel="labelled images: with + without a finding, or a share of all", ylabel="macro AUROC")
    axis.legend(frameon=False)
    return save(figure, path)


def maps(test: Cohort, model: ImageTextModel, path: Path) -> Path | None:
    """A few images with the map of the first sentence of their report."""
    labels = test.studies.labels
    present = np.flatnonzero((labels == 1).sum(axis=1) == 1) if labels.size else np.arange(len(test))
    rows = [int(i) for i in present if test.studies.reports[i]][: 10 * _SHOWN]
    kept: list[int] = []
    names = list(test.studies.label_names)
    seen: set[int] = set()
    for row in rows:
        what = int((labels[row] == 1).argmax()) if labels.size else len(seen)
        if what not in seen and (not names or names[what] != "No Finding"):
            seen.add(what)
            kept.append(row)
    kept = kept[:_SHOWN]
    if not kept:
        return None
    squares = test.pixels.rows(np.array(kept))
    phrases = [_telling(test.studies.reports[row], names, labels[row] if labels.size else None) for row in kept]
    with evaluating(model), torch.inference_mode():
        patches = model.patch_embeddings(model.prepare(squares)).float().cpu().numpy()
    vectors = model.encode_text(phrases)
    figure, axes = _pyplot().subplots(2, len(kept), figsize=(3 * len(kept), 6.4), squeeze=False)
    figure.subplots_adjust(hspace=0.03, wspace=0.05)
    for column, (square, patch, vector, phrase) in enumerate(zip(squares, patches, vectors, phrases, strict=True)):
        axes[0][column].imshow(square, cmap="gray", vmin=0, vmax=255)
        axes[1][column].imshow(overlay(square / 255, phrase_map(patch, vector)))
        axes[0][column].set_title(_wrapped(phrase), fontsize=8)
        for row in (0, 1):
            axes[row][column].set_axis_off()
    return save(figure, path)


def _telling(report: str, names: Sequence[str], labels: np.ndarray | None) -> str:
    """The sentence that says what the image shows, or the first."""
    said = sentences(report)
    there = [] if labels is None else [name for name, label in zip(names, labels, strict=True) if label == 1]
    return next((s for s in said if any(label_report(s).get(name) == 1 for name in there)), said[0])


def radiographs(squares: Sequence[np.ndarray], titles: Sequence[str], path: Path) -> Path:
    """Several radiographs in a row or more, with titles."""
    columns = min(len(squares), 5)
    lines = math.ceil(len(squares) / columns)
    figure, axes = _pyplot().subplots(lines, columns, figsize=(2.6 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, square, title in zip(axes.flat, squares, titles, strict=False):
        axis.imshow(square, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=8)
    return save(figure, path)


def _wrapped(text: str, width: int = 34) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
