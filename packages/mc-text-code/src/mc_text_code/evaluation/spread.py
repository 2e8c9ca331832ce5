"""Alignment and uniformity of sentence vectors, measured where SimCSE measures them.

Alignment on pairs of STS-B whose gold score is higher than 4, uniformity on all its sentences (Gao et al. 2021,
arXiv:2104.08821, note to figure 2); the measures are those of Wang & Isola 2020 (arXiv:2005.10242), smaller is better for both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mc_core.errors import DataError
from mc_core.evaluation import alignment, effective_rank, uniformity
from mc_text_code.data.sts import StsTask
from mc_text_code.evaluation.vectors import Encode, encode_texts

POSITIVE = 4.0
"""Pairs scored higher than this are positives; on the scale from 0 to 5."""
_RANK_ROWS = 8192


@dataclass(frozen=True)
class Spread:
    """What :func:`sentence_spread` returns.

    Attributes:
        alignment: mean squared distance of positive pairs on the sphere.
        uniformity: log of the mean over pairs of sentences of exp(−2 · squared distance).
        effective_rank: how many dimensions the vectors use.
        positives: pairs behind the alignment.
        sentences: behind the other two.
        source: task and split they come from.
    """

    alignment: float
    uniformity: float
    effective_rank: float
    positives: int
    sentences: int
    source: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def sentence_spread(
    encode: Encode, tasks: Mapping[str, StsTask], *, task: str = "STS-B", split: str | None = None
) -> Spread:
    """Alignment, uniformity and effective rank on the sentences of one task.

    Args:
        encode: sentences → dense vectors.
        tasks: from :func:`mc_text_code.data.sts.open_sts`.
        task: the papers take STS-B.
        split: default as in :meth:`~mc_text_code.data.sts.StsTask.select`.

    Raises:
        DataError: the task is not there, or has no pair scored higher than 4.
    """
    if task not in tasks:
        raise DataError(f"alignment and uniformity are measured on {task}, which is not there, only {', '.join(tasks)}")
    part, pairs = tasks[task].select(split)
    positive = tasks[task].scaled(pairs.gold) > POSITIVE / 5
    if not positive.any():
        raise DataError(f"{task} {part} has no pair scored higher than {POSITIVE:g} of 5")
    texts = pairs.sentences()
    row = {text: number for number, text in enumerate(texts)}
    vectors = torch.from_numpy(np.ascontiguousarray(encode_texts(encode, texts)))
    first, second = (
        vectors[[row[text] for text, yes in zip(side, positive.tolist(), strict=True) if yes]]
        for side in (pairs.sentence1, pairs.sentence2)
    )
    return Spread(
        alignment=alignment(first, second),
        uniformity=uniformity(vectors),
        effective_rank=effective_rank(vectors[:_RANK_ROWS]),
        positives=int(positive.sum()),
        sentences=len(texts),
        source=f"{task} {part}",
    )
