"""What the demo page shows, without the page: a radiograph, its scores, the nearest reports, and where a phrase is found.

Reports come from the studies that the user opened the page with, from nowhere else; a run folder holds none.

Legend: N images shown, R different reports, C findings, S side of the stored squares, d width of the shared space.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mc_core.errors import BadSampleError, DataError
from mc_core.modules import evaluating
from mc_medical.data.radiograph import read_radiograph, square
from mc_medical.evaluation import Interval, area_interval, binary_probabilities, overlay, phrase_map
from mc_medical.labels import resolve_labels
from mc_medical.prompts import Prompts, default_prompts, ensemble, phrase_vectors, resampled
from mc_medical.training import Cohort
from mc_medical_app.runs import OpenedRun

SHOWN = 1000
SIDE = 512
NEAREST = 5
_DRAWS = 200
_LEAST_CLASS = 3  # an AUROC of fewer studies says nothing
_SAID = {1.0: "present", 0.0: "absent", -1.0: "uncertain"}


@dataclass(frozen=True)
class Shown:
    """A radiograph on the page.

    Attributes:
        pixels: (S, S) uint8, padded to a square.
        vector: (d,) of length one, of the model.
        row: its place among the studies of the page; None for an upload.
        notes: what was doubtful when it was read.
    """

    pixels: np.ndarray
    vector: np.ndarray
    row: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """A zero-shot score.

    Attributes:
        finding: name.
        probability: softmax(κ [s⁺, s⁻])₁ of the whole ensemble of phrases.
        low: 2.5th percentile over redrawn phrases.
        high: 97.5th percentile.
        said: what the report of the image says: present, absent, uncertain, not mentioned; empty for an upload.
        auroc: over the studies of the page, with an interval over patients; None without labels of both kinds.
    """

    finding: str
    probability: float
    low: float
    high: float
    said: str
    auroc: Interval | None


@dataclass(frozen=True)
class Near:
    """A report near an image.

    Attributes:
        text: of the report.
        similarity: cosine.
        own: whether it is the image's own.
        studies: how many images of the page have this very report.
    """

    text: str
    similarity: float
    own: bool
    studies: int


class Viewer:
    """A model and the studies to look at.

    Args:
        opened: run or saved model.
        cohort: studies to look at; None: uploads alone, and no reports.
        name: of the studies, for people.
        prompts: phrases; default: those shipped for CheXpert's observations.
        limit: images at most, evenly chosen.

    Raises:
        ConfigError: the model has no tokenizer.
    """

    def __init__(
        self,
        opened: OpenedRun,
        cohort: Cohort | None,
        *,
        name: str = "",
        prompts: Prompts | None = None,
        limit: int = SHOWN,
    ) -> None:
        self.opened, self.model, self.name = opened, opened.model, name
        if cohort is not None and len(cohort) > limit:
            cohort = cohort.take(np.linspace(0, len(cohort) - 1, limit).round().astype(np.int64))
        self.cohort = cohort
        self.prompts = prompts or default_prompts()
        positive, negative = phrase_vectors(self.prompts, self.model.encode_text)
        self.findings = self.prompts.names
        self._positive, self._negative = (
            np.stack([ensemble(v) for v in side.values()]) for side in (positive, negative)
        )
        # (draws, C, d) each: the same ensembles for every image
        self._redrawn = [
            np.stack([resampled(v, _DRAWS, seed=i) for i, v in enumerate(side.values())], axis=1)
            for side in (positive, negative)
        ]
        self.texts: list[str] = []
        self._report_of = np.zeros(0, dtype=np.int64)
        self._auroc: dict[str, Interval] = {}
        self._images = np.zeros((0, self.model.config.dim), dtype=np.float32)
        if cohort is not None:
            images = self._images = self.model.encode_image(cohort.pixels.pixels)
            self._index_reports(cohort)
            self._auroc = self._areas(cohort, images)
        self._reports = self.model.encode_text(self.texts) if self.texts else None

    def _index_reports(self, cohort: Cohort) -> None:
        """Each wording once."""
        place: dict[str, int] = {}
        self._report_of = np.array(
            [place.setdefault(t, len(place)) if t else -1 for t in cohort.studies.reports], dtype=int
        )
        self.texts = list(place)

    def _areas(self, cohort: Cohort, images: np.ndarray) -> dict[str, Interval]:
        """Finding → AUROC over the studies, where there are labels of both kinds."""
        studies = cohort.studies
        if not studies.label_names:
            return {}
        labels = resolve_labels(studies.labels, studies.label_names)
        probability = binary_probabilities(images, self._positive, self._negative, self.model.kappa)
        found = {}
        for place, name in enumerate(self.findings):
            if name not in studies.label_names:
                continue
            truth = labels[:, studies.label_names.index(name)]
            known = ~np.isnan(truth)
            if min((truth == 1).sum(), (truth == 0).sum()) >= _LEAST_CLASS:
                score, who = probability[known, place], studies.patients[known]
                found[name] = area_interval("auroc", truth[known], score, who, draws=_DRAWS)
        return found

    def choices(self) -> list[tuple[str, int]]:
        """(words, row) of each image: its row in the source, its view, never an id."""
        if self.cohort is None:
            return []
        studies = self.cohort.studies
        return [
            (" · ".join(part for part in (f"{studies.unit} {number}", view) if part), row)
            for row, (number, view) in enumerate(zip(studies.rows.tolist(), studies.views.tolist(), strict=True))
        ]

    def shown(self, row: int) -> Shown:
        """An image of the studies."""
        if self.cohort is None:
            raise DataError("there are no studies here; give a file")
        return Shown(self.cohort.pixels.rows(np.array([row]))[0], self._images[row], row)

    def upload(self, path: str | Path) -> Shown:
        """A file of the visitor's.

        Raises:
            BadSampleError: it is no radiograph; the message names no path.
        """
        radiograph = read_radiograph(path, self.opened.image, name="your file")
        if radiograph.frontal is False and self.opened.image.views == "frontal":
            raise BadSampleError("your file", f"a {radiograph.view} view; this model was trained on frontal ones")
        pixels = square(radiograph.pixels, self.opened.image.size)
        return Shown(pixels, self.model.encode_image(pixels[None])[0], None, radiograph.notes)

    def picture(self, shown: Shown) -> Image.Image:
        """The radiograph, enlarged."""
        return Image.fromarray(shown.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)

    def scores(self, shown: Shown) -> list[Score]:
        """Of all findings, in the order of the prompts."""
        image = shown.vector[None]
        kappa, count = self.model.kappa, len(self.findings)
        probability = binary_probabilities(image, self._positive, self._negative, kappa)[0]
        up, down = (vectors.reshape(_DRAWS * count, -1) for vectors in self._redrawn)
        redrawn = binary_probabilities(image, up, down, kappa)[0].reshape(_DRAWS, count)
        low, high = np.quantile(redrawn, [0.025, 0.975], axis=0)
        return [
            Score(name, float(p), float(a), float(b), self._said(shown, name), self._auroc.get(name))
            for name, p, a, b in zip(self.findings, probability, low, high, strict=True)
        ]

    def _said(self, shown: Shown, name: str) -> str:
        if shown.row is None or self.cohort is None or name not in self.cohort.studies.label_names:
            return ""
        studies = self.cohort.studies
        return _SAID.get(float(studies.labels[shown.row, studies.label_names.index(name)]), "not mentioned")

    def nearest(self, shown: Shown, count: int = NEAREST) -> list[Near]:
        """The reports most similar to the image, each wording once."""
        if self._reports is None:
            return []
        cosine = self._reports @ shown.vector
        own = -1 if shown.row is None else int(self._report_of[shown.row])
        order = np.argsort(-cosine, kind="stable")[:count]
        counts = np.bincount(self._report_of[self._report_of >= 0], minlength=len(self.texts))
        return [Near(self.texts[i], float(cosine[i]), i == own, int(counts[i])) for i in order.tolist()]

    def own_report(self, shown: Shown) -> str:
        """Of the image itself; empty where there is none."""
        return "" if shown.row is None or self.cohort is None else self.cohort.studies.reports[shown.row]

    def own_rank(self, shown: Shown) -> tuple[int, int] | None:
        """(rank of the image's own report, number of different reports); equals stand before it."""
        if self._reports is None or shown.row is None or (own := int(self._report_of[shown.row])) < 0:
            return None
        cosine = self._reports @ shown.vector
        return int((cosine >= cosine[own]).sum()), len(self.texts)

    def similarity(self, shown: Shown, phrase: str) -> np.ndarray:
        """(h, w) cosines of a phrase and the image's patches.

        Raises:
            DataError: no phrase.
        """
        phrase = " ".join(phrase.split())
        if not phrase:
            raise DataError("write a phrase first, such as “left pleural effusion”")
        with torch.inference_mode(), evaluating(self.model):
            patches = self.model.patch_embeddings(self.model.prepare(shown.pixels[None]))[0]
        return phrase_map(patches.float().cpu().numpy(), self.model.encode_text([phrase])[0])

    def map_picture(self, shown: Shown, phrase: str) -> tuple[Image.Image, str]:
        """The radiograph with the places most like a phrase in colour, and a line that says on what scale."""
        found = self.similarity(shown, phrase)
        large = np.asarray(self.picture(shown), dtype=np.float32) / 255
        rows, columns = found.shape
        line = (
            f"Cosines of {rows} × {columns} patches from {found.min():.2f} to {found.max():.2f}; coloured from their median, "
            f"{np.median(found):.2f}, upwards. It shows what the model compares, which need not be where a finding is."
        )
        return Image.fromarray(overlay(large, found)), line


def score_table(scores: Sequence[Score]) -> str:
    """HTML: a bar for each score, its range over wordings, what the report says, and the AUROC behind it."""
    labelled, measured = any(s.said for s in scores), any(s.auroc for s in scores)
    heads = ["finding", "score", "", *(["its report"] if labelled else []), *(["AUROC here"] if measured else [])]
    rows = []
    for s in scores:
        bar = (
            '<div style="position:relative;height:14px;min-width:110px;background:rgba(128,128,128,.18)">'
            f'<div style="position:absolute;height:14px;width:{100 * s.probability:.1f}%;background:#3b7dd8"></div>'
            f'<div style="position:absolute;top:6px;height:2px;left:{100 * s.low:.1f}%;width:{100 * (s.high - s.low):.1f}%;'
            'background:#d9822b"></div></div>'
        )
        cells = [html.escape(s.finding), bar, f"{s.probability:.2f} ({s.low:.2f}–{s.high:.2f})"]
        if labelled:
            said = html.escape(s.said)
            cells.append(
                f"<b>{said}</b>" if s.said in ("present", "uncertain") else f'<span style="opacity:.6">{said}</span>'
            )
        if measured:
            cells.append("" if s.auroc is None else _area(s.auroc))
        rows.append("<tr>" + "".join(f'<td style="padding:2px 8px">{cell}</td>' for cell in cells) + "</tr>")
    head = "".join(f'<th style="padding:2px 8px;text-align:left">{name}</th>' for name in heads)
    return f'<table style="width:100%;border-collapse:collapse;font-size:.9em"><tr>{head}</tr>{"".join(rows)}</table>'


def _area(interval: Interval) -> str:
    ends = "" if interval.low is None else f" ({interval.low:.2f}–{interval.high:.2f})"
    return f"{interval.value:.2f}{ends}"


def report_list(near: Sequence[Near]) -> str:
    """HTML: reports with their cosines; their text is shown as text, whatever it holds."""
    if not near:
        return "<p>No reports: the studies of this page have none.</p>"
    items = []
    for one in near:
        marks = ["this image's own report"] if one.own else []
        marks += [f"same words in {one.studies} images"] if one.studies > 1 else []
        extra = f" · <b>{' · '.join(marks)}</b>" if marks else ""
        text = _as_text(one.text)
        border = "#2e9e5b" if one.own else "rgba(128,128,128,.4)"
        items.append(
            f'<div class="report" style="border-left:4px solid {border};padding:4px 10px;margin:6px 0">'
            f"cosine {one.similarity:.3f}{extra}<br>{text}</div>"
        )
    return "".join(items)


def own_report(text: str) -> str:
    """HTML: the report of the image itself; nothing where there is none."""
    return f"<details><summary>This image's own report</summary>{_as_text(text)}</details>" if text else ""


def _as_text(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def default_phrase(viewer: Viewer, shown: Shown) -> str:
    """A phrase to begin with: a finding that the report has, else the one with the highest score."""
    scores = [s for s in viewer.scores(shown) if s.finding not in ("No Finding", "Support Devices", "Lung Opacity")]
    said = [s for s in scores if s.said == "present"]
    best = max(said or scores, key=lambda s: s.probability)
    return best.finding.lower()
