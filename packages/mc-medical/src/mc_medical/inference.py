"""Asking a trained model: findings by their names, radiographs by a phrase, reports by a radiograph.

Legend: N images, C findings, M candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mc_core.errors import ConfigError, DataError
from mc_medical.evaluation import binary_probabilities
from mc_medical.prompts import Prompts, default_prompts, prompt_vectors, prompts_of

if TYPE_CHECKING:
    from mc_core.files import StrPath
    from mc_medical.data.image_config import ImageOptions
    from mc_medical.model import ImageTextModel


@dataclass(frozen=True)
class ZeroShotScores:
    """What :func:`zero_shot` returns.

    Attributes:
        probability: (N, C) softmax(κ [there is, there is no]); comparable within a finding, not calibrated.
        prompts: what was asked; ``prompts.names`` are the C findings.
    """

    probability: np.ndarray
    prompts: Prompts

    def rows(self) -> list[dict[str, float]]:
        """One dictionary an image."""
        return [dict(zip(self.prompts.names, row, strict=True)) for row in self.probability.tolist()]


def asked_prompts(findings: Sequence[str], prompts: Prompts | None = None) -> Prompts:
    """The prompts of these findings, in their order.

    Args:
        findings: names, of any case; empty: all. Without ``prompts``, one that we have no
            phrases for is asked for as it is written.
        prompts: of the user, who must have phrases for each.

    Raises:
        ConfigError: an empty name, or one that the user's prompts lack.

    >>> asked_prompts(["edema", "rib notching"]).negative["rib notching"]
    ('no rib notching',)
    """
    known = prompts or default_prompts()
    if not findings:
        return known
    if prompts is not None:
        return prompts.only(findings, of="the findings asked for")
    by_case = {name.lower(): name for name in known.names}
    positive: dict[str, tuple[str, ...]] = {}
    negative: dict[str, tuple[str, ...]] = {}
    for finding in findings:
        word = " ".join(finding.split())
        if not word:
            raise ConfigError('a finding without a name: give one such as "Pleural Effusion"')
        name = by_case.get(word.lower())
        positive[name or word] = known.positive[name] if name else (word,)
        negative[name or word] = known.negative[name] if name else (f"no {word}",)
    return Prompts(positive, negative)


def zero_shot(
    model: ImageTextModel,
    images: Sequence[StrPath] | Sequence[np.ndarray] | np.ndarray,
    findings: Prompts | Mapping[str, object] | Sequence[str] = (),
    *,
    options: ImageOptions | None = None,
) -> ZeroShotScores:
    """Score findings in radiographs by phrases alone. The score of an image depends on that image alone.

    Args:
        model: trained, with its tokenizer.
        images: N files, or arrays; see :meth:`~mc_medical.model.ImageTextModel.encode_image`.
        findings: C names; or ``{finding: [phrases]}``, or ``{finding: {"positive": [...], "negative": [...]}}``; or prompts. Empty:
            CheXpert's observations.
        options: how files are read.

    Raises:
        ConfigError: a finding without a name or phrases, or a model without tokenizer.
        BadSampleError: a file that is no radiograph.
    """
    if isinstance(findings, Mapping):
        ask = prompts_of(findings, source="the findings")
    elif isinstance(findings, Prompts):
        ask = findings
    else:
        ask = asked_prompts(findings)
    positive, negative = prompt_vectors(ask, model.encode_text)
    vectors = model.encode_image(images, options=options)
    return ZeroShotScores(binary_probabilities(vectors, positive, negative, model.kappa), ask)


def nearest(query: np.ndarray, candidates: np.ndarray, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Places of the k candidates most like the query, best first, and their cosines.

    Args:
        query: (d,) unit vector, such as ``model.encode_text(["left pleural effusion"])[0]``.
        candidates: (M, d) unit rows, such as ``model.encode_image(files)``.
        k: how many; fewer where there are fewer.

    Raises:
        DataError: vectors that do not fit, or k below 1.

    >>> places, cosines = nearest(np.array([1.0, 0.0]), np.array([[0.0, 1.0], [1.0, 0.0]]), k=1)
    >>> places.tolist(), cosines.tolist()
    ([1], [1.0])
    """
    query, candidates = np.asarray(query), np.asarray(candidates)
    if candidates.ndim != 2 or query.shape != candidates.shape[1:] or k < 1:
        raise DataError(
            f"a query of shape {query.shape}, candidates of {candidates.shape}, k = {k}: (d,), (M, d), 1 or more"
        )
    cosines = candidates @ query
    best = np.argsort(-cosines, kind="stable")[:k]
    return best, cosines[best]
