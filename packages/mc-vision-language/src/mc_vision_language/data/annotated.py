"""Pictures with captions and with whatever else is known of them: boxes, the class of every pixel, classes, questions.

What nobody annotated is kept apart from what is not there: a picture without boxes may be one on which nothing was found, or one at
which nobody looked. Only the former is learnt from.

Legend: P pictures, M boxes of all of them, B pictures taken, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mc_core.errors import ConfigError, DataError, closest
from mc_core.listing import count_text, fingerprint
from mc_vision_language.data.captions import names_sides
from mc_vision_language.data.class_masks import ArrayMasks, ClassMasks, classes_in
from mc_vision_language.data.options import SplitOptions
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.data.questions import Questions

ANNOTATIONS = ("captions", "labels", "boxes", "masks", "questions")
"""What a picture can be annotated with."""
_SLACK = 1e-3  # of a picture's side, by which a box may reach beyond it


@dataclass(frozen=True)
class Boxes:
    """Boxes of P pictures, those of a picture one after the other.

    Attributes:
        all_boxes: (M, 4) float32: centre x and y, width, height, as shares of the picture's width and height.
        box_class: (M,) int64, 0 to C − 1.
        box_offsets: (P + 1,) int64, where the boxes of each picture begin, and where the last end.
        known: (P,) bool, whether somebody looked at the picture.
        crowd: (M,) bool, whether a box is around many things that are not told apart.

    Raises:
        DataError: lengths that do not fit, a box outside its picture or without area.

    >>> boxes = Boxes.of([[(0.5, 0.5, 0.2, 0.4)], [], None], [[3], [], []])
    >>> boxes.box_offsets.tolist(), boxes.known.tolist(), boxes.take(np.array([2, 0])).box_offsets.tolist()
    ([0, 1, 1, 1], [True, True, False], [0, 0, 1])
    """

    all_boxes: np.ndarray
    box_class: np.ndarray
    box_offsets: np.ndarray
    known: np.ndarray
    crowd: np.ndarray

    def __post_init__(self) -> None:
        count, pictures = len(self.all_boxes), len(self.box_offsets) - 1
        lengths = (len(self.box_class), len(self.crowd), len(self.known))
        if self.all_boxes.shape != (count, 4) or lengths != (count, count, pictures):
            raise DataError(
                f"{count} boxes of shape {self.all_boxes.shape} in {pictures} pictures, with {lengths} classes, crowds and known"
            )
        if self.box_offsets[0] != 0 or self.box_offsets[-1] != count or (np.diff(self.box_offsets) < 0).any():
            raise DataError(f"box_offsets must rise from 0 to {count}, they begin {self.box_offsets[:3].tolist()}")
        centre, size = self.all_boxes[:, :2], self.all_boxes[:, 2:]
        low, high = centre - size / 2, centre + size / 2
        wrong = ~((low >= -_SLACK) & (high <= 1 + _SLACK) & (size > 0)).all(1) | (self.box_class < 0)
        if wrong.any():
            first = int(wrong.argmax())
            picture = int(np.searchsorted(self.box_offsets, first, side="right")) - 1
            raise DataError(
                f"picture {picture}: box {np.round(self.all_boxes[first], 4).tolist()} of class {self.box_class[first]}; give "
                "centre x, centre y, width and height as shares of the picture, with an area inside it, and a class of 0 or more"
            )

    @classmethod
    def of(
        cls,
        boxes: Sequence[Sequence[Sequence[float]] | None],
        classes: Sequence[Sequence[int]],
        crowd: Sequence[Sequence[bool]] | None = None,
    ) -> Boxes:
        """From a list for each picture; None where nobody looked."""
        counts = [0 if one is None else len(one) for one in boxes]
        flat = [box for one in boxes if one is not None for box in one]
        return cls(
            np.array(flat, dtype=np.float32).reshape(-1, 4),
            np.array([c for one in classes for c in one], dtype=np.int64),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            np.array([one is not None for one in boxes], dtype=bool),
            np.zeros(len(flat), bool) if crowd is None else np.array([c for one in crowd for c in one], dtype=bool),
        )

    def __len__(self) -> int:
        return len(self.known)

    @property
    def picture(self) -> np.ndarray:
        """(M,) int64, the picture of each box."""
        return np.repeat(np.arange(len(self)), np.diff(self.box_offsets))

    def take(self, rows: np.ndarray) -> Boxes:
        """Those of these pictures, in this order."""
        places, counts = self._places(np.asarray(rows, dtype=np.int64))
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        known = self.known[rows]
        return Boxes(self.all_boxes[places], self.box_class[places], offsets, known, self.crowd[places])

    def padded(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(B, N, 4) boxes, (B, N) int64 classes, −1 where there is no further box, and (B, N) bool crowds; N is at least 1.

        >>> boxes = Boxes.of([[(0.5, 0.5, 0.2, 0.4)], []], [[3], []])
        >>> boxes.padded(np.array([1, 0]))[1].tolist()
        [[-1], [3]]
        """
        places, counts = self._places(np.asarray(rows, dtype=np.int64))
        there = np.arange(max(int(counts.max(initial=0)), 1)) < counts[:, None]
        boxes = np.zeros((*there.shape, 4), dtype=np.float32)
        classes = np.full(there.shape, -1, dtype=np.int64)
        crowd = np.zeros(there.shape, dtype=bool)
        boxes[there], classes[there], crowd[there] = self.all_boxes[places], self.box_class[places], self.crowd[places]
        return boxes, classes, crowd

    def labels(self, classes: int) -> np.ndarray:
        """(P, C) bool: which classes a picture has a box of, crowds counted."""
        found = np.zeros((len(self), classes), dtype=bool)
        found[self.picture, self.box_class] = True
        return found

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self.box_offsets[rows]
        counts = self.box_offsets[rows + 1] - starts
        ends = np.cumsum(counts)
        return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts), counts


