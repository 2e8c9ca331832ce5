"""Captions against those that people wrote: BLEU-1 … BLEU-4, ROUGE-L and CIDEr-D.

The scores are those of the COCO caption evaluation, computed by its Python scorers (package ``pycocoevalcap``). Its tokenizer, of
Stanford, needs Java; words are found here by a pattern instead: lower case, no punctuation, ``dog's`` as ``dog`` and ``'s``.
Figures can therefore differ a little from those of the official script. METEOR and SPICE, which are Java programs, are not offered.

Sources: Papineni et al. 2002 (BLEU); Lin 2004 (ROUGE); Vedantam et al. 2015, arXiv:1411.5726 (CIDEr-D); Chen et al. 2015,
arXiv:1504.00325 (COCO captions).

Legend: M pictures.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.errors import DataError
from mc_core.optional import require

_WORDS = re.compile(r"\w+?(?=n't\b)|n't\b|'(?:s|m|d|ll|re|ve)\b|\d+(?:[.,]\d+)+|\w+(?:-\w+)*")
_ORDERS = 4
_EXTRA = "mc-vision-language[metrics]"


@dataclass(frozen=True)
class CaptionScores:
    """What :func:`caption_scores` returns; higher is better.

    Attributes:
        bleu: BLEU-1, -2, -3, -4 of the whole set, in [0, 1].
        rouge_l: mean over the pictures, in [0, 1].
        cider_d: mean over the pictures, in [0, 10].
        cider_each: (M,) of each picture.
        rouge_each: (M,) of each picture.
    """

    bleu: tuple[float, float, float, float]
    rouge_l: float
    cider_d: float
    cider_each: np.ndarray
    rouge_each: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the figures of the whole set."""
        orders = {f"bleu_{order}": value for order, value in enumerate(self.bleu, start=1)}
        return {**orders, "rouge_l": self.rouge_l, "cider_d": self.cider_d, "pictures": len(self.cider_each)}


def words_of(text: str) -> str:
    """The words of a caption in lower case with one blank between them, without punctuation.

    >>> words_of("Two well-known dogs -- the dog's bone, isn't it?"), words_of("2.5 m, 10,000 men!")
    ("two well-known dogs the dog 's bone is n't it", '2.5 m 10,000 men')
    """
    return " ".join(_WORDS.findall(text.lower().replace("’", "'")))


def caption_scores(predicted: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Score one caption for each picture against its references.

    CIDEr-D weighs n-grams by how few pictures have them in a reference, counted on the references given: figures of different sets
    do not compare, and with one picture alone it is 0.

    Args:
        predicted: M captions; an empty one scores 0.
        references: M lists of captions, each with at least one.

    Raises:
        DataError: another number of captions than pictures, none at all, or a picture without a reference.
        MissingDependencyError: ``pycocoevalcap`` is not installed.

    >>> found = caption_scores(["a red house", "a boat"], [["a red house"], ["a green boat", "a boat"]])
    >>> round(found.bleu[0], 3), found.rouge_l
    (1.0, 1.0)
    """
    if len(predicted) != len(references):
        raise DataError(f"{len(predicted)} captions for {len(references)} pictures: give one for each")
    if not len(predicted):
        raise DataError("no captions to score")
    written = [[words for one in given if (words := words_of(one))] for given in references]
    bare = next((row for row, given in enumerate(written) if not given), None)
    if bare is not None:
        raise DataError(f"picture {bare} has no reference caption with a word in it: leave it out")
    true = dict(enumerate(written))
    made = {row: [words_of(one)] for row, one in enumerate(predicted)}
    bleu, _ = _scorer("bleu", "Bleu")(_ORDERS).compute_score(true, made, verbose=0)
    rouge, rouge_each = _scorer("rouge", "Rouge")().compute_score(true, made)
    cider, cider_each = _scorer("cider", "Cider")().compute_score(true, made)
    return CaptionScores(
        (float(bleu[0]), float(bleu[1]), float(bleu[2]), float(bleu[3])),
        float(rouge),
        float(cider),
        np.asarray(cider_each, dtype=np.float64),
        np.asarray(rouge_each, dtype=np.float64),
    )


def _scorer(module: str, name: str) -> Any:
    require("pycocoevalcap", extra=_EXTRA, purpose="score captions")
    return getattr(importlib.import_module(f"pycocoevalcap.{module}.{module}"), name)
