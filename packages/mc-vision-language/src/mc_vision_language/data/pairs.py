"""Pictures with their captions, divided into parts; what every reader of this package ends in.

Legend: N pictures, M captions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.listing import fingerprint
from mc_vision_language.data.captions import clean_caption, names_sides, text_key
from mc_vision_language.data.images import ArrayImages, ImageSet
from mc_vision_language.data.options import CaptionOptions, SplitOptions

if TYPE_CHECKING:
    from mc_core.samples import DigitScenes

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Pairs:
    """Pictures, each with one or more captions.

    Attributes:
        images: N pictures.
        captions: M texts, cleaned, those of a picture one after the other.
        image_of: (M,) int64, the picture of each, rising.
        image_ids: (N,) int64, equal for what is the same picture.
        text_ids: (M,) int64, equal for the same words.
        splits: (N,) of ``train``, ``validation``, ``test``.
        dropped: what was left out, by reason.
        examples: one line for each reason.
        columns: what was taken for what.
        location: where they came from.

    Raises:
        DataError: lengths that do not fit, or a caption of no picture.

    >>> pairs = Pairs(
    ...     ArrayImages(np.zeros((2, 3, 8, 8), np.uint8)),
    ...     ("a dog", "a big dog", "a cat"),
    ...     np.array([0, 0, 1]),
    ...     image_ids=np.arange(2),
    ...     text_ids=np.arange(3),
    ...     splits=np.array(["train", "test"]),
    ... )
    >>> len(pairs), pairs.captions_of(0), pairs.part("test").captions
    (2, ('a dog', 'a big dog'), ('a cat',))
    """

    images: ImageSet
    captions: tuple[str, ...]
    image_of: np.ndarray
    image_ids: np.ndarray
    text_ids: np.ndarray
    splits: np.ndarray
    dropped: Counter[str] = field(default_factory=Counter)
    examples: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    location: str = "memory"

    def __post_init__(self) -> None:
        count, texts = len(self.images), len(self.captions)
        lengths = (len(self.image_ids), len(self.splits), len(self.image_of), len(self.text_ids))
        if lengths != (count, count, texts, texts):
            raise DataError(f"{count} pictures and {texts} captions with {lengths} ids, splits, places and text ids")
        if texts and (self.image_of[0] < 0 or self.image_of[-1] >= count or (np.diff(self.image_of) < 0).any()):
            raise DataError(f"image_of must rise from 0 to {count - 1}: give the captions of each picture together")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def first_caption(self) -> np.ndarray:
        """(N + 1,) int64: where the captions of each picture begin, and where the last end."""
        return np.searchsorted(self.image_of, np.arange(len(self) + 1)).astype(np.int64)

    def captions_of(self, row: int) -> tuple[str, ...]:
        """The captions of one picture."""
        first, last = np.searchsorted(self.image_of, [row, row + 1])
        return self.captions[first:last]

    def part(self, name: str) -> Pairs:
        """The pictures of a split, with their captions.

        Raises:
            DataError: there are none.
        """
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            counts = ", ".join(f"{key} ({count})" for key, count in self.split_counts().items()) or "nothing"
            raise DataError(f"{self.location}: no picture in the split '{name}'; there are {counts}")
        return self.take(rows)

    def take(self, rows: Any) -> Pairs:
        """These pictures, in this order, with their captions."""
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= len(self)):
            raise DataError(f"rows run from {chosen.min()} to {chosen.max()}, there are 0 to {len(self) - 1}")
        first = self.first_caption
        counts = (first[1:] - first[:-1])[chosen]
        ends = np.cumsum(counts)
        texts = np.arange(ends[-1] if len(ends) else 0) + np.repeat(first[chosen] - (ends - counts), counts)
        return replace(
            self,
            images=self.images.take(chosen),
            captions=tuple(self.captions[i] for i in texts.tolist()),
            image_of=np.repeat(np.arange(len(chosen)), counts),
            image_ids=self.image_ids[chosen],
            text_ids=self.text_ids[texts],
            splits=self.splits[chosen],
        )

    def divided(self, shares: Sequence[float] = SplitOptions().shares, seed: int = 0) -> Pairs:
        """Divided anew; see :func:`divide`."""
        return replace(self, splits=divide(self.image_ids, shares, seed))

    def split_counts(self) -> dict[str, int]:
        """Pictures in each split."""
        found, counts = np.unique(self.splits, return_counts=True)
        given = dict(zip(found.tolist(), counts.tolist(), strict=True))
        return {name: given[name] for name in (*SPLITS, *sorted(set(given) - set(SPLITS))) if name in given}

    def describe(self) -> dict[str, Any]:
        """What identifies the pairs, and what was left out."""
        return {
            "location": self.location,
            "images": {name: value for name, value in self.images.describe().items() if name != "location"},
            "captions": len(self.captions),
            "different_captions": len(np.unique(self.text_ids)),
            "different_images": len(np.unique(self.image_ids)),
            "captions_with_left_or_right": sum(map(names_sides, self.captions)),
            "splits": self.split_counts(),
            "dropped": dict(self.dropped),
            "columns": dict(self.columns),
            "digest": fingerprint(self.text_ids, self.image_of, self.image_ids),
        }


def divide(image_ids: np.ndarray, shares: Sequence[float] = SplitOptions().shares, seed: int = 0) -> np.ndarray:
    """The part of each picture, by a hash of (seed, id): equal pictures stay together, and adding pictures moves none.

    Shares hold on average. A part with a share above 0 that would be empty gets the picture whose hash lies nearest.

    Args:
        image_ids: (N,) int64.
        shares: to train on, to choose with, to measure with; they sum to 1.
        seed: of the division.

    Returns:
        (N,) of ``train``, ``validation``, ``test``.

    Raises:
        DataError: fewer different pictures than parts.

    >>> divide(np.array([7, 7, 8]), (0.5, 0.0, 0.5), seed=1).tolist()
    ['test', 'test', 'train']
    """
    wanted = np.asarray(SplitOptions(shares=tuple(shares)).shares)  # type: ignore[arg-type]
    different, group = np.unique(np.asarray(image_ids, dtype=np.int64), return_inverse=True)
    parts = np.flatnonzero(wanted > 0)
    if len(different) < len(parts):
        raise DataError(
            f"{len(different)} different pictures cannot be divided into {len(parts)} parts; give more, or a share of 0"
        )
    place = _scattered(different, seed)
    edges = np.cumsum(wanted)
    code = np.minimum(np.searchsorted(edges, place, side="right"), parts[-1])
    for part in parts.tolist():
        if not (code == part).any():
            spare = np.bincount(code, minlength=3)[code] > 1
            middle = edges[part] - wanted[part] / 2
            code[np.argmin(np.where(spare, np.abs(place - middle), np.inf))] = part
    return np.array(SPLITS)[code[group]]


def _scattered(ids: np.ndarray, seed: int) -> np.ndarray:
    """(N,) float64 in [0, 1), a function of the seed and the id alone."""
    x = ids.astype(np.uint64) ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % (1 << 64))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x ^= x >> np.uint64(shift)
        x *= np.uint64(factor)
    return (x >> np.uint64(11)).astype(np.float64) / (1 << 53)


def scene_pairs(
    scenes: DigitScenes | Mapping[str, DigitScenes],
    splits: str | Sequence[str] = "train",
    *,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 - frozen
) -> Pairs:
    """Digit scenes with their captions.

    Args:
        scenes: of :func:`mc_core.samples.digit_scenes`; or some for each split, as ``{"train": …, "test": …}``.
        splits: where they are not given by split: the split of all, or of each.
        captions: what of a caption is kept.

    >>> from mc_core.samples import digit_scenes
    >>> scene_pairs(digit_scenes(2, size=32)).captions_of(0)
    ('a large red nine',)
    """
    given = scenes if isinstance(scenes, Mapping) else {"": scenes}
    if not given:
        raise DataError("no scenes")
    pixels = np.concatenate([part.images.numpy() for part in given.values()])
    texts = [clean_caption(text, captions) for part in given.values() for text in part.captions]
    names = [name for name, part in given.items() for _ in range(len(part))]
    if not isinstance(scenes, Mapping):
        names = [splits] * len(texts) if isinstance(splits, str) else list(splits)
    if unknown := sorted(set(names) - set(SPLITS)):
        raise ConfigError(f"split '{unknown[0]}': choose {', '.join(SPLITS)}; closest: {closest(unknown[0], SPLITS)}")
    return Pairs(
        ArrayImages(pixels, location="scenes"),
        tuple(texts),
        np.arange(len(texts)),
        image_ids=array_ids(pixels),
        text_ids=np.array([text_key(text) for text in texts], dtype=np.int64),
        splits=np.array(names),
        columns={"image": "digit scenes", "caption": "their sentences"},
        location="digit scenes",
    )


def array_ids(pixels: np.ndarray) -> np.ndarray:
    """(N,) int64 that are equal for equal pictures."""
    keys = [blake2b(picture.tobytes(), digest_size=8).digest() for picture in pixels]
    return np.array([int.from_bytes(key, "big") >> 1 for key in keys], dtype=np.int64)


def shuffled_captions(pairs: Pairs, share: float, seed: int) -> Pairs:
    """Pairs with wrong captions, for experiments: a share of the training captions change places among themselves.

    Args:
        pairs: other splits stay as they are.
        share: of the training captions, in [0, 1]; each of them gets another place.
        seed: which, and where to.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share={share}: a share of the captions between 0 and 1")
    training = np.flatnonzero(pairs.splits[pairs.image_of] == "train")
    rng = np.random.Generator(np.random.Philox(key=seed))
    count = round(share * len(training))
    moved = training[rng.permutation(len(training))[:count]]
    order = np.arange(len(pairs.captions))
    order[moved] = np.roll(moved, 1)
    return replace(pairs, captions=tuple(pairs.captions[i] for i in order.tolist()), text_ids=pairs.text_ids[order])
