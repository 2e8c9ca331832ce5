"""Pictures of single signals and of the map of embeddings, for a page: drawn in memory, and what was clicked can be told.

Layouts are fixed, so that a click on a picture can be traced to what is drawn there from its pixel alone.

Legend: N points, C channels, T samples, B beats.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from mc_wearables.data.segments import SignalKind
from mc_wearables_app.figures import COLORS

_DPI = 100
_LOCK = threading.Lock()  # a page draws in several threads, matplotlib's fonts are shared
_INK, _MARK, _FAINT, _GRAY = "#222222", COLORS[1], "#e3e3e3", "#c8c8c8"
_STRIP_SECONDS: dict[SignalKind, float] = {"ecg": 10.0, "ppg": 20.0}
_MOST_STRIPS = 6
_HEAD = 0.32  # inches: where a page lays its buttons over a picture
_ROW_HEIGHT, _ROW_LABEL, _ROW_FOOT = 0.56, 1.3, 0.42  # inches
_ROWS_WIDTH = 6.4
_ROW_SECONDS: dict[SignalKind, float] = {"ecg": 6.0, "ppg": 12.0}
_MAP_SIZE = (6.4, 5.6)  # inches
_MAP_BOX = (0.035, 0.05, 0.74, 0.89)  # left, bottom, width, height of the axes, as shares of the figure
_MARGIN = 0.04
_REACH = 14.0  # pixels from a point within which a click means it


@dataclass(frozen=True)
class Row:
    """A line of :func:`signal_rows`: (C, T) signal, two lines of text before it, and its colour."""

    signal: np.ndarray
    title: str
    note: str
    color: str = _INK


@dataclass(frozen=True)
class Group:
    """Points of one colour on the map: (N,) bool, its name in the legend, colour and marker."""

    rows: np.ndarray
    name: str
    color: str
    marker: str = "o"


def signal_strips(
    signal: np.ndarray,
    rate: float,
    kind: SignalKind,
    *,
    beats: np.ndarray | None = None,
    channels: Sequence[str] = (),
) -> Image.Image:
    """A (C, T) segment in strips of 10 s (ECG) or 20 s (PPG), one below the other; channels one below the other in each.

    Args:
        signal: z-scored.
        rate: Hz.
        kind: decides the length of a strip, and the grid: 0.2 s and 1 s for an ECG.
        beats: (B,) seconds, marked by triangles.
        channels: C names, shown where there are several.
    """
    from matplotlib.ticker import MultipleLocator

    count, samples = signal.shape
    duration = samples / rate
    strips = min(_MOST_STRIPS, math.ceil(duration / _STRIP_SECONDS[kind] - 1e-9))
    span = duration / strips
    low, high = (float(v) for v in np.quantile(signal, (0.001, 0.999)))
    step = 1.15 * max(high - low, 1.0)
    lifts = step * np.arange(count - 1, -1, -1)
    lifted = signal + lifts[:, None]
    time = np.arange(samples) / rate
    with _LOCK:
        figure = _figure(11.5, _HEAD + strips * (0.75 + 0.42 * count) + 0.25)
        for number in range(strips):
            axis = figure.add_subplot(strips, 1, number + 1)
            begin, end = number * span, (number + 1) * span
            inside = (time >= begin) & (time <= end)
            for channel in range(count):
                color = _INK if count == 1 else COLORS[channel % len(COLORS)]
                axis.plot(time[inside], lifted[channel, inside], color=color, linewidth=0.9)
            axis.set(xlim=(begin, end), ylim=(low - 0.08 * step, low + (count + 0.12) * step))
            if beats is not None:
                here = beats[(beats >= begin) & (beats <= end)]
                across = axis.get_xaxis_transform()
                axis.vlines(here, 0, 0.94, transform=across, color=_MARK, linewidth=0.7, alpha=0.35)
                axis.plot(here, np.full(len(here), 0.95), "v", transform=across, color=_MARK, markersize=5)
            if count == 1:
                axis.yaxis.set_major_locator(MultipleLocator(max(1, round(step / 3))))
            else:
                named = len(channels) == count
                axis.set_yticks(lifts, channels if named else [str(i + 1) for i in range(count)])
            axis.xaxis.set_major_locator(MultipleLocator(1 if span <= 12 else 2 if span <= 30 else 5))
            if kind == "ecg" and span <= 15:
                axis.xaxis.set_minor_locator(MultipleLocator(0.2))
                axis.grid(which="minor", axis="x", color="#f1f1f1", linewidth=0.6)
            axis.grid(axis="x", color=_FAINT, linewidth=0.8)
            _plain(axis)
        axis.set_xlabel("seconds", fontsize=9)
        figure.supylabel("z-score" if count == 1 else "channel", fontsize=9)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - _HEAD / figure.get_figheight()))
        return _image(figure)


def signal_rows(rows: Sequence[Row], rate: float, kind: SignalKind) -> Image.Image:
    """The first seconds of several (C, T) signals, mean of their channels, one below the other; see :func:`row_at`."""
    height = _rows_height(len(rows))
    with _LOCK:
        figure = _figure(_ROWS_WIDTH, height)
        for number, row in enumerate(rows):
            shown = min(row.signal.shape[1], round(_ROW_SECONDS[kind] * rate))
            wave = row.signal.mean(axis=0)[:shown]
            bottom = (height - _HEAD - (number + 1) * _ROW_HEIGHT) / height
            box = (_ROW_LABEL / _ROWS_WIDTH, bottom, 0.985 - _ROW_LABEL / _ROWS_WIDTH, 0.9 * _ROW_HEIGHT / height)
            axis = figure.add_axes(box)
            axis.plot(np.arange(shown) / rate, wave, color=row.color, linewidth=0.9)
            axis.set(xlim=(0, max(shown - 1, 1) / rate), yticks=[])
            axis.text(
                -0.02, 0.68, row.title, transform=axis.transAxes, ha="right", va="center", fontsize=10, color=row.color
            )
            axis.text(
                -0.02, 0.26, row.note, transform=axis.transAxes, ha="right", va="center", fontsize=8, color="#555555"
            )
            axis.grid(axis="x", color=_FAINT, linewidth=0.8)
            _plain(axis)
            axis.spines["left"].set_visible(False)
            if number < len(rows) - 1:
                axis.tick_params(labelbottom=False, bottom=False)
                axis.spines["bottom"].set_visible(False)
            else:
                axis.set_xlabel("seconds", fontsize=9)
        return _image(figure)


def row_at(y: float, count: int) -> int | None:
    """Which of ``count`` rows of :func:`signal_rows` lies at the pixel ``y`` from the top; None below the last.

    >>> row_at(60, 3), row_at(100, 3), row_at(220, 3)
    (0, 1, None)
    """
    row = math.floor((y / _DPI - _HEAD) / _ROW_HEIGHT)
    return row if 0 <= row < count else None


def embedding_map(
    xy: np.ndarray,
    colored: Sequence[Group] | np.ndarray,
    *,
    picked: int,
    title: str,
    names: tuple[str, str] = ("first principal component", "second"),
) -> Image.Image:
    """The map of embeddings, the picked one in a ring; see :func:`point_at`.

    Args:
        xy: (N, 2).
        colored: groups, the rest in gray; or (N,) numbers for a colour scale, gray where NaN.
        picked: its row.
        title: of the legend or the colour scale.
        names: of the axes.
    """
    low, high = _limits(xy)
    with _LOCK:
        figure = _figure(*_MAP_SIZE)
        axis = figure.add_axes(_MAP_BOX)
        axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[])
        axis.set_xlabel(names[0], fontsize=9)
        axis.set_ylabel(names[1], fontsize=9, labelpad=1)
        axis.spines[:].set_color(_GRAY)
        left = _MAP_BOX[0] + _MAP_BOX[2]
        if isinstance(colored, np.ndarray):
            known = np.isfinite(colored)
            axis.scatter(*xy[~known].T, s=10, color=_GRAY, linewidths=0)
            points = axis.scatter(*xy[known].T, s=20, c=colored[known], cmap="viridis", linewidths=0, alpha=0.9)
            if known.any():
                bar = figure.colorbar(points, cax=figure.add_axes((left + 0.03, 0.25, 0.025, 0.5)))
                bar.ax.set_title(title, fontsize=9, loc="left")
                bar.ax.tick_params(labelsize=8)
        else:
            rest = ~np.logical_or.reduce([np.zeros(len(xy), dtype=bool), *(group.rows for group in colored)])
            axis.scatter(*xy[rest].T, s=10, color=_GRAY, linewidths=0)
            for group in colored:
                axis.scatter(
                    *xy[group.rows].T, s=24, marker=group.marker, color=group.color, linewidths=0, label=group.name
                )
            if colored:
                figure.legend(
                    title=title,
                    loc="upper left",
                    bbox_to_anchor=(left + 0.005, 0.955),
                    fontsize=8,
                    title_fontsize=9,
                    frameon=False,
                    handletextpad=0.2,
                    alignment="left",
                )
        axis.scatter(*xy[picked], s=190, facecolors="none", edgecolors="white", linewidths=4)
        axis.scatter(*xy[picked], s=190, facecolors="none", edgecolors="black", linewidths=1.8)
        return _image(figure)


def point_at(xy: np.ndarray, pixel: tuple[float, float]) -> int | None:
    """The row of the (N, 2) points that a click at ``pixel`` (from the upper left) of :func:`embedding_map` means, or None.

    >>> xy = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> at = point_pixels(xy)[1]
    >>> point_at(xy, (at[0] + 3, at[1])), point_at(xy, (at[0] - 99, at[1]))
    (1, None)
    """
    distance = np.hypot(*(point_pixels(xy) - np.asarray(pixel)).T)
    nearest = int(distance.argmin())
    return nearest if distance[nearest] <= _REACH else None


def point_pixels(xy: np.ndarray) -> np.ndarray:
    """(N, 2) pixels from the upper left at which :func:`embedding_map` draws the points."""
    low, high = _limits(xy)
    width, height = _MAP_SIZE[0] * _DPI, _MAP_SIZE[1] * _DPI
    share = (xy - low) / (high - low)
    left, bottom, wide, tall = _MAP_BOX
    return np.stack([(left + wide * share[:, 0]) * width, (1 - bottom - tall * share[:, 1]) * height], axis=1)


def _limits(xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = xy.min(axis=0), xy.max(axis=0)
    room = np.maximum(_MARGIN * (high - low), 1e-6)
    return low - room, high + room


def _rows_height(count: int) -> float:
    return _HEAD + count * _ROW_HEIGHT + _ROW_FOOT


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)  # without pyplot, which keeps figures and knows one thread


def _image(figure: Any) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_GRAY)
    axis.tick_params(labelsize=8, color=_GRAY, which="both")
    axis.set_axisbelow(True)
