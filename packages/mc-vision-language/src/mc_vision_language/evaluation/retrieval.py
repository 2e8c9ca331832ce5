"""Retrieval of captions by picture and of pictures by caption: by cosine, and with the best candidates ranked again by matching.

ALBEF, section 6 of its method page: the k candidates of each query with the largest cosines are ordered by the logit of a match;
all others stay behind them.

Legend: N pictures, M captions, Q queries of a block, K candidates of a query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.evaluation.ranking import (
    RANKS,
    Recalls,
    RightAnswers,
    best_ranks,
    chance_recall,
    recalls,
    reranked_ranks,
    shortlist,
)
from mc_vision_language.gallery import BATCH, Captions, Gallery, score_pairs
from mc_vision_language.model import VisionLanguageModel

CANDIDATES = 128
"""Ranked again for each query in the paper on Flickr30K; 256 on COCO."""
_BLOCK = 1 << 24  # scores of a block of queries


@dataclass(frozen=True)
class RetrievalResult:
    """What :func:`retrieval` returns; recalls are shares in [0, 1].

    Attributes:
        contrast: by cosine alone (ITC).
        reranked: with the best k of each query ranked again by matching (ITM); None where that was not asked for.
        matching: by matching over all candidates; None where that was not asked for.
        chance: recall at 1, 5, 10 of candidates in random order: of pictures, then of captions.
        k: candidates ranked again, at most as many as there are.
        images: N.
        captions: M.
    """

    contrast: Recalls
    reranked: Recalls | None
    matching: Recalls | None
    chance: tuple[float, ...]
    k: int
    images: int
    captions: int

    @property
    def best(self) -> Recalls:
        """What a user gets: re-ranked where it was measured, else by cosine."""
        return self.reranked or self.contrast

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {
            name: one.to_dict()
            for name in ("contrast", "reranked", "matching")
            if (one := getattr(self, name)) is not None
        }
        return found | {
            "chance": list(self.chance),
            "chance_mean": float(np.mean(self.chance)),
            "k": self.k,
            "images": self.images,
            "captions": self.captions,
        }


def retrieval(
    model: VisionLanguageModel,
    pairs: Pairs,
    *,
    k: int = CANDIDATES,
    rerank: bool | None = None,
    everything: bool = False,
    add_cosine: bool = False,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = BATCH,
) -> RetrievalResult:
    """Measure retrieval on all pictures and captions of ``pairs``.

    A caption with the words of one that was written for the same picture is a right answer too, and so is an equal picture.

    Args:
        model: with a tokenizer.
        pairs: those held out.
        k: candidates of each query that are ranked again; more than there are means all.
        rerank: whether to rank again; default: where the model learned matching.
        everything: also rank by matching alone, over all candidates: N × M passes through the fusion layers.
        add_cosine: add the cosine to the logit of a match, as BLIP and LAVIS do; the paper does not.
        draws: resamples of pictures for the intervals; 0: none.
        seed: of the resamples.
        batch_size: pictures encoded together.

    Raises:
        DataError: a picture without captions, or none at all. ConfigError: k below 1, a model without tokenizer, or without
            matching where it is asked for.
        BadSampleError: a picture that cannot be read.
    """
    if k < 1:
        raise ConfigError(f"k={k}: rank at least one candidate again")
    rerank = model.config.matching if rerank is None else rerank
    if rerank or everything:
        model.need_matching()
    count, texts = len(pairs), len(pairs.captions)
    if not texts or not np.bincount(pairs.image_of, minlength=count).all():
        raise DataError(f"{pairs.location}: retrieval needs pictures with captions, each at least one")
    right = RightAnswers(pairs.image_ids, pairs.text_ids, pairs.image_of)
    gallery = Gallery(model, pairs.images, batch_size=batch_size)
    captions = Captions(model, pairs.captions)
    ways = (
        _Way(gallery.features, captions.features, right.texts_of, images_ask=True),
        _Way(captions.features, gallery.features, right.images_of, images_ask=False),
    )
    ranks: dict[str, list[np.ndarray]] = {"contrast": [way.contrast() for way in ways]}
    full = _all_scores(gallery, captions) if everything else None
    if full is not None:
        ranks["matching"] = [way.matching(matrix, add_cosine) for way, matrix in zip(ways, (full, full.T), strict=True)]
    if rerank:
        lists = [way.candidates(k) for way in ways]
        scores = _candidate_scores(gallery, captions, lists, full)
        ranks["reranked"] = [
            way.reranked(chosen, match, add_cosine) for way, chosen, match in zip(ways, lists, scores, strict=True)
        ]
    group = right.image_group
    found = {
        name: recalls(both[0], both[1], group, group[pairs.image_of], draws=draws, seed=seed)
        for name, both in ranks.items()
    }
    chance = tuple(chance_recall(way.right_counts(), len(way.others), one) for way in ways for one in RANKS)
    return RetrievalResult(
        found["contrast"], found.get("reranked"), found.get("matching"), chance, min(k, max(count, texts)), count, texts
    )


class _Way:
    """One direction, block by block: queries, what they look for, and which answers are right."""

    def __init__(self, queries: np.ndarray, others: np.ndarray, right: Any, *, images_ask: bool) -> None:
        self.queries, self.others, self.right, self.images_ask = queries, others, right, images_ask
        pace = max(1, _BLOCK // len(others))
        self._blocks = [np.arange(i, min(i + pace, len(queries))) for i in range(0, len(queries), pace)]

    def _cosines(self, rows: np.ndarray) -> np.ndarray:
        return self.queries[rows] @ self.others.T

    def right_counts(self) -> np.ndarray:
        return np.concatenate([self.right(rows).sum(axis=1) for rows in self._blocks])

    def contrast(self) -> np.ndarray:
        return np.concatenate([best_ranks(self._cosines(rows), self.right(rows)) for rows in self._blocks])

    def matching(self, scores: np.ndarray, add_cosine: bool) -> np.ndarray:
        return np.concatenate(
            [
                best_ranks(scores[rows] + (self._cosines(rows) if add_cosine else 0), self.right(rows))
                for rows in self._blocks
            ]
        )

    def candidates(self, k: int) -> np.ndarray:
        return np.concatenate([shortlist(self._cosines(rows), k) for rows in self._blocks])

    def reranked(self, candidates: np.ndarray, match: np.ndarray, add_cosine: bool) -> np.ndarray:
        found = []
        for rows in self._blocks:
            cosines = self._cosines(rows)
            added = np.take_along_axis(cosines, candidates[rows], axis=1) if add_cosine else 0
            found.append(reranked_ranks(cosines, candidates[rows], match[rows] + added, self.right(rows)))
        return np.concatenate(found)


def _all_scores(gallery: Gallery, captions: Captions) -> np.ndarray:
    """(N, M) logits of a match."""
    image, text = np.divmod(np.arange(len(gallery) * len(captions)), len(captions))
    return score_pairs(gallery, captions, image, text).reshape(len(gallery), len(captions))


def _candidate_scores(
    gallery: Gallery, captions: Captions, lists: list[np.ndarray], full: np.ndarray | None
) -> list[np.ndarray]:
    """Logits of the candidates of both directions; a pair that is a candidate in both is scored once."""
    of_images, of_texts = lists
    image = np.concatenate([np.repeat(np.arange(len(of_images)), of_images.shape[1]), of_texts.ravel()])
    text = np.concatenate([of_images.ravel(), np.repeat(np.arange(len(of_texts)), of_texts.shape[1])])
    if full is None:
        pair, place = np.unique(image * len(captions) + text, return_inverse=True)
        scores = score_pairs(gallery, captions, *np.divmod(pair, len(captions)))[place.reshape(-1)]
    else:
        scores = full[image, text]
    return [scores[: of_images.size].reshape(of_images.shape), scores[of_images.size :].reshape(of_texts.shape)]
