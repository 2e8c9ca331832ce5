"""A run as one page: result beside the baselines, health in words, curves, recipe, environment, citation.

The page is one HTML file without scripts or anything loaded from elsewhere, so it can be mailed; the curves are also
PNG files in ``curves/``. Without matplotlib the page has no curves and says which extra brings them.
"""

from __future__ import annotations

import base64
import io
import math
import os
import platform
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from statistics import fmean
from typing import Any, TypeGuard

from mc_core.errors import DataError, MissingDependencyError
from mc_core.files import StrPath, read_json, read_jsonl, write_atomic
from mc_core.optional import require

_NO_CURVE = {"step", "epoch"}
_GROUPS = ["loss", "lr", "eval", "health", "other"]
_HEADINGS = {"loss": "Training", "lr": "Training", "eval": "Evaluation", "health": "Health over time", "other": "Other"}
_SCHEDULE = {"lr", "learning_rate", "momentum", "weight_decay"}
_INCHES, _DPI = (3.4, 2.3), 170  # shown at about 300 CSS pixels, so text is near 11 pixels and sharp on dense screens
_SMOOTH_FROM = 30  # points, below which a smoothed line says nothing new
_NARROW = 0.3  # feature spread under which the features are said to crowd together

# What the engine logs, by key: title and unit.
_LABELS = {
    "loss": ("Training loss", "loss"),
    "lr": ("Learning rate", "learning rate"),
    "momentum": ("Momentum of the moving average", "momentum"),
    "samples_per_second": ("Throughput", "samples / s"),
    "health/spread": ("Feature spread", "0 collapsed, 1 even"),
    "health/effective_rank": ("Effective rank", "dimensions"),
    "health/alignment": ("Alignment of positive pairs", "mean squared distance"),
    "health/uniformity": ("Uniformity", "log mean potential"),
    "health/drift": ("Momentum encoder's distance", "‖θk − θq‖ / ‖θq‖"),
    "health/queue_fill": ("Queue fill", "share"),
    "health/queue_age": ("Age of the oldest queue row", "steps"),
}


_SPELLED = {"knn": "kNN", "auroc": "AUROC", "bm25": "BM25", "map": "mAP", "ndcg": "nDCG", "mrr": "MRR", "f1": "F1"}


@dataclass(frozen=True)
class _Series:
    """One metric over the steps at which it was logged; NaN where it was not a finite number."""

    key: str
    steps: list[float]
    values: list[float]

    @property
    def group(self) -> str:
        head = self.key.partition("/")[0]
        if head in ("health", "eval"):
            return head
        if "loss" in head:
            return "loss"
        return "lr" if head in _SCHEDULE else "other"

    @property
    def labels(self) -> tuple[str, str]:
        """Title and unit."""
        if self.key in _LABELS:
            return _LABELS[self.key]
        parent, _, name = self.key.rpartition("/")
        if parent in _LABELS:  # "health/drift/image_encoder"
            return f"{_LABELS[parent][0]}: {_words(name)}", _LABELS[parent][1]
        plain = _words(self.key.removeprefix(f"{self.group}/")).replace("/", ": ")
        return _sentence(plain), plain.rpartition(": ")[2]

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]


@dataclass(frozen=True)
class _Palette:
    paper: str
    ink: str
    muted: str
    grid: str
    line: str
    raw: str


_LIGHT = _Palette("#ffffff", "#1c2430", "#5b6675", "#e7eaef", "#2f5fd0", "#b9c9f0")
_DARK = _Palette("#181c24", "#e6e9ef", "#98a2b3", "#2a303b", "#8fb0ff", "#3d4f7d")


