"""Pairs of a radiograph and a text of its report, for training; follows the data contract of :mod:`mc_core.data`.

Texts are tokenised once, when the data set is made. Which text of a report a pair holds, the whole or one of its sentences, is
drawn anew for each (seed, epoch, image).

Legend: N images, B of a batch, S side of the stored square, L tokens of the longest text, U different texts.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError
from mc_core.random import BatchRandom, uniform
from mc_core.tokens import padded, tokenize
from mc_medical.augment_config import AugmentConfig
from mc_medical.data.cohort import Studies
from mc_medical.data.pixels import PixelStore
from mc_medical.data.reports import ReportOptions, sentences, swap_sides, text_key

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_STREAM = 0x3D5  # of the random numbers that choose texts
_COMPARED = 64  # pictures whose pixels are compared on resume: a mapped cohort is too large to read for that


class PairData:
    """Radiographs with a text of their report.

    A batch holds ``pixels``, (B, 1, S, S) uint8; ``input_ids`` and ``attention_mask``, (B, L) int64; ``study_ids`` and
    ``text_ids``, (B,) int64, equal for what is no negative of each other: the same study, the same drawn text. On the device
    ``view_1`` (student) and ``view_2`` (teacher) are made of the pixels, (B, 1, s, s) float32 in [0, 1], only those that
    ``batch["needs"]`` names where it is there.

    Args:
        studies: N images with reports.
        pixels: their squares, row for row: (N, S, S) uint8, or a :class:`PixelStore`, which may be mapped.
        tokenizer: a fast one.
        reports: how often a sentence is drawn.
        max_length: tokens of a text, special ones included; the rest is cut off.
        augment: random changes of each view; None shows the whole picture.
        length_buckets: texts of like length lie together within a batch, so that micro-batches are padded less. The order
            within a batch does not matter to a loss over all of it, but negatives of a micro-batch alone are then of like length.

    Raises:
        DataError: fewer than two images, an empty report, or pixels that are not those of the studies.
        ConfigError: a tokenizer that cannot pad.
    """

    def __init__(
        self,
        studies: Studies,
        pixels: np.ndarray | PixelStore,
        tokenizer: PreTrainedTokenizerFast,
        *,
        reports: ReportOptions = ReportOptions(),  # noqa: B008 - frozen
        max_length: int = 128,
        augment: AugmentConfig | None = AugmentConfig(),  # noqa: B008 - frozen
        length_buckets: bool = True,
    ) -> None:
        if len(studies) < 2:
            raise DataError(f"{len(studies)} image with a report to train on: there is nothing to contrast it with")
        if len(pixels) != len(studies):
            raise DataError(f"{len(pixels)} pictures for {len(studies)} images: give those of the same rows")
        if tokenizer.pad_token_id is None:
            raise ConfigError("the tokenizer has no padding token: set tokenizer.pad_token, or take another encoder")
        empty = np.flatnonzero([not text for text in studies.reports])
        if len(empty):
            raise DataError(
                f"{len(empty)} images have no report, the first in row {studies.rows[empty[0]]}; leave them out"
            )
        self.studies, self.pixels = studies, pixels
        self.reports, self.max_length, self.augment, self.length_buckets = reports, max_length, augment, length_buckets
        self.pad_id: int = tokenizer.pad_token_id
        self._index_texts(tokenizer)

    def _index_texts(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Each report as numbers into the different texts: itself first, then its sentences."""
        place: dict[str, int] = {}
        of_report: dict[str, list[int]] = {}
        for report in self.studies.reports:
            if report not in of_report:
                several = sentences(report) if self.reports.sentence_share else []
                texts = [report, *(several if len(several) > 1 else [])]
                of_report[report] = [place.setdefault(text, len(place)) for text in texts]
        counts = np.array([len(of_report[report]) for report in self.studies.reports], dtype=np.int64)
        self._choices = np.concatenate([of_report[report] for report in self.studies.reports]).astype(np.int64)
        self._first = np.cumsum(counts) - counts
        self._sentences = counts - 1
        self.texts = tuple(place)
        shown = list(self.texts)
        if self._swaps:
            shown += [swap_sides(text) for text in self.texts]
        self._keys = np.array([text_key(text) for text in shown], dtype=np.int64)
        self.tokens = tokenize(tokenizer, shown, self.max_length)

    @property
    def _swaps(self) -> bool:
        return self.augment is not None and self.augment.flip == "swap"

    def __len__(self) -> int:
        return len(self.studies)

    def drawn(self, indices: np.ndarray, epoch: int, seed: int) -> np.ndarray:
        """(B,) which text each image has in this epoch: a number into the different texts, mirrored ones after the others."""
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        texts = self._choose(index.numpy(), uniform(seed, epoch, index, 2, stream=_STREAM).numpy())
        if self._swaps:
            from mc_medical.augment import flip_coins

            texts = texts + len(self.texts) * flip_coins(seed, epoch, index).numpy()
        return texts

    def _choose(self, rows: np.ndarray, u_B2: np.ndarray) -> np.ndarray:
        several = self._sentences[rows]
        sentence = np.minimum((u_B2[:, 1] * several).astype(np.int64), several - 1)
        one = (u_B2[:, 0] < self.reports.sentence_share) & (several > 0)
        return self._choices[self._first[rows] + np.where(one, 1 + sentence, 0)]

    def get(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One pair, without the views that the device makes; sides are not swapped."""
        rows = np.array([index], dtype=np.int64)
        return {name: value[0] for name, value in self._batch(rows, self._choose(rows, rng.random((1, 2)))).items()}

    def get_batch(self, indices: Sequence[int], epoch: int, seed: int) -> dict[str, Tensor]:
        """These pairs in this epoch, without the views that the device makes."""
        rows = np.asarray(indices, dtype=np.int64)
        return self._batch(rows, self.drawn(rows, epoch, seed))

    def _batch(self, rows: np.ndarray, texts: np.ndarray) -> dict[str, Tensor]:
        places, lengths = self.tokens.places(texts)
        input_ids, mask = padded(self.tokens.ids[places], lengths, self.pad_id)
        return {
            "pixels": torch.from_numpy(self._pixels(rows))[:, None],
            "input_ids": input_ids,
            "attention_mask": mask,
            "study_ids": torch.from_numpy(self.studies.studies[rows]),
            "text_ids": torch.from_numpy(self._keys[texts]),
        }

    def _pixels(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels.rows(rows) if isinstance(self.pixels, PixelStore) else self.pixels[rows]

    def arrange(self, permutation: np.ndarray, *, epoch: int, batch_size: int, seed: int) -> np.ndarray:
        """An epoch's order in which each batch holds the same images as before, shorter texts first."""
        if not self.length_buckets:
            return permutation
        whole = len(permutation) // batch_size * batch_size
        rows = permutation[:whole].reshape(-1, batch_size)
        lengths = self.tokens.lengths[self.drawn(permutation[:whole], epoch, seed)].reshape(rows.shape)
        order = np.argsort(lengths, axis=1, kind="stable")
        return np.concatenate([np.take_along_axis(rows, order, axis=1).reshape(-1), permutation[whole:]])

    def device_transform(self, batch: Mapping[str, Any], random: BatchRandom) -> dict[str, Any]:
        """The views that are needed; without ``augment`` the pixels as they are, in [0, 1]."""
        from mc_medical.augment import make_view

        wanted = batch.get("needs") or ("view_1", "view_2")
        views: dict[str, Tensor] = {}
        for number, name in ((1, "view_1"), (2, "view_2")):
            if name in wanted:
                if self.augment is None:
                    views[name] = batch["pixels"].to(torch.float32) / 255
                else:
                    views[name] = make_view(batch["pixels"], random, number, self.augment)
        return {**{name: value for name, value in batch.items() if name != "pixels"}, **views}

    def describe(self) -> dict[str, Any]:
        """What identifies the pairs, without a word of the reports."""
        return {
            "images": len(self),
            "patients": len(np.unique(self.studies.patients)),
            "texts": len(self.texts),
            "tokens_crc32": zlib.crc32(self.tokens.ids.tobytes()),
            "index_crc32": zlib.crc32(np.stack([self.studies.studies, self._first]).tobytes()),
            "pixels_crc32": zlib.crc32(self._pixels(np.arange(0, len(self), max(1, len(self) // _COMPARED))).tobytes()),
            "max_length": self.max_length,
            "sentence_share": self.reports.sentence_share,
            "augment": None if self.augment is None else self.augment.model_dump(mode="json"),
            "length_buckets": self.length_buckets,
        }
