"""Following objects through a video by frozen patch features alone: label propagation as on DAVIS-2017.

The first frame's masks are handed on: each patch takes the labels of its most similar patches in the first frame and in
the frames just before it. Protocol of the evaluation script of DINO (Caron et al. 2021, arXiv:2104.14294): short side 480
pixels, long side cut to a multiple of 64, 7 frames of context plus the first, radius 12 patches, the best 5, weights
exp(similarity / 0.1), each object's map stretched to [0, 1] before the largest one wins. Measures of DAVIS (Perazzi et al.
2016; Pont-Tuset et al. 2017, arXiv:1704.00675): J region IoU, F boundary F-measure.

Deviations: exactly 5 neighbours where DINO's script keeps all that tie with the fifth; and our resize is PIL's bilinear one.

Legend: H × W pixels of the original frame, h × w grid, N = h·w patches, D features, O objects, L = O + 1 labels (ground
first), X frames of context, K neighbours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_vision.data.masks import VOID, MaskedImage, MaskedImages, resize_nearest
from mc_vision.patches import image_tensor, patch_features, patch_size
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

BOUNDARY_TOLERANCE = 0.008
"""Share of the image diagonal by which a boundary may be off."""
_LONG_SIDE = 64


@dataclass(frozen=True)
class PropagationResult:
    """Means over objects of means over frames; the first frame (given) and the last are not scored, as DAVIS does.

    Attributes:
        j: region similarity, IoU.
        f: boundary F-measure.
        jf: mean of the two, the number that is usually compared.
        by_object: J and F of each, keyed ``video/id``.
        videos: scored.
        frames: scored.
    """

    j: float
    f: float
    jf: float
    by_object: dict[str, tuple[float, float]]
    videos: int
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@torch.no_grad()
def evaluate_propagation(
    encoder: nn.Module,
    data: MaskedImages,
    *,
    short_side: int = 480,
    context: int = 7,
    radius: int = 12,
    top_k: int = 5,
    temperature: float = 0.1,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PropagationResult:
    """J and F of the masks that the first frame's become in the rest of each video.

    Args:
        encoder: with patch tokens, in evaluation mode.
        data: videos with masks; see ``sequences`` of :class:`~mc_vision.data.masks.MaskedImages`.
        short_side: of the resized frames in pixels.
        context: X, frames before the present one, besides the first.
        radius: in patches along either axis; 0 for anywhere.
        top_k: K.
        temperature: of the weights.
        mean: of the normalisation that the encoder was trained with.
        std: of the same.
        device: where the encoder works; default CPU.
        progress: called with frames done and frames to do.

    Raises:
        ConfigError: no patch tokens, or a setting out of range.
        DataError: no videos, or none of three frames and an object in the first.
    """
    if not data.sequences:
        raise DataError(f"{data.location}: label propagation needs videos, as the layout of DAVIS holds them")
    patch = patch_size(encoder)
    device = device or torch.device("cpu")
    encoder.to(device).eval()
    total = sum(len(frames) for frames in data.sequences.values())
    done = scored = videos = 0
    by_object: dict[str, tuple[float, float]] = {}
    for video, positions in data.sequences.items():
        first = data[positions[0]]
        if len(positions) < 3 or not len(first.ids):
            done += len(positions)
            continue
        size = frame_size(first.image.height, first.image.width, patch, short_side=short_side)
        grid = size[0] // patch, size[1] // patch
        start_Lhw = _one_hot(resize_nearest(first.objects, *grid), len(first.ids))
        seen: deque[MaskedImage] = deque()

        def features(
            positions: Sequence[int] = positions,
            size: tuple[int, int] = size,
            seen: deque[MaskedImage] = seen,
        ) -> Iterator[Tensor]:
            for position in positions:
                frame = data[position]
                seen.append(frame)
                x_1CHW = image_tensor([frame.image], size, patch=patch, mean=mean, std=std, names=[frame.name])
                yield patch_features(encoder, x_1CHW.to(device))[0]

        scores: list[Tensor] = []
        maps = propagate(features(), start_Lhw, context=context, radius=radius, top_k=top_k, temperature=temperature)
        for number, soft_Lhw in enumerate(maps):
            frame = seen.popleft()
            if 0 < number < len(positions) - 1:
                predicted_HW = harden(soft_Lhw, patch, frame.image.height, frame.image.width)
                scores.append(_score(frame, first.ids, predicted_HW))
            done += 1
            if progress is not None:
                progress(done, total)
        means_O2 = torch.stack(scores).mean(0).tolist()
        by_object |= {f"{video}/{i}": (j, f) for i, (j, f) in zip(first.ids.tolist(), means_O2, strict=True)}
        scored += len(scores)
        videos += 1
    if not by_object:
        raise DataError(f"{data.location}: no video has three frames and an object in the first one")
    j, f = np.mean(list(by_object.values()), axis=0).tolist()
    return PropagationResult(j=j, f=f, jf=(j + f) / 2, by_object=by_object, videos=videos, frames=scored)


def frame_size(height: int, width: int, patch: int, *, short_side: int = 480) -> tuple[int, int]:
    """(height, width) of the resized frame: the short side, and the long one cut to a multiple of 64.

    Where patches do not fill that, or it is shorter than the short side, to a multiple of the patch (ours).

    Raises:
        ConfigError: patches do not fill the short side.

    >>> frame_size(480, 854, 16), frame_size(854, 480, 16)
    ((480, 832), (832, 480))
    """
    if short_side < patch or short_side % patch:
        raise ConfigError(f"short side {short_side} is not a multiple of the patch ({patch} pixels)")
    scaled = int(short_side * max(height, width) / min(height, width))
    long_side = scaled // _LONG_SIDE * _LONG_SIDE
    if long_side < short_side or long_side % patch:
        long_side = scaled // patch * patch
    return (long_side, short_side) if height > width else (short_side, long_side)


def propagate(
    features: Iterable[Tensor],
    first_Lhw: Tensor,
    *,
    context: int = 7,
    radius: int = 12,
    top_k: int = 5,
    temperature: float = 0.1,
) -> Iterator[Tensor]:
    """Soft labels of every frame, from those of the first. Holds no more than the context in memory.

    Args:
        features: of each frame, (h, w, D) of unit length.
        first_Lhw: labels of the first frame, a distribution over L for each patch.
        context: X, frames before the present one, besides the first.
        radius: in patches along either axis; 0 for anywhere.
        top_k: K.
        temperature: of the weights.

    Yields:
        (L, h, w) float32 for each frame; for the first, what was given.

    Raises:
        ConfigError: a setting out of range.

    >>> z = torch.eye(4).view(2, 2, 4)
    >>> labels = torch.tensor([[[1.0, 0], [1, 0]], [[0.0, 1], [0, 1]]])
    >>> list(propagate([z, z.flip(1)], labels, radius=0, top_k=1))[1][0].tolist()
    [[0.0, 1.0], [0.0, 1.0]]
    """
    if context < 0 or radius < 0 or top_k < 1 or not temperature > 0:
        raise ConfigError(
            f"context={context}, radius={radius}, top_k={top_k}, temperature={temperature}: "
            "the first two are at least 0, the last two above"
        )
    labels, h, w = first_Lhw.shape
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    first: tuple[Tensor, Tensor] | None = None
    far_NN = None
    for z_hwD in features:
        z_ND = z_hwD.flatten(0, 1)
        if first is None:
            first = z_ND, first_Lhw.float().flatten(1).to(z_ND.device)
            far_NN = _far(h, w, radius).to(z_ND.device) if radius else None
            yield first_Lhw.float()
            continue
        known = [first, *recent]
        s_NXN = torch.stack([z_ND @ other_ND.T for other_ND, _ in known], dim=1)
        if far_NN is not None:
            s_NXN.masked_fill_(far_NN[:, None], -math.inf)
        s_NK, where_NK = s_NXN.flatten(1).topk(min(top_k, s_NXN[0].numel()), dim=1)
        known_LM = torch.cat([label_LN for _, label_LN in known], dim=1)
        label_LN = (known_LM[:, where_NK] * (s_NK / temperature).softmax(1)).sum(2)
        recent.append((z_ND, label_LN))
        yield label_LN.view(labels, h, w).cpu()


def harden(soft_Lhw: Tensor, patch: int, height: int, width: int) -> np.ndarray:
    """(height, width) int64 labels: maps enlarged bilinearly, each stretched to [0, 1], the largest taken, then nearest."""
    large = F.interpolate(soft_Lhw[None], scale_factor=float(patch), mode="bilinear", align_corners=False)[0]
    low, high = (reduce(large, (1, 2), True) for reduce in (torch.amin, torch.amax))
    stretched = torch.where(high > low, (large - low) / (high - low).clamp(min=1e-12), (high > 0).float())
    return resize_nearest(stretched.argmax(0).numpy(), height, width)


def region_similarity(predicted_OHW: Tensor, true_OHW: Tensor) -> Tensor:
    """(O,) J: IoU of each pair of masks; 1 if both are empty.

    >>> region_similarity(torch.tensor([[[True, True]]]), torch.tensor([[[True, False]]])).item()
    0.5
    """
    both, either = ((f(predicted_OHW, true_OHW)).sum((1, 2)).double() for f in (torch.logical_and, torch.logical_or))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


def boundary_accuracy(predicted_OHW: Tensor, true_OHW: Tensor, *, tolerance: float = BOUNDARY_TOLERANCE) -> Tensor:
    """(O,) F: harmonic mean of the shares of either boundary that lies close to the other one.

    Close is within ``tolerance`` times the image diagonal, rounded up to pixels: inside the other boundary dilated by a disk.
    An absent boundary has precision (or recall) 1 and its counterpart 0; if both are absent F is 1.
    """
    height, width = true_OHW.shape[1:]
    reach = math.ceil(tolerance * math.hypot(height, width))
    offset = torch.arange(-reach, reach + 1)
    disk = (offset[:, None].square() + offset.square() <= reach * reach).float()[None, None]
    edges = [boundaries(mask_OHW) for mask_OHW in (predicted_OHW, true_OHW)]
    near = [F.conv2d(edge[:, None].float(), disk, padding=reach)[:, 0] > 0.5 for edge in edges]
    count_p, count_t = (edge.sum((1, 2)).double() for edge in edges)
    hit_p, hit_t = ((edge & other).sum((1, 2)).double() for edge, other in zip(edges, reversed(near), strict=True))
    precision = torch.where(count_p > 0, hit_p / count_p.clamp(min=1), 1.0)
    recall = torch.where(count_t > 0, hit_t / count_t.clamp(min=1), 1.0)
    return 2 * precision * recall / (precision + recall).clamp(min=1e-12)


def boundaries(mask_OHW: Tensor) -> Tensor:
    """Pixels that differ from their neighbour to the right, below, or both, as DAVIS draws boundaries. Same shape, bool."""
    padded = F.pad(mask_OHW[None].float(), (0, 1, 0, 1), mode="replicate")[0] > 0.5
    return (mask_OHW ^ padded[:, :-1, 1:]) | (mask_OHW ^ padded[:, 1:, :-1]) | (mask_OHW ^ padded[:, 1:, 1:])


def _one_hot(objects_hw: np.ndarray, count: int) -> Tensor:
    """(L, h, w); void counts as ground."""
    label_hw = torch.from_numpy(np.maximum(objects_hw, -1).astype(np.int64) + 1)
    return F.one_hot(label_hw, count + 1).permute(2, 0, 1).float()


def _far(h: int, w: int, radius: int) -> Tensor:
    """(N, N) bool: which patches are more than ``radius`` rows or columns apart."""
    row, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
    return ((row[:, None] - row).abs() > radius) | ((column[:, None] - column).abs() > radius)


def _score(frame: MaskedImage, ids_O: np.ndarray, predicted_HW: np.ndarray) -> Tensor:
    """(O, 2) J and F of one frame."""
    position = {int(i): p for p, i in enumerate(frame.ids)}
    wanted_O = np.array([position.get(int(i), VOID - 1) for i in ids_O])  # an object may have left
    counted = frame.objects != VOID
    true = (frame.objects == wanted_O[:, None, None]) & counted
    predicted = (predicted_HW == np.arange(1, len(ids_O) + 1)[:, None, None]) & counted
    masks = torch.from_numpy(predicted), torch.from_numpy(true)
    return torch.stack([region_similarity(*masks), boundary_accuracy(*masks)], dim=1)
