"""Pictures for the report: encoders beside one another, neighbours of a few sentences, cosine and length."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mc_core.files import atomic_path
from mc_text_code.evaluation.vectors import Encode, encode_texts, normalized
from mc_text_code_app.measure import TRAINED, Measured, heading, label

# Okabe and Ito's colours, which colour-blind eyes tell apart
BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#999999"
_SHOWN, _NEAR, _WIDTH = 6, 3, 96
_MOST = 4_000


def pyplot() -> Any:
    """matplotlib's, drawing into files."""
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


def compared(found: Measured, path: Path) -> Path:
    """A panel for each figure, a bar for each encoder."""
    names = found.figures()
    figure, axes = pyplot().subplots(1, len(names), figsize=(3.4 * len(names), 2.4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        rows = {encoder: row[name] for encoder, row in found.rows.items() if np.isfinite(row.get(name, np.nan))}
        for place, (encoder, value) in enumerate(rows.items()):
            axis.barh(place, value, color=BLUE if encoder == TRAINED else GRAY, height=0.6)
            axis.annotate(
                f"{value:.3g}",
                (value, place),
                va="center",
                ha="left" if value >= 0 else "right",
                fontsize=8,
                xytext=(3 if value >= 0 else -3, 0),
                textcoords="offset points",
            )
        axis.set_yticks(range(len(rows)), [label(encoder) for encoder in rows], fontsize=8)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.tick_params(axis="x", labelsize=8)
        axis.set_title(heading(name), fontsize=9)
    figure.tight_layout()
    return save(figure, path)


def neighbours(encode: Encode, texts: Sequence[str], path: Path, *, seed: int) -> Path:
    """A few sentences, each with the nearest of the others and their cosines."""
    texts = list(dict.fromkeys(texts))[:_MOST]
    rows = np.random.default_rng(seed).permutation(len(texts))[: min(_SHOWN, len(texts))]
    vectors = normalized(encode_texts(encode, texts))
    cosine = np.asarray(vectors[rows] @ vectors.T)
    cosine[np.arange(len(rows)), rows] = -np.inf
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, : min(_NEAR, len(texts) - 1)]
    lines: list[tuple[str, str, str]] = []
    for number, row in enumerate(rows):
        lines.append(("", _short(texts[row]), "query"))
        lines += [(f"{cosine[number, near]:.2f}", _short(texts[near]), "near") for near in nearest[number]]
    figure, axis = pyplot().subplots(figsize=(9, 0.235 * len(lines) + 0.2))
    axis.set_axis_off()
    axis.set_xlim(0, 1)
    axis.set_ylim(len(lines), -0.5)
    for place, (value, text, kind) in enumerate(lines):
        style = {"fontsize": 9, "va": "center", "parse_math": False}
        if kind == "query":
            axis.text(0.0, place, text, color=BLUE, fontweight="bold", **style)
        else:
            axis.text(0.02, place, value, color=GRAY, **style)
            axis.text(0.07, place, text, color="black", **style)
    return save(figure, path)


def _short(text: str) -> str:
    return textwrap.shorten(text, _WIDTH, placeholder=" …")


def lengths(encode: Encode, texts: Sequence[str], path: Path, *, seed: int, pairs: int = 20_000) -> Path:
    """Mean cosine of random pairs against the difference of their lengths in words: flat where length does not show."""
    texts = list(dict.fromkeys(texts))[:_MOST]
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, len(texts), (2, pairs))
    kept = first != second
    first, second = first[kept], second[kept]
    vectors = normalized(encode_texts(encode, texts))
    cosine = np.einsum("nd,nd->n", vectors[first], vectors[second])
    words = np.array([len(text.split()) for text in texts])
    apart = np.abs(words[first] - words[second])
    figure, axis = pyplot().subplots(figsize=(6, 2.8))
    shown = [step for step in range(int(np.quantile(apart, 0.98)) + 1) if (apart == step).sum() >= 20]
    middle = np.array([cosine[apart == step].mean() for step in shown])
    spread = np.array([cosine[apart == step].std() for step in shown])
    axis.fill_between(shown, middle - spread, middle + spread, color=BLUE, alpha=0.15, linewidth=0)
    axis.plot(shown, middle, color=BLUE)
    axis.set_xlabel("difference of lengths, words")
    axis.set_ylabel("cosine, mean ± sd")
    figure.tight_layout()
    return save(figure, path)
