"""Pairs of a picture and a caption for training; follows the data contract of :mod:`mc_core.data`.

Captions are tokenised once, when the data set is made. Which caption a picture is shown with is drawn anew for each (seed, epoch,
sample).

Legend: N pictures, M captions, B of a batch, S side of a view, L tokens of the longest caption of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.listing import fingerprint
from mc_core.random import BatchRandom, uniform
from mc_core.tokens import padded
from mc_vision_language.augment_config import AugmentConfig
from mc_vision_language.data.captions import names_sides
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.views import ImageViews
from mc_vision_language.tokenizers import tokenize_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STREAM = 0xCA9  # of the random numbers that choose captions


class PairData:
    """Pictures with a caption.

    A batch holds ``view``, (B, 3, S, S) float32 in [0, 1], made on the device; ``input_ids`` and ``attention_mask``, (B, L) int64;
    ``image_ids`` and ``text_ids``, (B,) int64, equal for what is no negative of each other: the same picture, the same words.

    Args:
        pairs: at least two.
        tokenizer: a fast one.
        augment: random changes of each view; None shows the whole picture, squashed to a square.
        size: side of a view; default: that of ``augment``.
        max_length: tokens of a caption, special ones included; the rest is cut off.
        unit: ``"image"``: a sample is a picture, with one of its captions drawn; ``"caption"``: a sample is a caption.
        add_sep: whether ``[SEP]`` ends a caption.

    Raises:
        DataError: fewer than two samples, or a picture without a caption.
        ConfigError: an unknown unit, or a tokenizer that cannot pad.
    """

    def __init__(
        self,
        pairs: Pairs,
        tokenizer: PreTrainedTokenizerFast,
        *,
        augment: AugmentConfig | None = AugmentConfig(),  # noqa: B008 - frozen
        size: int | None = None,
        max_length: int = 25,
        unit: Literal["image", "caption"] = "image",
        add_sep: bool = False,
    ) -> None:
        if unit not in ("image", "caption"):
            raise ConfigError(f"unit '{unit}': a sample is an 'image' with one of its captions, or a 'caption'")
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token: set tokenizer.pad_token, or take another one")
        self.pairs, self.unit, self.max_length, self.add_sep = pairs, unit, max_length, add_sep
        self.views = ImageViews(pairs.images, augment, size)
        self.pad_id = int(tokenizer.pad_token_id)
        self._first = pairs.first_caption
        self._counts = np.diff(self._first)
        if len(self) < 2:
            raise DataError(f"{len(self)} pair to train on: there is nothing to contrast it with")
        if not self._counts.all():
            raise DataError(
                f"{pairs.images.name(int(self._counts.argmin()))}: a picture without a caption; leave it out"
            )
        self.tokens = tokenize_texts(tokenizer, pairs.captions, max_length, add_sep=add_sep)

    def __len__(self) -> int:
        return len(self.pairs) if self.unit == "image" else len(self.pairs.captions)

    def drawn(self, indices: np.ndarray, epoch: int, seed: int) -> np.ndarray:
        """(B,) which of all captions each sample has in this epoch."""
        if self.unit == "caption":
            return indices
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self.choose(indices, uniform(seed, epoch, index, 1, stream=_STREAM)[:, 0].numpy())

    def choose(self, rows: np.ndarray, u_B: np.ndarray) -> np.ndarray:
        """(B,) a caption of each of these pictures, by numbers in [0, 1)."""
        counts = self._counts[rows]
        return self._first[rows] + np.minimum((u_B * counts).astype(np.int64), counts - 1)

    def _image_rows(self, indices: np.ndarray) -> np.ndarray:
        return indices if self.unit == "image" else self.pairs.image_of[indices]

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair, without the view that the device makes: ``image``, and ``caption``, the number of its caption."""
        rows = np.array([index], dtype=np.int64)
        u = rng.random(1)
        caption = self.choose(rows, u) if self.unit == "image" else rows
        return {"image": self.views.sample(int(self._image_rows(rows)[0]), rng), "caption": int(caption[0])}

    def collate(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Samples as one batch."""
        images = torch.stack([sample["image"] for sample in samples])
        return {"image": images, **self.texts(np.array([sample["caption"] for sample in samples]))}

    @property
    def get_batch(self) -> Callable[[Sequence[int], int, int], dict[str, Any]] | None:
        """``get_batch(indices, epoch, seed)`` where the pictures are in memory, else None."""
        return self._batch if self.views.in_memory else None

    def _batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Any]:
        rows = np.asarray(indices, dtype=np.int64)
        images = self.views.batch(self._image_rows(rows), rows, epoch, seed)
        return {**images, **self.texts(self.drawn(rows, epoch, seed))}

    def texts(self, captions: np.ndarray) -> dict[str, Tensor]:
        """What a batch holds of these captions (B,): token ids, mask, and the ids of pictures and words."""
        places, lengths = self.tokens.places(captions)
        input_ids, mask = padded(self.tokens.ids[places], lengths, self.pad_id)
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "image_ids": torch.from_numpy(self.pairs.image_ids[self.pairs.image_of[captions]]),
            "text_ids": torch.from_numpy(self.pairs.text_ids[captions]),
        }

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The views, in place of the stored pictures."""
        view = self.views.view(batch, random)
        return {**{name: value for name, value in batch.items() if name != "image"}, "view": view}

    def advice(self) -> list[str]:
        """What the user should know about these pairs with these views, one line each."""
        augment = self.views.augment
        sides = sum(map(names_sides, self.pairs.captions))
        if augment is None or augment.flip == 0 or not sides:
            return []
        share = sides / len(self.pairs.captions)
        said = f"{sides:,} captions ({share:.0%}) say left or right, and pictures are mirrored with probability {augment.flip:g}"
        return [f"{said}, as in the paper; where sides matter, set augment.flip to 0 (--augment.flip 0)"]

    def describe(self) -> dict[str, Any]:
        """What identifies the data."""
        return {
            "kind": "pairs",
            **self.pairs.describe(),
            "size": self.views.size,
            "augment": None if self.views.augment is None else self.views.augment.model_dump(mode="json"),
            "tokens": fingerprint(self.tokens.ids, self.tokens.offsets),
            "unit": self.unit,
            "max_length": self.max_length,
            "add_sep": self.add_sep,
        }