def write_report(
    run_dir: StrPath,
    *,
    title: str,
    result: Mapping[str, Any] | None = None,
    figures: Sequence[tuple[str, StrPath]] = (),
    bibtex: str | None = None,
) -> Path:
    """Write ``run_dir/report.html`` and ``run_dir/curves/*.png`` from what the run has left in its folder.

    Read are ``recipe.yaml``, ``metrics.jsonl`` (any numeric key becomes a curve), ``result.json`` and
    ``environment.json`` (as of :func:`environment`). What is missing or broken is said on the page; it is no error.

    Args:
        run_dir: folder of the run.
        title: headline of the page.
        result: ``{"metric", "trained", "baselines": {name: value}, "seconds", "lower_is_better"?, …}``; default: what
            ``result.json`` holds. Other keys are listed.
        figures: (caption, path) of further PNG, JPEG, WebP or GIF pictures, for example nearest neighbours.
        bibtex: how to cite the method.

    Returns:
        The path of the page.

    Raises:
        DataError: ``run_dir`` is no folder.
        RunError, ConfigError: the page cannot be written.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise DataError(f"{run_dir} is no folder of a run")
    notes: list[str] = []
    if result is None:
        result = _read_mapping(run_dir / "result.json", notes)
    series = _read_series(run_dir / "metrics.jsonl", notes)
    sections = [
        _result_section(result or {}),
        _health_section(series),
        *_curve_sections(series, run_dir / "curves", notes),
        _figures_section(figures),
        _recipe_section(run_dir / "recipe.yaml"),
        _table_section("Environment", _read_mapping(run_dir / "environment.json", notes) or environment()),
        _section("How to cite", f"<pre>{escape(bibtex.strip())}</pre>") if bibtex else "",
    ]
    subtitle = " · ".join([f"run {run_dir.resolve().name}", *_extent(series), *_duration(result or {})])
    body = "".join(f'<p class="note">{escape(note)}</p>' for note in notes) + "".join(sections)
    page = _PAGE.format(title=escape(title), subtitle=escape(subtitle), style=_STYLE, body=body)
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def environment() -> dict[str, str]:
    """Versions and hardware of this process, for the page and for ``environment.json``. Names no host and no user."""
    import torch

    found = {"Python": platform.python_version(), "System": f"{platform.system()} {platform.machine()}"}
    for name in ("mc-core", "torch", "torchvision", "timm", "transformers", "accelerate", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    found["Processor"] = f"{_processor()}, {os.cpu_count()} logical cores"
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["Memory"] = f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["Accelerator"] = ", ".join(f"{names.count(name)} × {name}" for name in dict.fromkeys(names))
        found["CUDA"] = str(torch.version.cuda)
    else:
        found["Accelerator"] = "none used" if torch.version.cuda is None else "none found"
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine() or "unknown"


def _read_mapping(path: Path, notes: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = read_json(path)
    except DataError as error:
        notes.append(f"{path.name} was left out: {_without_folder(error, path)}.")
        return None
    return value if isinstance(value, dict) else None


def _read_series(path: Path, notes: list[str]) -> list[_Series]:
    """One series per numeric key, in the order of first appearance. A step logged twice counts as last logged."""
    if not path.exists():
        notes.append(
            f"There are no curves: the run has left no {path.name}, so it has not come to its first logged step."
        )
        return []
    try:
        records = read_jsonl(path)
    except DataError as error:
        notes.append(f"There are no curves: {_without_folder(error, path)}.")
        return []
    points: dict[str, dict[float, float]] = {}
    for record in records:
        step = record.get("step")
        if not _is_number(step):
            continue
        for key, value in record.items():
            if key not in _NO_CURVE and (value is None or _is_number(value)):
                points.setdefault(key, {})[float(step)] = math.nan if value is None else float(value)
    found = [_Series(key, sorted(at), [at[step] for step in sorted(at)]) for key, at in points.items()]
    found = [series for series in found if series.finite]
    if not found:
        notes.append(f"There are no curves: {path.name} holds no numbers yet.")
    return found


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _without_folder(error: DataError, path: Path) -> str:
    return str(error).replace(str(path), path.name)


def _number(value: float) -> str:
    """Four significant digits, thousands separated, a true minus sign."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"
    return text.replace("-", "−")


def _words(name: str) -> str:
    return " ".join(_SPELLED.get(word, word) for word in name.split("_"))


def _sentence(text: str) -> str:
    return text if text.startswith(tuple(_SPELLED.values())) else text[:1].upper() + text[1:]


def _extent(series: Iterable[_Series]) -> list[str]:
    last = max((s.steps[-1] for s in series), default=None)
    return [] if last is None else [f"{_number(last)} steps"]


def _duration(result: Mapping[str, Any]) -> list[str]:
    seconds = result.get("seconds")
    if not _is_number(seconds) or not math.isfinite(seconds):
        return []
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{count} {unit}" for count, unit in parts if count][:2]
    return [" ".join(shown) or f"{seconds:.1f} s"]


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{escape(heading)}</h2>{content}</section>" if content else ""


def _table_section(heading: str, rows: Mapping[str, Any]) -> str:
    table = _table(rows)
    return _section(heading, f'<div class="card">{table}</div>' if table else "")