@dataclass(frozen=True)
class AnnotatedPairs:
    """Pictures with captions and what else is known of them. What is None is known of no picture.

    Attributes:
        pairs: P pictures, their captions and splits. A picture may have no caption.
        boxes: of all pictures.
        masks: the class of every pixel, see :mod:`mc_vision_language.data.class_masks`.
        labels: (P, C) bool, which classes are there; default: those of the boxes, else of the masks.
        class_names: C names, in the order of the numbers of boxes, masks and labels.
        questions: about these pictures: ``questions.image_of`` counts them, ``questions.splits`` are theirs.
        labels_known: (P,) bool, which rows of ``labels`` count; default: those of the pictures that the labels come from.
        labels_from: where labels come from. Those of boxes and masks follow a crop.

    Raises:
        DataError: lengths that do not fit, or a class without a name.

    >>> from mc_vision_language.data.images import ArrayImages
    >>> from mc_vision_language.data.pairs import Pairs
    >>> pictures = ArrayImages(np.zeros((2, 3, 8, 8), np.uint8))
    >>> two = np.arange(2)
    >>> pairs = Pairs(pictures, ("a dog", "a cat"), two, two, two, np.array(["train", "test"]))
    >>> found = AnnotatedPairs(pairs, Boxes.of([[(0.5, 0.5, 0.2, 0.4)], None], [[1], []]), class_names=("cat", "dog"))
    >>> found.labels.tolist(), found.missing(), found.counts()["boxes"], found.part("train").class_names
    ([[False, True], [False, False]], ('masks', 'questions'), 1, ('cat', 'dog'))
    """

    pairs: Pairs
    boxes: Boxes | None = None
    masks: ClassMasks | None = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    questions: Questions | None = None
    labels_known: np.ndarray | None = None
    labels_from: Literal["given", "boxes", "masks", ""] = ""

    def __post_init__(self) -> None:
        count, classes = len(self.pairs), len(self.class_names)
        for name, found in (("boxes", self.boxes), ("masks", self.masks), ("labels", self.labels)):
            if found is not None and len(found) != count:
                raise DataError(f"{name} of {len(found)} pictures, there are {count}")
        if self.boxes is not None and len(self.boxes.box_class) and self.boxes.box_class.max() >= classes:
            raise DataError(f"a box of class {self.boxes.box_class.max()}, there are names for {classes} (class_names)")
        if isinstance(self.masks, ArrayMasks) and self.masks.array.size and self.masks.array.max() > classes:
            raise DataError(
                f"a mask with class {self.masks.array.max() - 1}, there are names for {classes} (class_names)"
            )
        if self.questions is not None and len(self.questions.images) != count:
            raise DataError(f"questions about {len(self.questions.images)} pictures, there are {count}")
        if self.labels is not None:
            self._take_labels(np.asarray(self.labels, dtype=bool), self.labels_known, self.labels_from or "given")
        elif self.boxes is not None:
            self._take_labels(self.boxes.labels(classes), self.boxes.known, "boxes")
        elif self.masks is not None:
            self._take_labels(classes_in(self.masks, classes), self.masks.known, "masks")

    def _take_labels(self, labels: np.ndarray, known: np.ndarray | None, source: str) -> None:
        if labels.shape != (len(self.pairs), len(self.class_names)):
            raise DataError(
                f"labels of shape {labels.shape} for {len(self.pairs)} pictures and {len(self.class_names)} class_names"
            )
        known = np.ones(len(labels), dtype=bool) if known is None else known
        for name, value in (("labels", labels), ("labels_known", known), ("labels_from", source)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def location(self) -> str:
        """Where they came from."""
        return self.pairs.location

    def known(self, name: str) -> np.ndarray:
        """(P,) bool: which pictures are annotated with captions, labels, boxes, masks or questions.

        Raises:
            ConfigError: another name.
        """
        if name == "captions":
            return np.diff(self.pairs.first_caption) > 0
        if name == "questions" and self.questions is not None:
            return np.bincount(self.questions.image_of, minlength=len(self)) > 0
        if name == "labels" and self.labels_known is not None:
            return self.labels_known
        if name in ("boxes", "masks") and getattr(self, name) is not None:
            return getattr(self, name).known
        if name not in ANNOTATIONS:
            raise ConfigError(f"no annotation '{name}': did you mean {closest(name, ANNOTATIONS)}?")
        return np.zeros(len(self), dtype=bool)

    def counts(self) -> dict[str, int]:
        """How many pictures are annotated with what."""
        return {name: int(self.known(name).sum()) for name in ANNOTATIONS}

    def missing(self) -> tuple[str, ...]:
        """What no picture is annotated with, of captions, labels, boxes, masks and questions."""
        return tuple(name for name, count in self.counts().items() if not count)

    def sided(self) -> np.ndarray:
        """(P,) bool: pictures that a caption or a question calls left or right of something, which must not be mirrored."""
        found = np.zeros(len(self), dtype=bool)
        found[self.pairs.image_of[[names_sides(text) for text in self.pairs.captions]]] = True
        if self.questions is not None and len(self.questions):
            said = [names_sides(text) for text in self.questions.texts]
            found[self.questions.image_of[said]] = True
        return found

    def part(self, name: str) -> AnnotatedPairs:
        """The pictures of a split.

        Raises:
            DataError: there are none.
        """
        self.pairs.part(name)  # says what there is instead
        return self.take(np.flatnonzero(self.pairs.splits == name))

    def having(self, name: str) -> AnnotatedPairs:
        """The pictures that are annotated with this.

        Raises:
            DataError: none is.
        """
        known = self.known(name)
        if known.all():
            return self
        if not known.any():
            there = ", ".join(one for one in ANNOTATIONS if one not in self.missing()) or "nothing"
            raise DataError(f"{self.location}: no picture has {name}; there are {there}")
        return self.take(np.flatnonzero(known))

    def take(self, rows: Any) -> AnnotatedPairs:
        """These pictures, in this order, with all that is known of them; questions go with the last copy of a picture."""
        chosen = np.asarray(rows, dtype=np.int64).reshape(-1)
        pairs = self.pairs.take(chosen)
        return replace(
            self,
            pairs=pairs,
            boxes=None if self.boxes is None else self.boxes.take(chosen),
            masks=None if self.masks is None else self.masks.take(chosen),
            labels=None if self.labels is None else self.labels[chosen],
            labels_known=None if self.labels_known is None else self.labels_known[chosen],
            questions=None if self.questions is None else _questions_of(self.questions, chosen, pairs),
        )

    def divided(self, shares: Sequence[float] = SplitOptions().shares, seed: int = 0) -> AnnotatedPairs:
        """Divided anew; see :func:`~mc_vision_language.data.pairs.divide`."""
        pairs = self.pairs.divided(shares, seed)
        questions = self.questions
        if questions is not None:
            questions = replace(questions, splits=pairs.splits[questions.image_of])
        return replace(self, pairs=pairs, questions=questions)

    def describe(self) -> dict[str, Any]:
        """What identifies them, and how many pictures are annotated with what."""
        found: dict[str, Any] = {**self.pairs.describe(), "annotated": self.counts(), "classes": len(self.class_names)}
        parts: list[Any] = [list(self.class_names)]
        if self.boxes is not None:
            parts += [self.boxes.all_boxes, self.boxes.box_class, self.boxes.box_offsets, self.boxes.known]
        if self.masks is not None:
            found["masks"] = self.masks.describe()
        if self.labels is not None:
            parts.append(self.labels)
        if self.questions is not None:
            parts.append(list(self.questions.texts))
        return {**found, "annotations": fingerprint(*parts)}

    def summary(self) -> list[str]:
        """Lines for people: how many pictures have what."""
        have = {name: count for name, count in self.counts().items() if count}
        lines = [f"{count_text(len(self), 'picture')}: " + ", ".join(f"{n:,} with {name}" for name, n in have.items())]
        if missing := self.missing():
            lines.append(f"none with {', '.join(missing)}")
        return lines


def annotated(pairs: Pairs | AnnotatedPairs) -> AnnotatedPairs:
    """Pairs as annotated ones of which nothing but the captions is known; annotated ones as they are."""
    return pairs if isinstance(pairs, AnnotatedPairs) else AnnotatedPairs(pairs)


def _questions_of(questions: Questions, rows: np.ndarray, pairs: Pairs) -> Questions:
    """Questions about the pictures taken, which they count anew."""
    place = np.full(len(questions.images), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    kept = questions.take(np.flatnonzero(place[questions.image_of] >= 0))
    image_of = place[kept.image_of]
    return replace(
        kept, images=pairs.images, image_ids=pairs.image_ids, image_of=image_of, splits=pairs.splits[image_of]
    )


def renumbered(names: Mapping[Any, str]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names in the order of their keys, and the number from 0 of each key.

    >>> renumbered({3: "car", 1: "person"})
    (('person', 'car'), {1: 0, 3: 1})
    """
    order = sorted(names)
    return tuple(names[key] for key in order), {key: number for number, key in enumerate(order)}
