"""Pictures of a run's report: recalls beside the random encoder, what a caption finds, where a phrase is seen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.files import atomic_path
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.tasks.grounding import ground
from mc_vision_language_app.measure import Comparison

COLORS = ("#1b6ca8", "#d1495b", "#b8b8b8")
_QUERIES, _FOUND, _MAPS = 3, 5, 4


def pyplot() -> Any:
    """matplotlib.pyplot, drawing to files."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def save(figure: Any, path: Path) -> Path:
    """Write a figure whole, and close it."""
    with atomic_path(path) as draft:
        figure.savefig(draft, format="png", dpi=110, bbox_inches="tight")
    pyplot().close(figure)
    return path


def report_figures(found: Comparison, test: Pairs, model: VisionLanguageModel, folder: Path) -> list[tuple[str, Path]]:
    """(caption, path) of every picture of the report."""
    where = "Where a caption is seen, by the gradient of " + ("matching" if model.config.matching else "the cosine")
    pictures = [
        ("Recall at 1, 5 and 10, both ways, with 95 % intervals over images", recalls(found, folder / "recalls.png")),
        ("What a caption finds, best first; its own image has a frame", finds(test, model, folder / "search.png")),
    ]
    return [*pictures, (where, maps(test, model, folder / "where.png"))] if model.shows_where else pictures


def recalls(found: Comparison, path: Path) -> Path:
    """A bar for each model and recall."""
    first, *others = found.rows.items()
    bars = [("contrast", first[1].contrast)]
    if first[1].reranked is not None:
        bars.append((f"best {first[1].k} re-ranked", first[1].reranked))
    bars += [(name.replace("_", " "), one.contrast) for name, one in others]
    figure, axes = pyplot().subplots(1, 2, figsize=(8, 3.2), sharey=True)
    width = 0.8 / len(bars)
    for axis, way, title in zip(
        axes, ("text_to_image", "image_to_text"), ("text → image", "image → text"), strict=True
    ):
        for place, (name, one) in enumerate(bars):
            each = getattr(one, way)
            value = np.array([each[k].value for k in (1, 5, 10)])
            low, high = (np.array([getattr(each[k], end) for k in (1, 5, 10)]) for end in ("low", "high"))
            at = np.arange(3) + (place - (len(bars) - 1) / 2) * width
            error = np.maximum(np.stack([value - low, high - value]), 0)
            axis.bar(at, value, width, label=name, color=COLORS[place % 3], yerr=error, ecolor="#444444")
        axis.set_xticks(range(3), ["at 1", "at 5", "at 10"])
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("recall")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="lower center", bbox_to_anchor=(0.5, 0.97), ncols=len(bars), frameon=False, fontsize=9
    )
    return save(figure, path)


def finds(test: Pairs, model: VisionLanguageModel, path: Path) -> Path:
    """A few captions with the images they find."""
    queries = np.linspace(0, len(test.captions) - 1, min(_QUERIES, len(test.captions))).astype(int)
    rows = np.arange(min(len(test), 500))
    pictures = [test.images.read(int(row)) for row in rows]
    images, texts = model.encode_image(pictures), model.encode_text([test.captions[q] for q in queries])
    columns = min(_FOUND, len(rows))
    figure, axes = pyplot().subplots(len(queries), columns, figsize=(1.9 * columns, 2.3 * len(queries)), squeeze=False)
    figure.subplots_adjust(hspace=0.5)
    for line, (query, vector) in enumerate(zip(queries, texts, strict=True)):
        best = np.argsort(-(images @ vector), kind="stable")[:columns]
        for axis, row in zip(axes[line], best, strict=True):
            axis.imshow(pictures[row])
            axis.set_xticks([])
            axis.set_yticks([])
            own = row == test.image_of[query]
            for spine in axis.spines.values():
                spine.set(color=COLORS[0], linewidth=4, visible=bool(own))
        axes[line][0].set_title(_wrapped(test.captions[query], 60), fontsize=9, loc="left")
    return save(figure, path)


def maps(test: Pairs, model: VisionLanguageModel, path: Path) -> Path:
    """A few images with the heat map of their caption."""
    rows = np.linspace(0, len(test) - 1, min(_MAPS, len(test))).astype(int)
    figure, axes = pyplot().subplots(2, len(rows), figsize=(2.6 * len(rows), 5.4), squeeze=False)
    for column, row in enumerate(rows.tolist()):
        picture, caption = test.images.read(row), test.captions_of(row)[0]
        heat = ground(model, picture, caption, mode="itm" if model.config.matching else "itc").heat
        draw_map(axes[0][column], axes[1][column], picture, heat)
        axes[0][column].set_title(_wrapped(caption, 26), fontsize=8)
    return save(figure, path)


def draw_map(plain: Any, warm: Any, picture: Any, heat: np.ndarray, box: Sequence[float] | None = None) -> None:
    """The picture, and the picture under its heat map, with a box where there is one."""
    for axis in (plain, warm):
        axis.imshow(picture)
        axis.set_axis_off()
    warm.imshow(heat / max(float(heat.max()), 1e-12), cmap="inferno", alpha=0.55, vmin=0, vmax=1)
    if box is not None:
        from matplotlib.patches import Rectangle

        x1, y1, x2, y2 = box
        for axis in (plain, warm):
            axis.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, color="#39d353", linewidth=2))


def image_row(pictures: Sequence[Any], titles: Sequence[str], path: Path, *, title: str = "") -> Path:
    """Images in rows of five with titles."""
    columns = max(1, min(len(pictures), 5))
    lines = max(1, -(-len(pictures) // columns))
    figure, axes = pyplot().subplots(lines, columns, figsize=(2.6 * columns, 2.9 * lines), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, picture, text in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(picture)
        axis.set_anchor("N")  # wide pictures beside high ones: titles on one line
        axis.set_title(_wrapped(text, 30), fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return save(figure, path)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width)[:3])
