"""Protocol A: point at one patch of an object, take every patch that is similar enough, compare with the object's mask.

Patch p is in the mask iff s_p > t, where s is the cosine similarity with the prompt. The prompt itself counts in the IoU
(the user has pointed at it) but not in average precision and AUC, where its s = 1 would be a hit for nothing: a third of
an object of three patches. Patches and pixels that the data calls void count nowhere.

No loop runs over thresholds: similarities are counted into the intervals between thresholds, or sorted once.

Legend: h × w grid, N = h·w patches, O objects, R prompts of an object, K prompts of an image, S side of the resized image
in pixels, T thresholds, L levels of a fine grid, I objects of the data set.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.random import derive_seed, uniform
from mc_vision.data.masks import VOID
from mc_vision.patch_evaluation.config import PatchProtocol
from mc_vision.patches import PatchObjects

_PER_UNIT = 1000  # levels of the fine grid on which pixels are counted
_STEP = 20
THRESHOLDS = tuple(round(i * _STEP / _PER_UNIT, 2) for i in range(-10, 51))
"""−0.2, −0.18, …, 1, as the protocol fixes them."""
_GRID = np.arange(-10, 51) * _STEP + _PER_UNIT  # positions of the thresholds among the levels −1, −.999, …, 1
_LEVELS = 2 * _PER_UNIT + 1
_CHUNK = 1 << 20  # pixels of enlarged maps held at a time
_STREAM = 0xA


@dataclass(frozen=True)
class ThresholdScores:
    """Mean IoU over objects under the three ways to choose the threshold, which are never mixed.

    Attributes:
        curve: at each of ``THRESHOLDS``, over all images.
        best: the maximum of the curve; it has seen the images it is reported on.
        best_threshold: where it is.
        tuned: at t*, over the images that t* was not tuned on; NaN without such images.
        oracle: with the best threshold for each object, an upper bound.
        by_class: ``best``, ``tuned`` and ``oracle`` averaged over classes of averages over objects; None without classes.
    """

    curve: list[float]
    best: float
    best_threshold: float
    tuned: float
    oracle: float
    by_class: dict[str, float] | None


@dataclass(frozen=True)
class PromptScores:
    """One way of pointing.

    Attributes:
        patch: against the patches of the object.
        pixel: against its pixels; None if not asked for. Its ``oracle`` knows thresholds to 0.001.
        average_precision: of ranking all other patches by similarity, mean over objects.
        auc: probability that a patch of the object is more similar than another one, mean over objects.
    """

    patch: ThresholdScores
    pixel: ThresholdScores | None
    average_precision: float
    auc: float


@dataclass(frozen=True)
class SegmentationResult:
    """Protocol A for one model on one data set.

    Attributes:
        prompts: scores by kind of prompt.
        threshold: t*, tuned on the patch IoU of the first kind of prompt; one value per model and data set.
        thresholds: ``THRESHOLDS``.
        kind: of the objects.
        images: that have a kept object.
        tuning_groups: of images, on which t* was tuned; a group is a video or a single image.
        objects: scored.
        skipped: objects with too few patches.
        connected: whether only what is connected with the prompt was kept.
    """

    prompts: dict[str, PromptScores]
    threshold: float
    thresholds: list[float]
    kind: str
    images: int
    tuning_groups: int
    objects: int
    skipped: int
    connected: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def central_patches(member_Ohw: Tensor) -> Tensor:
    """(O,) the patch of each object that is furthest from its boundary, the first of several in raster order.

    Distances are Euclidean, between centres of patches; beyond the image everything is outside.

    >>> central_patches(torch.ones(1, 3, 5, dtype=torch.bool))
    tensor([6])
    """
    outside = ~F.pad(member_Ohw, (1, 1, 1, 1))
    height, width = outside.shape[1:]
    across, down = ((torch.arange(n)[:, None] - torch.arange(n)).square().double() for n in (width, height))
    # squared distance to the nearest outside patch: first along the row, then the best row
    in_row = torch.where(outside, 0.0, math.inf)[:, :, None, :].add(across).amin(3)
    squared_Ohw = (in_row[:, None] + down[..., None]).amin(2)
    return squared_Ohw[:, 1:-1, 1:-1].flatten(1).argmax(1)


def drawn_patches(member_Ohw: Tensor, draws: int, *, seed: int, name: str) -> Tensor:
    """(O, R) patches drawn from each object, with replacement; a function of the seed, the image's name and the object."""
    member_ON = member_Ohw.flatten(1)
    count_O = member_ON.sum(1)
    u_OR = uniform(derive_seed(seed, _digest(name)), 0, torch.arange(len(count_O)), draws, stream=_STREAM)
    rank_OR = (u_OR.double() * count_O[:, None]).long()
    first = member_ON.cumsum(1).double()  # the patch at which the count of members passes the rank
    return torch.searchsorted(first, (rank_OR + 1).double())


