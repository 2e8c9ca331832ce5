"""Annotated pictures for training; follows the data contract of :mod:`mc_core.data`.

A view is a crop of its picture, perhaps mirrored. The same crop and the same mirroring, drawn once for each (seed, epoch, sample),
go to its boxes and to its mask. Pictures that a caption or a question calls left or right of something are never mirrored.

Legend: P pictures, B of a batch, M boxes, S side of a view, L tokens of the longest caption, C classes, H × W pixels of a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom
from mc_vision_language.augment import draw_geometry
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.annotated import AnnotatedPairs, annotated
from mc_vision_language.data.class_masks import ArrayMasks
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.views import ImageViews

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LEAST_VISIBLE = 0.25
"""Share of a box that must lie in a view for the box to stay."""
_SMALLEST = 1e-4  # side of a box, as a share of the view
_EDGE = 1e-3  # pixels: a place on the border of two pixels is the latter's, whatever rounding says


class AnnotatedData:
    """Pictures with what is known of them.

    A batch holds ``view``, (B, 3, S, S) float32 in [0, 1], and ``image_ids``; with a tokenizer and captions ``input_ids`` and
    ``attention_mask``, (B, L), and ``text_ids``; and, of what any picture is annotated with:

    - ``boxes`` (B, M, 4) float32, centre x and y, width and height as shares of the view, ``box_class`` (B, M) int64, −1 where
      there is none, not only at the end, and ``boxes_known`` (B,) bool. Boxes are cut at the crop, and dropped where less than a
      quarter of them is left; those of crowds are left out;
    - ``mask`` (B, S, S) int64: 0 for none of the classes, 1 + c for class c, −1 where it is not known;
    - ``labels`` (B, C) float32: 1 for classes that are there, 0 for others, −1 where it is not known. Those that come from boxes or
      masks are of the view: −1 where a thing was mostly cut away.

    Args:
        data: pictures; without annotations they are pairs.
        tokenizer: a fast one; without it captions are left out.
        augment: random changes of each view; None shows the whole picture, squashed to a square.
        size: side of a view; default: that of ``augment``.
        max_length: tokens of a caption, special ones included.
        add_sep: whether ``[SEP]`` ends a caption.

    Raises:
        DataError: fewer than two pictures, one without a caption where others have some, or pictures in memory whose masks are not.
        ConfigError: changes of views that boxes or masks cannot follow.
    """

    def __init__(
        self,
        data: AnnotatedPairs | Pairs,
        tokenizer: PreTrainedTokenizerFast | None = None,
        *,
        augment: AugmentConfig | None = None,
        size: int | None = None,
        max_length: int = 25,
        add_sep: bool = False,
    ) -> None:
        self.pairs = annotated(data)
        self.views = ImageViews(self.pairs.pairs.images, augment, size)
        placed = self.pairs.boxes is not None or self.pairs.masks is not None
        if augment is not None and augment.moves and placed:
            raise ConfigError(
                "augment.operations move pixels within a view, which boxes and masks do not follow: set augment.operations to "
                f"{', '.join(augment.still().operations)} (augment.still()), or augment.rand_augment to 0"
            )
        if self.views.in_memory and self.pairs.masks is not None and not isinstance(self.pairs.masks, ArrayMasks):
            raise DataError(f"{self.pairs.location}: pictures in memory with masks in files; give ArrayMasks too")
        if len(self.pairs) < 2:
            raise DataError(f"{self.pairs.location}: {len(self.pairs)} picture to train on")
        self.texts: PairData | None = None
        if tokenizer is not None and len(self.pairs.pairs.captions):
            options: dict[str, Any] = {"size": self.views.size, "max_length": max_length, "add_sep": add_sep}
            self.texts = PairData(self.pairs.pairs, tokenizer, augment=None, **options)
        self._sided = self.pairs.sided()

    def __len__(self) -> int:
        return len(self.pairs)

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One picture as a worker prepares it: ``image``, ``crop`` (4,) top, left, height and width as shares of the picture,
        ``row``, and where there are some ``caption``, the number of its caption, and ``mask`` (S, S) int16, cropped alike."""
        found: dict[str, Any] = {"row": index}
        if self.texts is not None:
            found["caption"] = int(self.texts.choose(np.array([index], dtype=np.int64), rng.random(1))[0])
        image, place = self.views.placed_sample(index, rng)
        found |= {"image": image, "crop": torch.tensor(place)}
        if self.pairs.masks is not None:
            mask = torch.from_numpy(self.pairs.masks.read(index))
            found["mask"] = (
                mask if self.views.in_memory else crop_masks(mask[None], found["crop"][None], self.views.size)[0]
            )
        return found

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples as one batch."""
        rows = np.array([sample["row"] for sample in samples], dtype=np.int64)
        names = [name for name in ("image", "crop", "mask") if name in samples[0]]
        stacked = {name: torch.stack([sample[name] for sample in samples]) for name in names}
        captions = None if self.texts is None else np.array([sample["caption"] for sample in samples])
        return {**stacked, **self._known(rows, captions)}

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where the pictures are in memory, else None."""
        return self._batch if self.views.in_memory else None

    def _batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        rows = np.asarray(indices, dtype=np.int64)
        found = self.views.batch(rows, rows, epoch, seed)
        if isinstance(self.pairs.masks, ArrayMasks):
            found["mask"] = torch.from_numpy(self.pairs.masks.array[rows])
        captions = None if self.texts is None else self.texts.drawn(rows, epoch, seed)
        return {**found, **self._known(rows, captions)}

    def _known(self, rows: np.ndarray, captions: np.ndarray | None) -> dict[str, Tensor]:
        """What is known of pictures, of the whole of each."""
        found: dict[str, Tensor] = {"image_ids": torch.from_numpy(self.pairs.pairs.image_ids[rows])}
        if self.texts is not None and captions is not None:
            found = self.texts.texts(captions)
        found["may_flip"] = torch.from_numpy(~self._sided[rows])
        if self.pairs.boxes is not None:
            boxes, classes, crowd = self.pairs.boxes.padded(rows)
            named = {"boxes": boxes, "box_class": classes, "crowd": crowd, "boxes_known": self.pairs.boxes.known[rows]}
            found |= {name: torch.from_numpy(value) for name, value in named.items()}
        if self.pairs.labels is not None and self.pairs.labels_known is not None:
            labels = np.where(self.pairs.labels_known[rows, None], self.pairs.labels[rows], -1).astype(np.float32)
            found["labels"] = torch.from_numpy(labels)
        return found

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The views in place of the stored pictures, and boxes, masks and labels as they are in them."""
        image: Tensor = batch["image"]
        found = {name: value for name, value in batch.items() if name not in ("image", "crop", "may_flip", "crowd")}
        augment, memory = self.views.augment, self.views.in_memory
        geometry, flip, whole = None, None, True
        crop = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=image.device).expand(len(image), 4)
        if augment is not None:
            height, width = image.shape[2:]
            geometry = draw_geometry(random, augment, height, width, cropped=not memory, may_flip=batch["may_flip"])
            flip, whole = geometry.flip, augment.resize == "squash"
            crop = (
                geometry.box / torch.tensor([height, width, height, width], device=image.device)
                if memory
                else batch["crop"]
            )
        found["view"] = self.views.view(batch, random, geometry=geometry)
        if "mask" in batch:
            mask = crop_masks(batch["mask"], crop, self.views.size, flip) if memory else _mirrored(batch["mask"], flip)
            found["mask"] = mask.long()
        if "boxes" in batch:
            placed = place_boxes(batch["boxes"], batch["box_class"], crop, flip)
            found["boxes"] = placed.boxes
            found["box_class"] = placed.box_class.masked_fill(batch["crowd"], -1)
            if self.pairs.labels_from == "boxes" and not whole:
                found["labels"] = placed.labels(batch["labels"], batch["box_class"])
        if self.pairs.labels_from == "masks" and not whole:
            found["labels"] = labels_in_view(batch["labels"], found["mask"])
        return found

    def advice(self) -> list[str]:
        """What the user should know about these pictures with these views, one line each."""
        augment = self.views.augment
        sides = int(self._sided.sum())
        if augment is None or augment.flip == 0 or not sides:
            return []
        share = sides / len(self)
        said = f"{sides:,} pictures ({share:.0%}) have captions or questions that say left or right"
        return [f"{said}: they are never mirrored, the others with probability {augment.flip:g}"]

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        texts = {} if self.texts is None else self.texts.describe()
        return {
            "kind": "annotated pictures",
            **self.pairs.describe(),
            **{name: texts[name] for name in ("tokens", "max_length", "add_sep") if name in texts},
            "size": self.views.size,
            "augment": None if self.views.augment is None else self.views.augment.model_dump(mode="json"),
        }


def crop_masks(masks: Tensor, crop: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """(B, S, S) of masks (B, H, W): the nearest pixel of each crop, mirrored where asked.

    Args:
        masks: whole numbers.
        crop: (B, 4) top, left, height, width, as shares of the mask's height and width.
        size: S.
        flip: (B,) bool.

    >>> mask = torch.arange(16).view(1, 4, 4)
    >>> crop_masks(mask, torch.tensor([[0.5, 0.0, 0.5, 0.5]]), 2, torch.tensor([True])).tolist()
    [[[9, 8], [13, 12]]]
    """
    count, height, width = masks.shape
    at_S = (torch.arange(size, device=masks.device) + 0.5) / size
    top, left, tall, wide = crop.to(at_S.dtype)[:, :, None].unbind(1)
    rows = ((top + tall * at_S) * height + _EDGE).long().clamp(0, height - 1)
    columns = ((left + wide * at_S) * width + _EDGE).long().clamp(0, width - 1)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    picture = torch.arange(count, device=masks.device)[:, None, None]
    return masks[picture, rows[:, :, None], columns[:, None, :]]


def _mirrored(masks: Tensor, flip: Tensor | None) -> Tensor:
    return masks if flip is None else torch.where(flip[:, None, None], masks.flip(2), masks)


class PlacedBoxes:
    """Boxes as a view shows them.

    Attributes:
        boxes: (B, M, 4) centre x and y, width, height, as shares of the view; 0 where none is left.
        box_class: (B, M) int64, −1 where none is left.
        visible: (B, M) share of each box that the view shows.
    """

    def __init__(self, boxes: Tensor, box_class: Tensor, visible: Tensor) -> None:
        self.boxes, self.box_class, self.visible = boxes, box_class, visible

    def labels(self, labels: Tensor, box_class: Tensor) -> Tensor:
        """(B, C) labels of the view: 1 where a box is left, −1 where one is cut to less than that, 0 for those out of sight.

        Args:
            labels: (B, C) of the picture; −1 where it is not known.
            box_class: (B, M) of all boxes of the picture.
        """
        kept = _any_of(self.box_class, labels)
        partly = _any_of(box_class.masked_fill(self.visible <= 0, -1), labels)
        shown = torch.where(kept, 1.0, torch.where(partly, -1.0, 0.0)).to(labels.dtype)
        return torch.where(labels < 0, labels, shown)


def _any_of(classes: Tensor, labels: Tensor) -> Tensor:
    """(B, C) bool: which classes are among (B, M), of which −1 is none."""
    found = torch.zeros(len(labels), labels.shape[1] + 1, dtype=torch.bool, device=labels.device)
    found.scatter_(1, classes.clamp(min=-1) + 1, torch.ones_like(classes, dtype=torch.bool))
    return found[:, 1:]


def place_boxes(boxes: Tensor, box_class: Tensor, crop: Tensor, flip: Tensor | None = None) -> PlacedBoxes:
    """Boxes of pictures as shares of a view: moved, cut at its border, mirrored, dropped where less than a quarter is left.

    Args:
        boxes: (B, M, 4) centre x and y, width, height, as shares of the picture.
        box_class: (B, M), −1 where there is none.
        crop: (B, 4) top, left, height, width of the view, as shares of the picture.
        flip: (B,) bool, whether the view is mirrored.

    >>> half = torch.tensor([[0.0, 0.5, 1.0, 0.5]])  # the right one
    >>> placed = place_boxes(torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]), torch.tensor([[3]]), half, torch.tensor([True]))
    >>> placed.boxes.tolist(), placed.box_class.tolist(), placed.visible.tolist()
    ([[[0.75, 0.5, 0.5, 0.5]]], [[3]], [[0.5]])
    """
    top, left, height, width = crop[:, None, :, None].unbind(2)
    start = torch.cat([left, top], 2)
    extent = torch.cat([width, height], 2)
    centre, size = boxes[..., :2], boxes[..., 2:]
    low = ((centre - size / 2 - start) / extent).clamp(0, 1)
    high = ((centre + size / 2 - start) / extent).clamp(0, 1)
    shown = (high - low).clamp(min=0)
    there = box_class >= 0
    area = (size / extent).prod(2).clamp(min=torch.finfo(boxes.dtype).tiny)
    visible = (shown.prod(2) / area).masked_fill(~there, 0)
    kept = there & (visible >= LEAST_VISIBLE - _SMALLEST) & (shown > _SMALLEST).all(2)
    middle = (low + high) / 2
    if flip is not None:
        mirrored = torch.stack([1 - middle[..., 0], middle[..., 1]], 2)
        middle = torch.where(flip[:, None, None], mirrored, middle)
    placed = torch.cat([middle, shown], 2).masked_fill(~kept[..., None], 0)
    return PlacedBoxes(placed, box_class.masked_fill(~kept, -1), visible)


def labels_in_view(labels: Tensor, mask: Tensor) -> Tensor:
    """(B, C) labels of a view by its mask: 1 where a class has a pixel, −1 where it had some in the picture alone.

    A thing may be too small for the pixels of the view, so that not seeing it does not tell that it is not there.

    >>> labels_in_view(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[[0, 1], [-1, 0]]])).tolist()
    [[1.0, -1.0, 0.0]]
    """
    seen = _any_of(mask.flatten(1) - 1, labels)
    return torch.where(labels > 0, torch.where(seen, 1.0, -1.0).to(labels.dtype), labels)
