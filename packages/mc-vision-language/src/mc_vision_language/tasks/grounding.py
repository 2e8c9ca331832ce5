"""Where in a picture a phrase looks: heat maps by Grad-CAM, without a box ever seen in training.

With A the attention probabilities (H, L, 1 + P) of one layer and G = ∂s/∂A::

    ITM   s: logit of a match; A: cross-attention of a fusion layer (the third of six in the official code)
          map_p = mean over heads and over tokens t that are no padding of A_{h,t,p} max(G_{h,t,p}, 0)
    ITC   s: cosine of image and text; A: self-attention of a block of the image encoder, row of [CLS]
          map_p = mean over heads of A_{h,[CLS],p} max(G_{h,[CLS],p}, 0)

The column of the image's [CLS] is left out; the grid of patches is resized bicubically to the picture. Of proposed boxes the one is
chosen whose sum of the map divided by the root of its area is largest.

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 4 and appendix; Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391).

Legend: B pairs, L tokens, P = h × w patches, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.errors import ConfigError
from mc_core.modules import evaluating
from mc_vision_language.backbone import Backbone
from mc_vision_language.data.phrases import Phrases
from mc_vision_language.data.views import ImageViews
from mc_vision_language.evaluation.boxes import as_boxes, best_box, box_of_map, centre_boxes, iou, points_inside
from mc_vision_language.model import VisionLanguageModel

Mode = Literal["itm", "itc"]
RIGHT = 0.5  # overlap from which on a box counts as found


class Located(NamedTuple):
    """What :func:`ground` finds.

    Attributes:
        heat: (H, W) float32 of the picture's own size, 0 or more.
        box: x1, y1, x2, y2 in its pixels.
    """

    heat: np.ndarray
    box: tuple[float, float, float, float]


def grad_cam(attention: Tensor, gradient: Tensor, mask: Tensor) -> Tensor:
    """(B, N) mean over heads and tokens of A · max(G, 0).

    Args:
        attention: (B, H, L, N) probabilities A.
        gradient: (B, H, L, N) G, of a score at A.
        mask: (B, L), nonzero for tokens that count.

    >>> A = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]])
    >>> G = torch.tensor([[[[2.0, -1.0], [4.0, 4.0]]]])
    >>> grad_cam(A, G, torch.tensor([[1, 0]])).tolist(), grad_cam(A, G, torch.tensor([[1, 1]])).tolist()
    ([[1.5, 0.0]], [[1.75, 1.0]])
    """
    heads = (attention * gradient.clamp_min(0)).mean(1)
    weight = mask.to(heads.dtype)
    return (heads * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)


def patch_maps(
    model: VisionLanguageModel,
    pixels: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    *,
    mode: Mode = "itm",
    layer: int | None = None,
) -> Tensor:
    """(B, h, w) maps over the patches of each picture, for the text in the same place.

    Args:
        model: in evaluation mode.
        pixels: (B, 3, S, S) in [0, 1].
        input_ids, attention_mask: (B, L).
        mode: see the module's text.
        layer: fusion layer (``itm``) or block of the image encoder (``itc``), from 0, negative ones from the last; default: the
            middle fusion layer, as the official code's third of six, and the last block.

    Raises:
        ConfigError: another mode, a model without heat maps, or ``itm`` of one that learned no matching. DataError: no such layer.
    """
    backbone = model.backbone
    if not model.shows_where:
        raise ConfigError(f"a {type(model).__name__} shows no heat map: take a model that ALBEF or CTP trained")
    with torch.enable_grad():
        if mode == "itm":
            model.need_matching()
            score, attention = _match(model, pixels, input_ids, attention_mask, layer)
            weights = attention_mask
        elif mode == "itc":
            score, attention = _similarity(backbone, pixels, input_ids, attention_mask, -1 if layer is None else layer)
            weights = torch.ones_like(attention_mask[:, :1])
        else:
            raise ConfigError(f"mode '{mode}': choose itm or itc")
        (gradient,) = torch.autograd.grad(score.sum(), attention)
    row = attention if mode == "itm" else attention[:, :, :1]
    found = grad_cam(row.detach(), gradient if mode == "itm" else gradient[:, :, :1], weights)
    return found[:, 1:].unflatten(1, backbone.image.grid)


def _match(
    model: VisionLanguageModel, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int | None
) -> tuple[Tensor, Tensor]:
    backbone = model.backbone
    keys = backbone.keys(backbone.image_tokens(pixels))
    states = backbone.text_states(input_ids, attention_mask)
    chosen = (len(backbone.fusion) - 1) // 2 if layer is None else layer
    fused, attention = backbone.fuse(states, attention_mask, keys, attention_of=chosen)
    return model.itm_head(fused[:, 0])[:, 1], attention


def _similarity(
    backbone: Backbone, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    tokens, attention = backbone.image(pixels, attention_of=block)
    text = backbone.embed_tokens(input_ids, attention_mask)
    return (backbone.embed_image_tokens(tokens) * text).sum(1), attention


def resized_map(patches: Tensor, size: tuple[int, int]) -> np.ndarray:
    """(H, W) float32 map of a picture, bicubic, nowhere below 0.

    Args:
        patches: (h, w).
        size: width and height of the picture, in pixels.
    """
    width, height = size
    found = F.interpolate(patches[None, None].float(), (height, width), mode="bicubic", align_corners=False)
    return found[0, 0].clamp_min(0).cpu().numpy()


def heat_map(
    model: VisionLanguageModel, image: Any, phrase: str, *, mode: Mode = "itm", layer: int | None = None
) -> np.ndarray:
    """(H, W) float32 of the picture's own size: how much each pixel speaks for the phrase.

    Args:
        model: pretrained, or trained further on phrases.
        image: path, PIL image or array; see :func:`mc_vision_language.data.images.read_image`.
        phrase: what to look for.
        mode: see the module's text.
        layer: see :func:`patch_maps`.

    Raises:
        BadSampleError: a file that is no image.
    """
    from mc_vision_language.data.images import read_image

    picture = read_image(image)
    ids, mask = model.tokens_of([phrase])
    with evaluating(model):
        patches = patch_maps(model, model.pixels_of([picture]), ids, mask, mode=mode, layer=layer)
    return resized_map(patches[0], picture.size)


def ground(
    model: VisionLanguageModel,
    image: Any,
    phrase: str,
    *,
    proposals: Any = None,
    mode: Mode = "itm",
    layer: int | None = None,
) -> Located:
    """The heat map of a phrase, and the box that it points at.

    Args:
        model: pretrained, or trained further on phrases.
        image: path, PIL image or array.
        phrase: what to look for.
        proposals: (K, 4) boxes to choose from, x1, y1, x2, y2 in pixels of the picture. Without, a box is drawn around what is warm
            (ours; see :func:`mc_vision_language.evaluation.boxes.box_of_map`).
        mode: see the module's text.
        layer: see :func:`patch_maps`.
    """
    heat = heat_map(model, image, phrase, mode=mode, layer=layer)
    box = chosen_box(heat, proposals)
    return Located(heat, (float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def chosen_box(heat: np.ndarray, proposals: Any = None) -> np.ndarray:
    """(4,) the best of the proposals, or a box around what is warm."""
    if proposals is None or not len(proposals):
        return box_of_map(heat)
    boxes = as_boxes(proposals)
    return boxes[best_box(heat, boxes)]


@dataclass(frozen=True)
class GroundingScores:
    """What is found of M phrases, as shares.

    Attributes:
        accuracy: overlap with the true box of at least 0.5, choosing among the proposals; NaN where there are none.
        free_accuracy: the same without proposals.
        pointing: the warmest pixel lies in the true box.
        mean_iou: mean overlap without proposals.
        baselines: accuracies of who does not look: the whole picture, a box in its middle of the usual size, a proposal at random
            (its expectation), and the chance that a pixel at random lies in the box (``random_point``).
        right: (M,) bool, which phrases count in ``accuracy``, or in ``free_accuracy`` where there are no proposals.
    """

    accuracy: float
    free_accuracy: float
    pointing: float
    mean_iou: float
    baselines: dict[str, float]
    right: np.ndarray


@torch.no_grad()
def measure_grounding(
    model: VisionLanguageModel,
    phrases: Phrases,
    *,
    usual: tuple[float, float] | None = None,
    mode: Mode = "itm",
    layer: int | None = None,
    batch_size: int = 64,
) -> GroundingScores:
    """Find phrases whose boxes are known.

    Args:
        model: to measure.
        phrases: with boxes.
        usual: mean width and height of boxes as shares of the picture, of training phrases, for the box in the middle; default:
            those of the phrases themselves.
        mode, layer: see :func:`patch_maps`.
        batch_size: phrases at once.

    Raises:
        DataError: no phrase has a box.
    """
    phrases = phrases.located()
    views = ImageViews(phrases.images, None, model.image_size)
    overlaps: list[float] = []
    chosen: list[float] = []
    pointed: list[bool] = []
    with evaluating(model):
        for start in range(0, len(phrases), batch_size):
            rows = np.arange(start, min(start + batch_size, len(phrases)))
            patches = patch_maps(
                model,
                _whole(views, phrases.image_of[rows], model),
                *model.tokens_of([phrases.texts[r] for r in rows]),
                mode=mode,
                layer=layer,
            )
            for row, found in zip(rows.tolist(), patches, strict=True):
                width, height = phrases.sizes[row].round().astype(int).tolist()
                heat, true = resized_map(found, (width, height)), phrases.boxes[row]
                proposals = phrases.proposals.get(int(phrases.image_of[row]))
                overlaps.append(float(iou(chosen_box(heat), true)[0, 0]))
                chosen.append(np.nan if proposals is None else float(iou(chosen_box(heat, proposals), true)[0, 0]))
                pointed.append(points_inside(heat, true))
    free, among = np.array(overlaps), np.array(chosen)
    given = np.isfinite(among)
    return GroundingScores(
        accuracy=float((among[given] >= RIGHT).mean()) if given.any() else float("nan"),
        free_accuracy=float((free >= RIGHT).mean()),
        pointing=float(np.mean(pointed)),
        mean_iou=float(free.mean()),
        baselines=blind_boxes(phrases, usual),
        right=(among >= RIGHT) if given.all() else (free >= RIGHT),
    )


def blind_boxes(phrases: Phrases, usual: tuple[float, float] | None = None) -> dict[str, float]:
    """Accuracies of who does not look; see :class:`GroundingScores`."""
    true, (widths, heights) = phrases.boxes, phrases.sizes.T
    share = usual_share(phrases) if usual is None else usual
    whole = np.stack([np.zeros(len(true)), np.zeros(len(true)), widths, heights], 1)
    middle = centre_boxes(widths, heights, share)
    proposals = [phrases.proposals.get(int(row)) for row in phrases.image_of]
    random = [float((iou(p, t) >= RIGHT).mean()) for p, t in zip(proposals, true, strict=True) if p is not None]
    area = (true[:, 2:] - true[:, :2]).prod(1) / (widths * heights)
    return {
        "whole_image": float((_paired(whole, true) >= RIGHT).mean()),
        "centre_box": float((_paired(middle, true) >= RIGHT).mean()),
        **({"random_proposal": float(np.mean(random))} if random else {}),
        "random_point": float(area.mean()),
    }


def usual_share(phrases: Phrases) -> tuple[float, float]:
    """Mean width and height of the boxes as shares of their pictures."""
    boxes = phrases.located()
    share = (boxes.boxes[:, 2:] - boxes.boxes[:, :2]) / boxes.sizes
    return float(share[:, 0].mean()), float(share[:, 1].mean())


def _paired(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.array([iou(a, b)[0, 0] for a, b in zip(boxes, others, strict=True)])


def _whole(views: ImageViews, rows: np.ndarray, model: VisionLanguageModel) -> Tensor:
    from mc_core.random import BatchRandom

    part = {name: value.to(model.device) for name, value in views.batch(rows, rows, 0, 0).items()}
    return views.view(part, BatchRandom(0, 0, torch.from_numpy(rows)))