def connected_similarity(s_Khw: Tensor, prompt_K: Tensor) -> Tensor:
    """How similar one can stay on the way from the prompt: the largest t at which a patch is still connected with it.

    Thresholding this map gives the connected component of the prompt at every threshold at once. Patches touch by sides
    and corners.

    Args:
        s_Khw: similarity with the prompt.
        prompt_K: position of the prompt in raster order.

    Returns:
        (K, h, w), at most ``s_Khw``.

    >>> connected_similarity(torch.tensor([[[1.0, 0.2, 0.9]]]), torch.tensor([0])).tolist()
    [[[1.0, 0.20000000298023224, 0.20000000298023224]]]
    """
    reached = torch.full_like(s_Khw, -1.0)
    reached.flatten(1).scatter_(1, prompt_K[:, None], s_Khw.flatten(1).gather(1, prompt_K[:, None]))
    while True:
        spread = torch.minimum(F.max_pool2d(reached, 3, stride=1, padding=1), s_Khw)
        spread = torch.maximum(spread, reached)
        if torch.equal(spread, reached):
            return reached
        reached = spread


def threshold_ious(s_KN: Tensor, member_KN: Tensor, counted_N: Tensor) -> Tensor:
    """(K, T) IoU of {p: s_p > t} with the object, at every t of ``THRESHOLDS``.

    Args:
        s_KN: similarity with each prompt.
        member_KN: which patches are the object.
        counted_N: which patches are not void.
    """
    thresholds_T = torch.tensor(THRESHOLDS, dtype=s_KN.dtype)
    below_KN = torch.searchsorted(thresholds_T, s_KN)  # how many thresholds s_p exceeds
    rows = len(THRESHOLDS) + 1
    codes = (torch.arange(len(s_KN))[:, None] * 2 + member_KN) * rows + below_KN
    counts = torch.bincount(codes[:, counted_N].flatten(), minlength=len(s_KN) * 2 * rows).view(-1, 2, rows)
    return _ious(counts)


