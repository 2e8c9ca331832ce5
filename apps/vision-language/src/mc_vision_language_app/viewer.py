"""What the demo page shows, without the page: pictures found, answers about one of them, and where a phrase is in it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from mc_core.errors import BadSampleError, DataError
from mc_vision_language.data import ImageSet, read_image
from mc_vision_language.model import VisionLanguageModel
from mc_vision_language.search import CaptionHit, Hit, SearchIndex, captions_for
from mc_vision_language.tasks.grounding import ground
from mc_vision_language.tasks.vqa import VQAModel

FOUND = 12
ANSWERS = 5
SIDE = 512
MOST_SENTENCES = 100
_LONGEST = 1024  # a larger upload is made smaller at once: the model sees less of it anyway
_HEAT = np.array([230, 30, 30], dtype=np.float32)
_BOX = (255, 255, 0)


@dataclass(frozen=True)
class Shown:
    """A picture on the page.

    Attributes:
        picture: RGB.
        name: path or key; for an upload what to call it.
        row: in the set of the page; None for an upload.
    """

    picture: Image.Image
    name: str
    row: int | None = None


class Viewer:
    """A model with pictures to search among.

    Args:
        model: pretrained, or trained further on phrases.
        images: what the index was built of.
        index: of these images.
        name: of the images, for people.
        vqa: answers questions; None: the page says that it does not.
        captions: of the images, one each, where they are known: examples to begin with.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        images: ImageSet,
        index: SearchIndex,
        *,
        name: str,
        vqa: VQAModel | None = None,
        captions: Sequence[str] = (),
    ) -> None:
        self.model, self.images, self.index, self.name = model, images, index, name
        self.vqa, self.captions = vqa, tuple(captions)
        place = {images.name(row): row for row in range(len(images))}
        self._rows = [place[name] for name in index.files.names]

    def search(self, text: str) -> list[Hit]:
        """The pictures that fit a sentence best, the row being that of the set; without words the first ones, unscored."""
        text = " ".join(text.split())
        if not text:
            names = self.index.files.names[:FOUND]
            return [Hit(row, name, math.nan, None) for row, name in zip(self._rows[:FOUND], names, strict=True)]
        found = self.index.search(text, FOUND)
        return [Hit(self._rows[hit.row], hit.name, hit.cosine, hit.match) for hit in found]

    def shown(self, row: int) -> Shown:
        """A picture of the set.

        Raises:
            DataError: no such picture, or it cannot be read any more.
        """
        if not 0 <= row < len(self.images):
            raise DataError("choose a picture first")
        return Shown(self.images.read(row), self.images.name(row), row)

    def upload(self, path: str | Path) -> Shown:
        """A picture of the visitor's. Errors do not say where it lies.

        Raises:
            BadSampleError: it is no picture.
        """
        picture = read_image(path, min_side=_LONGEST, name="your file")
        picture.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
        return Shown(picture, "your file")

    def answers(self, shown: Shown, question: str) -> list[tuple[str, float]]:
        """The most likely answers, with their probabilities.

        Raises:
            DataError: no question, or a model that answers none.
        """
        question = " ".join(question.split())
        if self.vqa is None:
            raise DataError("this page answers no questions: open it with --vqa and a run of finetune --task vqa")
        if not question:
            raise DataError("write a question first, such as “what color is it?”")
        if not self.vqa.answers:
            return [(self.vqa.generate([shown.picture], [question])[0], math.nan)]
        (found,) = self.vqa.scored([shown.picture], [question], top=ANSWERS)
        return [(answer, math.exp(score)) for answer, score in found]

    def fitting(self, shown: Shown, text: str) -> list[CaptionHit]:
        """The sentences of a text, one a line, as they fit the picture, best first.

        Raises:
            DataError: no sentence, or too many.
        """
        sentences = list(dict.fromkeys(" ".join(line.split()) for line in text.splitlines() if line.strip()))
        if not sentences:
            raise DataError("write sentences first, one a line")
        if len(sentences) > MOST_SENTENCES:
            raise DataError(f"{len(sentences)} sentences: the page takes up to {MOST_SENTENCES}")
        again = len(sentences) if self.model.config.matching else 0
        return captions_for(self.model, shown.picture, sentences, len(sentences), rerank=again)

    def where(self, shown: Shown, phrase: str) -> tuple[Image.Image, str]:
        """The picture with the places that speak for a phrase in red and a box around them, and a line about it.

        Raises:
            DataError: no phrase.
        """
        phrase = " ".join(phrase.split())
        if not phrase:
            raise DataError("write a phrase first, such as “the red car”")
        found = ground(self.model, shown.picture, phrase, mode="itm" if self.model.config.matching else "itc")
        box = ", ".join(f"{value:.0f}" for value in found.box)
        warm = "around what is warm" if found.heat.max() > 0 else "all of it, as nothing in it speaks for the phrase"
        return overlay(shown.picture, found.heat, found.box), (
            f"Box {box} of {shown.picture.width} × {shown.picture.height} pixels, {warm}. The map shows what the "
            "model looks at when it compares picture and phrase (Grad-CAM), also where the phrase is not in the picture."
        )


