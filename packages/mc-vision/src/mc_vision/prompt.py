"""Segmentation by pointing: the patches that look like the one under a point, without training on masks.

The similarity map is the one of :mod:`mc_vision.patch_evaluation` (MMC's prompt patch, arXiv:2308.11448), here at the shape of
the photo instead of a square, with any number of points, and thresholded after bilinear upsampling to the photo's pixels.

Legend: H × W pixels of the photo, h × w grid of patches, D features, P points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mc_core.errors import ConfigError, DataError
from mc_vision.patches import image_tensor, patch_features, patch_size
from mc_vision.transforms_config import IMAGENET_MEAN, IMAGENET_STD

Point = tuple[float, float]  # (x, y) in pixels of the photo, from its top left corner
_BINS = 256
_ACCENT = (235, 64, 52)


@dataclass(frozen=True)
class EncodedPhoto:
    """A photo whose patches are encoded: each further point costs one small matrix product.

    Attributes:
        name: for messages.
        width: of the photo in pixels.
        height: of the photo in pixels.
        features_hwD: of unit length.
    """

    name: str
    width: int
    height: int
    features_hwD: Tensor

    def similarity(self, points: Sequence[Point]) -> Tensor:
        """(H, W) float32 in [−1, 1]: cosine similarity to the patch under a point; of several points, the greatest.

        Raises:
            DataError: no point, or one outside the photo.
        """
        self.check_points(points)
        h, w, _ = self.features_hwD.shape
        prompts = [self.features_hwD[int(y * h / self.height), int(x * w / self.width)] for x, y in points]
        map_hw = (self.features_hwD @ torch.stack(prompts).T).amax(2)
        up = F.interpolate(map_hw[None, None], (self.height, self.width), mode="bilinear", align_corners=False)
        return up[0, 0].clamp_(-1, 1)

    def check_points(self, points: Sequence[Point]) -> None:
        """See that there are points, all of them on the photo.

        Raises:
            DataError: no point, or one outside the photo.
        """
        if not points:
            raise DataError(f"{self.name}: give at least one point, as x,y in pixels")
        for x, y in points:
            if not (0 <= x < self.width and 0 <= y < self.height):
                raise DataError(
                    f"{self.name}: the point {x:g},{y:g} is outside the image, which is {self.width} pixels wide and "
                    f"{self.height} high (x from 0 to {self.width - 1}, y from 0 to {self.height - 1})"
                )


def encode_photo(
    encoder: nn.Module,
    image: Image.Image,
    *,
    name: str = "the image",
    size: int = 480,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> EncodedPhoto:
    """Encode the patches of a photo, in its own shape.

    Args:
        encoder: with patch tokens, in evaluation mode.
        image: any size of at least one patch.
        name: for messages.
        size: longer side in pixels that the encoder sees, rounded so that patches fill it.
        mean: of the normalisation the encoder was trained with.
        std: of it.

    Raises:
        ConfigError: the encoder has no patch tokens, or ``size`` is smaller than one patch.
        DataError: the image is smaller than one patch.

    >>> from mc_vision.encoders import TimmEncoder
    >>> from mc_vision.encoders_config import EncoderConfig
    >>> encoder = TimmEncoder(EncoderConfig(backbone="moco-vit-tiny-8")).eval()
    >>> photo = encode_photo(encoder, Image.new("RGB", (60, 30)), size=64)
    >>> photo.features_hwD.shape, photo.similarity([(59, 29)]).shape
    (torch.Size([4, 8, 96]), torch.Size([30, 60]))
    """
    patch = patch_size(encoder)
    if size < patch:
        raise ConfigError(f"image size {size} is smaller than one patch of the encoder: take {patch} or more")
    scale = size / max(image.size)
    height, width = (max(round(side * scale / patch), 1) * patch for side in (image.height, image.width))
    x_1CHW = image_tensor([image], (height, width), patch=patch, mean=mean, std=std, names=[name])
    device = next(encoder.parameters()).device
    features_hwD = patch_features(encoder, x_1CHW.to(device))[0].cpu()
    return EncodedPhoto(name, image.width, image.height, features_hwD)


def otsu_threshold(similarity_HW: Tensor) -> float:
    """The threshold that separates a similarity map best: greatest variance between the two sides.

    What ``--threshold auto`` stands for. Ours: MMC tunes one threshold per data set on images with masks, and a single photo
    has none.

    Source: Otsu 1979, doi:10.1109/TSMC.1979.4310076.

    >>> round(otsu_threshold(torch.tensor([[0.1, 0.1, 0.8, 0.9]])), 1)
    0.5
    """
    low, high = float(similarity_HW.min()), float(similarity_HW.max())
    if high <= low:
        return low
    counts = torch.histc(similarity_HW.float(), _BINS, low, high).double()
    centres = low + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (high - low) / _BINS
    below = counts.cumsum(0)
    above = counts.sum() - below
    sums = (counts * centres).cumsum(0)
    gap = sums / below.clamp(min=1) - (sums[-1] - sums) / above.clamp(min=1)
    between = torch.where((below > 0) & (above > 0), below * above * gap.square(), -1.0)
    best = (between >= between.max() * (1 - 1e-12)).nonzero()[:, 0].double().mean()  # the middle of an empty stretch
    return float(low + (best + 1) * (high - low) / _BINS)


def mask_overlay(image: Image.Image, mask_HW: np.ndarray, points: Sequence[Point] = ()) -> Image.Image:
    """The photo with the mask tinted and outlined, the rest dimmed, and a mark at each point."""
    base = np.asarray(image.convert("RGB"), dtype=np.float32)
    tint = 0.55 * base + 0.45 * np.array(_ACCENT, dtype=np.float32)
    dimmed = 0.45 * base + 0.55 * base.mean(2, keepdims=True) * 0.6
    pixels = np.where(mask_HW[..., None], tint, dimmed).clip(0, 255).astype(np.uint8)
    down, across = mask_HW[1:] != mask_HW[:-1], mask_HW[:, 1:] != mask_HW[:, :-1]
    for part, edge in ((pixels[1:], down), (pixels[:-1], down), (pixels[:, 1:], across), (pixels[:, :-1], across)):
        part[edge] = 255
    shown = Image.fromarray(pixels)
    draw = ImageDraw.Draw(shown)
    radius = max(3, round(min(image.size) / 80))
    for x, y in points:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill="white", outline="black", width=2)
    return shown


def mask_iou(mask_HW: np.ndarray, truth_HW: np.ndarray) -> float:
    """Intersection over union of two boolean masks; 1 where both are empty.

    >>> mask_iou(np.array([True, True, False]), np.array([True, False, False]))
    0.5
    """
    union = int((mask_HW | truth_HW).sum())
    return int((mask_HW & truth_HW).sum()) / union if union else 1.0