def _table(rows: Mapping[str, Any]) -> str:
    cells = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(_number(value) if _is_number(value) else str(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table>{cells}</table>" if cells else ""


def _result_section(result: Mapping[str, Any]) -> str:
    """The headline: one sentence, a bar for each contender, whatever else the result holds as a table."""
    trained, baselines = result.get("trained"), result.get("baselines")
    known = {"metric", "trained", "baselines", "seconds", "lower_is_better", "run"}
    bars = ""
    if _is_number(trained):
        rivals = baselines if isinstance(baselines, Mapping) else {}
        rivals = {str(name): float(value) for name, value in rivals.items() if _is_number(value)}
        metric, lower = str(result.get("metric", "result")), bool(result.get("lower_is_better"))
        bars = _headline(metric, trained, rivals, lower) + _bars(metric, trained, rivals, lower)
    else:
        known = {"run"}
    table = _table({_words(key): value for key, value in result.items() if key not in known and value is not None})
    return _section("Result", f'<div class="card">{bars}{table}</div>' if bars or table else "")


def _headline(metric: str, trained: float, rivals: Mapping[str, float], lower: bool) -> str:
    text = escape(_sentence(_words(metric))) + f" <strong>{_number(trained)}</strong>"
    finite = {name: value for name, value in rivals.items() if math.isfinite(value)}
    if finite:
        best = (min if lower else max)(finite, key=lambda name: finite[name])
        gain = (finite[best] - trained) if lower else (trained - finite[best])
        against = f"the best baseline ({escape(_words(best))}, {_number(finite[best])})"
        verdict = f"{_number(gain)} better than {against}" if gain > 0 else f"not better than {against}"
        text += f", {verdict}"
    return f'<p class="headline">{text}.</p>'


def _bars(metric: str, trained: float, rivals: Mapping[str, float], lower: bool) -> str:
    entries = [("trained", float(trained)), *rivals.items()]
    longest = max((abs(value) for _, value in entries if math.isfinite(value)), default=0.0) or 1.0
    rows = ""
    for i, (name, value) in enumerate(entries):
        width = 100 * max(value, 0.0) / longest if math.isfinite(value) else 0.0
        rows += (
            f"<tr{' class=trained' if i == 0 else ''}><th>{escape(_words(name))}</th>"
            f'<td class="track"><span style="width:{width:.1f}%"></span></td><td>{_number(value)}</td></tr>'
        )
    caption = f"{escape(_words(metric))}, {'lower' if lower else 'higher'} is better"
    return f'<table class="bars"><caption>{caption}</caption>{rows}</table>'


def _health_section(series: Sequence[_Series]) -> str:
    verdicts = _verdicts({s.key: s for s in series})
    marks = {"good": "✓", "info": "·", "warn": "!", "bad": "✗"}
    items = "".join(
        f'<li class="{state}"><span class="mark">{marks[state]}</span><span>{escape(text)}</span></li>'
        for state, text in verdicts
    )
    return _section("Health", f'<ul class="card verdicts">{items}</ul>' if items else "")


def _verdicts(by_key: Mapping[str, _Series]) -> list[tuple[str, str]]:
    """What the curves say, in words: (good, info, warn or bad; sentence)."""
    from mc_core.engine.health import SPREAD_FLOOR

    found: list[tuple[str, str]] = []
    if loss := by_key.get("loss"):
        found += _loss_verdicts(loss)
    if spread := by_key.get("health/spread"):
        last, low = spread.finite[-1], min(spread.finite)
        at = _number(spread.steps[spread.values.index(low)])
        if last < SPREAD_FLOOR:
            found.append(
                ("bad", f"The representation has collapsed: all samples have nearly the same features ({last:.4f}).")
            )
        elif last < _NARROW:
            found.append(("warn", f"The features crowd together: spread {last:.2f}, where 1 is even and 0 collapsed."))
        else:
            found.append(("good", f"The features are spread out: {last:.2f}, where 1 is even and 0 collapsed."))
        if last >= SPREAD_FLOOR > low:
            found.append(("warn", f"The representation was collapsed for a while (spread {low:.4f} at step {at})."))
    if rank := by_key.get("health/effective_rank"):
        last, peak = rank.finite[-1], max(rank.finite)
        text = f"About {last:.0f} directions of the feature space are in use"
        text += f", down from {peak:.0f}." if last < 0.9 * peak else "."
        found.append(("bad" if last < 2 else "warn" if last < peak / 2 else "good", text))
    if alignment := by_key.get("health/alignment"):
        text = f"Two views of the same thing are {alignment.finite[-1]:.2f} apart (0 the same, 2 unrelated)."
        found.append(("good" if alignment.finite[-1] < 1 else "warn", text))
    for key, series in by_key.items():
        if key.startswith("health/queue_fill") and series.finite[-1] < 1:
            text = f"The queue ended {series.finite[-1]:.0%} full: it is longer than what this run fed it."
            found.append(("info", text))
    if by_key and not any(key.startswith("health/") for key in by_key):
        found.append(("info", "No health checks were logged; fit.health_every sets how often they are made."))
    return found


def _loss_verdicts(loss: _Series) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    values = loss.finite
    if bad := len(loss.values) - len(values):
        first = next(step for step, value in zip(loss.steps, loss.values, strict=True) if not math.isfinite(value))
        text = (
            f"The loss was not a finite number at {bad} of {len(loss.values)} logged steps, first at {_number(first)}."
        )
        found.append(("bad", text))
    tail = max(1, len(values) // 10)
    start, end = fmean(values[:tail]), fmean(values[-tail:])
    before = fmean(values[-2 * tail : -tail] or values[:tail])
    if len(values) < 2 or start == end:
        found.append(("info", f"The loss is {_number(end)}."))
    elif end > start:
        text = (
            f"The loss rose from {_number(start)} to {_number(end)}, as it may while a queue fills, not for long after."
        )
        found.append(("warn", text))
    else:
        still = len(values) >= _SMOOTH_FROM and before - end > 0.02 * (start - end)
        tail_text = " and was still falling at the end: a longer run may help." if still else "."
        found.append(("good", f"The loss fell from {_number(start)} to {_number(end)}{tail_text}"))
    return found


def _curve_sections(series: Sequence[_Series], folder: Path, notes: list[str]) -> list[str]:
    if not series:
        return []
    try:
        require("matplotlib", extra="mc-core[report]", purpose="draw the curves")
    except MissingDependencyError as error:
        notes.append(f"There are no curves: {error}")
        return []
    width, height = (round(inches * _DPI) for inches in _INCHES)
    names: set[str] = set()
    figures: dict[str, str] = {}
    for s in sorted(series, key=lambda s: _GROUPS.index(s.group)):
        name = re.sub(r"[^a-z0-9]+", "-", s.key.lower()).strip("-")[:80] or "metric"
        while name in names:  # "a/b" beside "a_b"
            name += "-2"
        names.add(name)
        light, dark = _draw(s, _LIGHT), _draw(s, _DARK)
        write_atomic(folder / f"{name}.png", light)
        heading = _HEADINGS[s.group]
        figures[heading] = figures.get(heading, "") + (
            f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data_url(dark, "png")}">'
            f'<img src="{_data_url(light, "png")}" alt="{escape(_description(s))}" width="{width}" height="{height}">'
            "</picture></figure>"
        )
    return [_section(heading, f'<div class="curves">{content}</div>') for heading, content in figures.items()]


def _description(series: _Series) -> str:
    first, last = series.finite[0], series.finite[-1]
    return f"{series.labels[0]}: {_number(first)} at the start, {_number(last)} at the end, {len(series.values)} points"


def _draw(series: _Series, palette: _Palette) -> bytes:
    """One curve as PNG, by matplotlib's objects alone: no global state, safe beside a user's own figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    title, unit = series.labels
    figure = Figure(figsize=_INCHES, dpi=_DPI, facecolor=palette.paper)
    figure.subplots_adjust(left=0.185, right=0.97, bottom=0.18, top=0.89)  # a computed layout would draw it all twice
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=palette.paper)
    smooth = _smoothed(series.values) if series.group == "loss" and len(series.finite) >= _SMOOTH_FROM else None
    color = palette.line if smooth is None else palette.raw
    marker = "o" if len(series.values) < _SMOOTH_FROM else ""
    axes.plot(series.steps, series.values, color=color, linewidth=1.1, marker=marker, markersize=3)
    if smooth is not None:
        axes.plot(series.steps, smooth, color=palette.line, linewidth=1.6)
    axes.set_title(
        _clipped(title, 44), loc="left", x=-0.2, fontsize=9.5, fontweight="bold", color=palette.ink, parse_math=False
    )
    axes.set_xlabel("optimizer step", fontsize=8, color=palette.muted)
    axes.set_ylabel(
        unit if smooth is None else f"{unit} (bold: running mean)", fontsize=8, color=palette.muted, parse_math=False
    )
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))
    axes.tick_params(labelsize=7.5, colors=palette.muted, length=0)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(palette.grid)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a metric named in a script the font lacks
        canvas.print_png(file, metadata={"Software": None})  # same numbers, same bytes
    return file.getvalue()


def _clipped(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _short(value: float) -> str:
    """12,000 as 12k, so that ticks fit the margin."""
    scale, unit = next(
        ((size, unit) for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if size <= abs(value) < 1e12), (1.0, "")
    )
    return f"{value / scale:.5g}{unit}".replace("-", "−")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Centred running mean over a twentieth of the points, over what is there near the ends and around NaN."""
    import numpy as np

    array = np.asarray(values, dtype=np.float64)
    window = np.ones(2 * (len(array) // 40) + 1)
    there = np.isfinite(array)
    total = np.convolve(np.where(there, array, 0.0), window, mode="same")
    count = np.convolve(there.astype(np.float64), window, mode="same")
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0.5).tolist()


def _figures_section(figures: Sequence[tuple[str, StrPath]]) -> str:
    parts = []
    for caption, path in figures:
        try:
            data = Path(path).read_bytes()
            kind = _image_kind(data)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            parts.append(f'<p class="note">{escape(f"{Path(path).name} is not shown: {reason}")}</p>')
            continue
        parts.append(
            f'<figure class="card"><img src="{_data_url(data, kind)}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return _section("Pictures", "".join(parts))


def _image_kind(data: bytes) -> str:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    raise ValueError("neither PNG, JPEG, GIF nor WebP")


def _data_url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _recipe_section(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _section("Recipe", f'<p class="note">This folder has no {path.name}.</p>')
    return _section("Recipe", f"<pre>{escape(text.strip())}</pre>")


_STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --card: #ffffff; --ink: #1c2430; --muted: #5b6675; --line: #e3e6eb;
  --accent: #2f5fd0; --rest: #b4bfd1; --good: #1a7f4b; --warn: #9a6200; --bad: #c0312b; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1217; --card: #181c24; --ink: #e6e9ef; --muted: #98a2b3;
  --line: #2a303b; --accent: #8fb0ff; --rest: #465066; --good: #5fce94; --warn: #e8b04a; --bad: #ff8078; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { margin: 0; font-size: clamp(1.6rem, 4.5vw, 2.3rem); line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere; }
h2 { margin: 36px 0 12px; font-size: 1.1rem; letter-spacing: -.01em; }
header p { margin: 8px 0 0; color: var(--muted); overflow-wrap: anywhere; }
.card, pre, .curves figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; }
.card { padding: 18px 20px; }
.note { margin: 12px 0; padding: 10px 14px; border-left: 3px solid var(--warn); background: var(--card);
  border-radius: 4px; overflow-wrap: anywhere; }
.headline { margin: 0 0 14px; font-size: 1.15rem; }
.headline strong { color: var(--accent); }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0; text-align: left; vertical-align: top; font-weight: 400; overflow-wrap: anywhere; }
th { width: 24%; padding-right: 16px; color: var(--muted); }
tr + tr > * { border-top: 1px solid var(--line); }
.bars + table { margin-top: 16px; border-top: 1px solid var(--line); }
.bars tr > * { border: 0; vertical-align: middle; }
.bars caption { caption-side: bottom; padding-top: 6px; text-align: left; color: var(--muted); font-size: .85rem; }
.bars td:last-child { width: 5.5em; padding-left: 14px; text-align: right; }
.track span { display: block; height: 16px; min-width: 2px; border-radius: 4px; background: var(--rest); }
.trained span { background: var(--accent); }
.trained th, .trained td { color: var(--ink); font-weight: 650; }
.verdicts { margin: 0; list-style: none; }
.verdicts li { display: flex; gap: 12px; padding: 4px 0; }
.mark { flex: none; width: 1em; font-weight: 700; text-align: center; }
.good .mark { color: var(--good); } .warn .mark { color: var(--warn); } .bad .mark { color: var(--bad); }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; } figure.card { margin-bottom: 14px; }
.curves figure { padding: 10px; }
img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { margin-top: 10px; color: var(--muted); font-size: .9rem; overflow-wrap: anywhere; }
pre { margin: 0; padding: 16px 18px; overflow-x: auto; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
@media (max-width: 560px) { main { padding: 24px 14px 40px; } .card { padding: 14px; } th { width: 36%; }
  .bars td:last-child { width: 4em; } }
@media print { body { background: none; } section { break-inside: avoid; } }
"""

# The policy lets the browser refuse whatever escaping might have missed: no script runs, nothing is fetched.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>{subtitle}</p></header>
{body}
</main>
</body>
</html>
"""
