"""Views of the pictures of a set, for training and in order: decoded by workers, finished on the device.

Legend: B pictures, H × W pixels, S side of a view.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mc_core.images.crops import ATTEMPTS, crop_resize, random_box
from mc_core.random import BatchRandom, sample_rng
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.images import ImageSet, pixels_of, squashed

if TYPE_CHECKING:
    from mc_vision_language.augment import Geometry

_WHOLE = (0.0, 0.0, 1.0, 1.0)


class ImageViews:
    """The picture half of a data set.

    Files are decoded and cropped one by one by the loader's workers (:meth:`sample`), pictures in memory are taken whole
    (:meth:`batch`) and cropped on the device. Flip and changes of colour and place are the device's in either case (:meth:`view`).

    Args:
        images: N pictures.
        augment: random changes; None shows the whole picture, squashed to a square, as the paper evaluates.
        size: side of a view in pixels; default: that of ``augment``.

    >>> from mc_vision_language.data.images import ArrayImages
    >>> views = ImageViews(ArrayImages(np.zeros((4, 3, 20, 20), np.uint8)), None, 16)
    >>> random = BatchRandom(seed=0, epoch=0, index=torch.tensor([2, 0]))
    >>> views.view(views.batch(np.array([2, 0]), np.array([2, 0]), 0, 0), random).shape
    torch.Size([2, 3, 16, 16])
    """

    def __init__(self, images: ImageSet, augment: AugmentConfig | None, size: int | None = None) -> None:
        self.images, self.augment = images, augment
        self.size = size or (augment or AugmentConfig()).size
        if augment is not None and augment.size != self.size:
            self.augment = augment.model_copy(update={"size": self.size})
        self.array: np.ndarray | None = getattr(images, "array", None)

    @property
    def in_memory(self) -> bool:
        """Whether whole batches can be had at once."""
        return self.array is not None

    def sample(self, row: int, rng: np.random.Generator) -> Tensor:
        """(3, H, W) uint8: the stored pixels of a picture in memory, else a crop of the size of a view."""
        return self.placed_sample(row, rng)[0]

    def placed_sample(self, row: int, rng: np.random.Generator) -> tuple[Tensor, tuple[float, float, float, float]]:
        """The same, and where it lies in the picture: top, left, height and width, as shares of its height and width."""
        if self.array is not None:
            return torch.from_numpy(self.array[row]), _WHOLE
        if self.augment is None or self.augment.resize == "squash":
            image = self.images.read(row, min_side=self.size)
            return torch.from_numpy(squashed(image, self.size)), _WHOLE
        smallest = math.ceil(self.size / math.sqrt(self.augment.scale[0]))
        image = self.images.read(row, min_side=smallest)
        numbers = rng.random(2 * ATTEMPTS + 2).tolist()
        box = random_box(numbers, image.height, image.width, self.augment.scale, self.augment.ratio)
        top, left, height, width = box
        place = (top / image.height, left / image.width, height / image.height, width / image.width)
        return torch.from_numpy(pixels_of(image, box, self.size)), place

    def batch(self, rows: np.ndarray, indices: np.ndarray, epoch: int, seed: int, stream: int = 0) -> dict[str, Tensor]:
        """``image``, (B, 3, H, W) uint8: what :meth:`sample` gives for each row.

        Args:
            rows: (B,) pictures.
            indices: (B,) positions in the data set, which say what is drawn.
            epoch: of this pass.
            seed: of the run.
            stream: separates several pictures of one sample.
        """
        if self.array is not None:
            return {"image": torch.from_numpy(self.array[rows])}
        pixels = [
            self.sample(int(row), sample_rng(seed, epoch, int(index), stream))
            for row, index in zip(rows, indices, strict=True)
        ]
        return {"image": torch.stack(pixels)}

    def view(
        self, part: Mapping[str, Any], random: BatchRandom, stream: int = 0, geometry: Geometry | None = None
    ) -> Tensor:
        """(B, 3, S, S) float32 in [0, 1], of what :meth:`sample` or :meth:`batch` gave as ``part["image"]``.

        ``geometry``: of :func:`mc_vision_language.augment.draw_geometry`, where others need it too.
        """
        from mc_vision_language.augment import make_views

        pixels: Tensor = part["image"]
        if self.augment is not None:
            cropped = not self.in_memory
            return make_views(pixels, random, self.augment, stream=stream, cropped=cropped, geometry=geometry)
        height, width = pixels.shape[2:]
        if height == width == self.size:
            return pixels.float() / 255
        whole = torch.tensor([[0.0, 0.0, height, width]], device=pixels.device)
        return crop_resize(pixels.float(), whole, self.size, kernel="bicubic", levels=True) / 255

    def describe(self) -> dict[str, Any]:
        """The pictures, and how they are looked at."""
        augment = None if self.augment is None else self.augment.model_dump(mode="json")
        return {**self.images.describe(), "size": self.size, "augment": augment}
