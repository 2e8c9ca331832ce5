"""Protocol B: are patches of one object more similar to each other than to those of other objects in the image?

Every object (and every pair of objects) is one histogram of sum 1, and these are averaged, so that large objects do not
dominate. The abstract of MMC (arXiv:2308.11448) says that the overlap of the two histograms shrinks; which statistic it
uses is not known, so several are reported.

Legend: N patches, M patches of kept objects, O objects of one image, G distances in patches.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import DataError
from mc_vision.data.masks import BACKGROUND
from mc_vision.patches import PatchObjects

BINS = 200


@dataclass(frozen=True)
class SimilarityResult:
    """Protocol B for one model on one data set.

    Attributes:
        intra_histogram: 200 shares over [−1, 1], of pairs of patches of one object.
        inter_histogram: of pairs of patches of two objects.
        mean_intra: mean similarity within objects.
        mean_inter: mean similarity across objects.
        gap: their difference.
        overlap: Σ min(intra, inter) of the histograms; 0 fully apart, 1 the same.
        auc: probability that a pair of the first kind is more similar than one of the second, from the histograms
            (equal bins count half).
        matched_gap: the gap between pairs of patches equally far apart in the image, averaged over distances by the
            smaller of their numbers of pairs: what position alone explains is gone (ours). NaN if no distance has both.
        objects: in images with at least two.
        pairs: of objects.
        images: with at least two kept objects.
        background: whether the ground counted as an object.
    """

    intra_histogram: list[float]
    inter_histogram: list[float]
    mean_intra: float
    mean_inter: float
    gap: float
    overlap: float
    auc: float
    matched_gap: float
    objects: int
    pairs: int
    images: int
    background: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


class SimilarityTally:
    """Collects protocol B over the images of a data set.

    Args:
        background: count the ground as one more object.
    """

    def __init__(self, *, background: bool = False) -> None:
        self.background = background
        self.images = 0
        self._histogram = np.zeros((2, BINS))  # intra, inter
        self._mean, self._count = np.zeros(2), np.zeros(2, dtype=np.int64)
        self._at_distance = np.zeros((2, 2, 0))  # intra, inter; pairs, sum of similarities; by distance

    def add(self, gram_NN: Tensor, patches: PatchObjects) -> None:
        """One image; without effect if it has fewer than two objects."""
        labels_N = patches.labels.flatten()
        count = len(patches.kept)
        if self.background and bool((labels_N == BACKGROUND).any()):
            labels_N = torch.where(labels_N == BACKGROUND, count, labels_N)
            count += 1
        if count < 2:
            return
        self.images += 1
        member_M = (labels_N >= 0).nonzero()[:, 0]
        label_M = labels_N[member_M]
        first, second = torch.triu_indices(len(member_M), len(member_M), offset=1)  # every pair once, none with itself
        s = gram_NN[member_M][:, member_M][first, second]
        low, high = torch.minimum(label_M[first], label_M[second]), torch.maximum(label_M[first], label_M[second])
        pair = low * count + high

        bin_of = ((s + 1) * (BINS / 2)).long().clamp_(0, BINS - 1)
        histograms = torch.bincount(pair * BINS + bin_of, minlength=count * count * BINS).view(-1, BINS).double()
        pairs, total = histograms.sum(1), torch.bincount(pair, weights=s, minlength=count * count)
        same = torch.eye(count, dtype=torch.bool).flatten()
        for i, chosen in enumerate((same, ~same)):
            chosen = chosen & (pairs > 0)
            self._histogram[i] += (histograms[chosen] / pairs[chosen, None]).sum(0).numpy()
            self._mean[i] += float((total[chosen] / pairs[chosen]).sum())
            self._count[i] += int(chosen.sum())
        self._add_distances(member_M, patches.labels.shape[1], first, second, low == high, s)

    def _add_distances(
        self, member_M: Tensor, width: int, first: Tensor, second: Tensor, same: Tensor, s: Tensor
    ) -> None:
        row, column = (member_M // width).double(), (member_M % width).double()
        apart = torch.hypot(row[first] - row[second], column[first] - column[second]).round().long()
        longest = int(apart.max()) + 1
        code = torch.where(same, 0, longest) + apart
        found = [torch.bincount(code, weights=w, minlength=2 * longest).view(2, 1, longest) for w in (None, s)]
        new = torch.cat([part.double() for part in found], dim=1).numpy()
        room = max(longest, self._at_distance.shape[2])
        self._at_distance, new = (np.pad(a, ((0, 0), (0, 0), (0, room - a.shape[2]))) for a in (self._at_distance, new))
        self._at_distance = self._at_distance + new

    def result(self) -> SimilarityResult:
        """Means over objects and pairs.

        Raises:
            DataError: no image had two objects.
        """
        if not self.images:
            raise DataError("object similarity needs an image with two objects of enough patches: there is none")
        intra, inter = self._histogram / self._count[:, None]
        mean_intra, mean_inter = (self._mean / self._count).tolist()
        below = np.cumsum(inter) - inter
        (n_intra, sum_intra), (n_inter, sum_inter) = self._at_distance
        both = (n_intra > 0) & (n_inter > 0)
        gap_G = sum_intra[both] / n_intra[both] - sum_inter[both] / n_inter[both]
        weight_G = np.minimum(n_intra, n_inter)[both]
        return SimilarityResult(
            intra_histogram=intra.tolist(),
            inter_histogram=inter.tolist(),
            mean_intra=mean_intra,
            mean_inter=mean_inter,
            gap=mean_intra - mean_inter,
            overlap=float(np.minimum(intra, inter).sum()),
            auc=float((intra * (below + inter / 2)).sum()),
            matched_gap=float(np.average(gap_G, weights=weight_G)) if both.any() else math.nan,
            objects=int(self._count[0]),
            pairs=int(self._count[1]),
            images=self.images,
            background=self.background,
        )