def pixel_ious(s_Khw: Tensor, own_K: Tensor, objects_SS: Tensor) -> Tensor:
    """(K, L) IoU in pixels at the thresholds −1, −.999, …, 1, of maps enlarged bilinearly before the threshold.

    Args:
        s_Khw: similarity with each prompt.
        own_K: value in ``objects_SS`` of each prompt's object.
        objects_SS: as ``MaskedImage.resized`` gives them.
    """
    size = objects_SS.shape
    counted = (objects_SS != VOID).flatten()
    some_void = not bool(counted.all())
    objects = objects_SS.flatten()[counted]
    found = []
    rows = max(1, _CHUNK // objects_SS.numel())
    for s, own in zip(s_Khw.split(rows), own_K.split(rows), strict=True):
        large = F.interpolate(s[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False).flatten(1)
        if some_void:
            large = large[:, counted]
        codes = large.add_(1).mul_(_PER_UNIT).ceil_().clamp_(0, _LEVELS - 1).int()  # how many levels a pixel exceeds
        codes += (objects == own[:, None]).int().mul_(_LEVELS + 1)
        codes += torch.arange(len(s), dtype=torch.int32)[:, None] * (2 * (_LEVELS + 1))
        counts = torch.bincount(codes.flatten(), minlength=len(s) * 2 * (_LEVELS + 1)).view(-1, 2, _LEVELS + 1)
        found.append(_ious(counts))
    return torch.cat(found)


def _ious(counts_K2L: Tensor) -> Tensor:
    """(K, L − 1) IoU at each threshold, from how many places outside and inside the object exceed exactly l of them."""
    above_K2L = counts_K2L.flip(2).cumsum(2).flip(2)[:, :, 1:]  # places that exceed at least l + 1 thresholds
    outside, inside = above_K2L.double().unbind(1)
    size = counts_K2L[:, 1].sum(1, keepdim=True)
    return inside / (size + outside)


@dataclass(frozen=True)
class Ranked:
    """What sorting the patches by similarity says of each prompt, all (K,) float64.

    Attributes:
        oracle: best IoU over all thresholds.
        average_precision: of the object's patches, without the prompt.
        auc: of the same; NaN where the object is the whole image.
    """

    oracle: Tensor
    average_precision: Tensor
    auc: Tensor


def rank_patches(s_KN: Tensor, member_KN: Tensor, counted_N: Tensor, prompt_K: Tensor) -> Ranked:
    """Threshold-free scores. Equal similarities are taken together: they enter a mask together, and share a rank."""
    s_KN, order_KN = s_KN.sort(dim=1, descending=True)
    member_KN = (member_KN & counted_N).gather(1, order_KN)
    other_KN = counted_N[order_KN] & ~member_KN
    place_N = torch.arange(s_KN.shape[1])
    step_KN = s_KN[:, 1:] != s_KN[:, :-1]
    edge_K1 = torch.ones(len(s_KN), 1, dtype=torch.bool)
    last_KN = torch.where(torch.cat([step_KN, edge_K1], 1), place_N, len(place_N)).flip(1).cummin(1).values.flip(1)
    first_KN = torch.where(torch.cat([edge_K1, step_KN], 1), place_N, 0).cummax(1).values

    def counts(chosen_KN: Tensor) -> tuple[Tensor, Tensor]:
        """How many were chosen before each group of equals, and up to its end."""
        one_KN = chosen_KN.double()
        up_to = one_KN.cumsum(1)
        return (up_to - one_KN).gather(1, first_KN), up_to.gather(1, last_KN)

    inside, outside = counts(member_KN)[1], counts(other_KN)[1]
    oracle_K = (inside / (member_KN.sum(1, keepdim=True) + outside)).amax(1)

    member_KN = member_KN & (order_KN != prompt_K[:, None])
    before, inside = counts(member_KN)
    members_K, others_K = member_KN.sum(1), other_KN.sum(1)
    precision = torch.where(member_KN, inside / (inside + outside).clamp(min=1), 0.0)
    wins = torch.where(other_KN, (before + inside) / 2, 0.0)
    return Ranked(oracle_K, precision.sum(1) / members_K, wins.sum(1) / (members_K * others_K))


@dataclass
class SegmentationTally:
    """Collects protocol A over the images of a data set."""

    protocol: PatchProtocol
    kind: str
    skipped: int = 0
    _rows: dict[str, list[dict[str, np.ndarray]]] = field(default_factory=dict)
    _groups: list[str] = field(default_factory=list)
    _categories: list[int | None] = field(default_factory=list)
    _images: int = 0

    def add(
        self,
        gram_NN: Tensor,
        patches: PatchObjects,
        objects_SS: np.ndarray,
        *,
        name: str,
        group: str,
        categories: np.ndarray | None,
    ) -> None:
        """One image."""
        self.skipped += patches.skipped
        count = len(patches.kept)
        if not count:
            return
        self._images += 1
        self._groups += [group] * count
        self._categories += [None] * count if categories is None else categories[patches.kept.numpy()].tolist()
        member_Ohw = patches.members
        for kind in self.protocol.prompts:
            if kind == "center":
                prompt_OR = central_patches(member_Ohw)[:, None]
            else:
                prompt_OR = drawn_patches(member_Ohw, self.protocol.draws, seed=self.protocol.seed, name=name)
            self._rows.setdefault(kind, []).append(self._scores(gram_NN, patches, member_Ohw, objects_SS, prompt_OR))

    def _scores(
        self, gram_NN: Tensor, patches: PatchObjects, member_Ohw: Tensor, objects_SS: np.ndarray, prompt_OR: Tensor
    ) -> dict[str, np.ndarray]:
        """Scores of each object, averaged over its prompts."""
        objects, draws = prompt_OR.shape
        h, w = patches.labels.shape
        prompt_K = prompt_OR.flatten()
        s_KN = gram_NN[prompt_K]
        if self.protocol.connected:
            s_KN = connected_similarity(s_KN.unflatten(1, (h, w)), prompt_K).flatten(1)
        member_KN = member_Ohw.flatten(1).repeat_interleave(draws, dim=0)
        counted_N = patches.labels.flatten() != VOID
        ranked = rank_patches(s_KN, member_KN, counted_N, prompt_K)
        scores = {
            "curve": threshold_ious(s_KN, member_KN, counted_N),
            "oracle": ranked.oracle,
            "average_precision": ranked.average_precision,
            "auc": ranked.auc,
        }
        if self.protocol.pixels:
            own_K = patches.kept.repeat_interleave(draws)
            fine_KL = pixel_ious(s_KN.unflatten(1, (h, w)), own_K, torch.from_numpy(objects_SS))
            scores |= {"pixel_curve": fine_KL[:, _GRID], "pixel_oracle": fine_KL.amax(1)}
        return {key: value.unflatten(0, (objects, draws)).mean(1).numpy() for key, value in scores.items()}

    @property
    def objects(self) -> int:
        """Kept so far."""
        return len(self._groups)

    def result(self) -> SegmentationResult:
        """Means over all objects; needs at least one."""
        columns = {
            kind: {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}
            for kind, rows in self._rows.items()
        }
        tuning_I, tuning_groups = self._split()
        reported_I = ~tuning_I & bool(tuning_groups)
        first = columns[self.protocol.prompts[0]]["curve"]
        at = int(first[tuning_I if tuning_I.any() else slice(None)].mean(0).argmax())
        classes = None if None in self._categories else np.array(self._categories)
        prompts = {}
        for kind, column in columns.items():
            patch, pixel = (
                _threshold_scores(column[f"{level}curve"], column[f"{level}oracle"], at, reported_I, classes)
                if f"{level}curve" in column
                else None
                for level in ("", "pixel_")
            )
            assert patch is not None
            auc = column["auc"][~np.isnan(column["auc"])]
            prompts[kind] = PromptScores(
                patch, pixel, float(column["average_precision"].mean()), float(auc.mean()) if len(auc) else math.nan
            )
        return SegmentationResult(
            prompts=prompts,
            threshold=THRESHOLDS[at],
            thresholds=list(THRESHOLDS),
            kind=self.kind,
            images=self._images,
            tuning_groups=tuning_groups,
            objects=self.objects,
            skipped=self.skipped,
            connected=self.protocol.connected,
        )

    def _split(self) -> tuple[np.ndarray, int]:
        """Which objects t* is tuned on, (I,) bool, and in how many groups of images they lie."""
        groups = sorted(set(self._groups), key=lambda name: _digest(f"{self.protocol.seed}/{name}"))
        count = min(max(round(self.protocol.tuning_share * len(groups)), 1), len(groups) - 1)
        chosen = set(groups[:count])
        return np.array([group in chosen for group in self._groups]), count


def _threshold_scores(
    curve_IT: np.ndarray, oracle_I: np.ndarray, tuned: int, reported_I: np.ndarray, classes_I: np.ndarray | None
) -> ThresholdScores:
    curve_T = curve_IT.mean(0)
    best = int(curve_T.argmax())
    tuned_I = curve_IT[reported_I, tuned]
    by_class = None
    if classes_I is not None:
        class_curve_T = _class_mean(curve_IT, classes_I)
        by_class = {
            "best": float(class_curve_T.max()),
            "tuned": float(_class_mean(tuned_I, classes_I[reported_I])) if len(tuned_I) else math.nan,
            "oracle": float(_class_mean(oracle_I, classes_I)),
        }
    return ThresholdScores(
        curve=curve_T.tolist(),
        best=float(curve_T[best]),
        best_threshold=THRESHOLDS[best],
        tuned=float(tuned_I.mean()) if len(tuned_I) else math.nan,
        oracle=float(oracle_I.mean()),
        by_class=by_class,
    )


def _class_mean(values_I: np.ndarray, classes_I: np.ndarray) -> np.ndarray:
    """Mean over classes of the mean over each one's objects."""
    _, position_I = np.unique(classes_I, return_inverse=True)
    weight_I = 1 / np.bincount(position_I)[position_I]
    return np.average(values_I, axis=0, weights=weight_I)


def _digest(text: str) -> int:
    """63 bits that are the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8], "little") >> 1