def enlarged(picture: Image.Image) -> Image.Image:
    """The picture with its longer side at ``SIDE`` pixels; few pixels stay squares."""
    scale = SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 3 else Image.Resampling.LANCZOS)


def overlay(picture: Image.Image, heat: np.ndarray, box: Sequence[float]) -> Image.Image:
    """The enlarged picture, red where a map is high, with a box.

    Args:
        picture: W × H pixels.
        heat: (H, W), 0 or more.
        box: x1, y1, x2, y2 in pixels of the picture.
    """
    large = enlarged(picture)
    top = float(heat.max())
    warm = Image.fromarray(heat / top if top > 0 else heat).resize(large.size, Image.Resampling.BICUBIC)
    alpha = 0.65 * np.clip(np.asarray(warm, dtype=np.float32), 0, 1)[..., None]
    mixed = Image.fromarray(
        np.round(np.asarray(large, dtype=np.float32) * (1 - alpha) + _HEAT * alpha).astype(np.uint8)
    )
    scale_x, scale_y = large.width / picture.width, large.height / picture.height
    corners = (box[0] * scale_x, box[1] * scale_y, box[2] * scale_x - 1, box[3] * scale_y - 1)
    ImageDraw.Draw(mixed).rectangle(corners, outline=_BOX, width=3)
    return mixed


def answer_table(found: Sequence[tuple[str, float]]) -> str:
    """HTML: answers with bars; they are shown as text, whatever they hold."""
    rows = []
    for answer, probability in found:
        bar = "" if math.isnan(probability) else _bar(probability)
        told = "" if math.isnan(probability) else f"{probability:.2f}" if probability >= 0.005 else "below 0.01"
        rows.append(_row(html.escape(answer), bar, told))
    return f'<table style="width:100%;border-collapse:collapse">{"".join(rows)}</table>'


def sentence_table(found: Sequence[CaptionHit]) -> str:
    """HTML: sentences with cosine and logit of a match, best first."""
    rows = [
        _row(html.escape(hit.text), f"cosine {hit.cosine:.2f}", "" if hit.match is None else f"match {hit.match:+.1f}")
        for hit in found
    ]
    return f'<table style="width:100%;border-collapse:collapse">{"".join(rows)}</table>'


def hit_label(hit: Hit) -> str:
    """What stands below a picture that was found: its match, or its cosine where it was not ranked again, then its name.

    The page cuts what has no room.
    """
    name = Path(hit.name).name
    if hit.match is not None:
        return f"{hit.match:+.1f} · {name}"
    return name if math.isnan(hit.cosine) else f"{hit.cosine:.2f} · {name}"


def hit_line(hit: Hit) -> str:
    """The same in full, for Markdown."""
    name = f"`{hit.name.replace('`', '')}`"
    if math.isnan(hit.cosine):
        return name
    return f"{name} · cosine {hit.cosine:.2f}" + ("" if hit.match is None else f" · match {hit.match:+.1f}")


def readable(viewer: Viewer, hits: Sequence[Hit]) -> list[tuple[Hit, Image.Image]]:
    """Those found whose pictures can still be read."""
    found = []
    for hit in hits:
        try:
            found.append((hit, viewer.shown(hit.row).picture))
        except BadSampleError:  # deleted or changed since the index was built
            continue
    return found


def _bar(share: float) -> str:
    return (
        '<div style="height:14px;min-width:110px;background:rgba(128,128,128,.18)">'
        f'<div style="height:14px;width:{100 * share:.1f}%;background:#3b7dd8"></div></div>'
    )


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f'<td style="padding:2px 8px">{cell}</td>' for cell in cells) + "</tr>"
