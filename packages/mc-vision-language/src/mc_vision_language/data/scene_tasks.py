"""The embedded sample of every task: questions, statements, entailments and phrases about scenes of handwritten digits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mc_core import samples
from mc_core.random import derive_seed
from mc_core.samples import DigitScenes
from mc_vision_language.data.images import ArrayImages
from mc_vision_language.data.pairs import array_ids
from mc_vision_language.data.phrases import Phrases
from mc_vision_language.data.questions import Questions
from mc_vision_language.data.statements import Entailments, Statements

_AGAIN = 0xA6A


def scene_questions(
    scenes: Mapping[str, DigitScenes],
    *,
    per_scene: int = 4,
    seed: int = 0,
    kinds: Sequence[str] = samples.QUESTION_KINDS,
) -> Questions:
    """Questions about scenes, by split; see :func:`mc_core.samples.questions`.

    Args:
        scenes: by split.
        per_scene: most questions about each.
        seed: another seed, other questions.
        kinds: of questions.

    >>> from mc_core.samples import digit_scenes
    >>> asked = scene_questions({"train": digit_scenes(3, size=32, digits=(2, 3))}, per_scene=2)
    >>> len(asked), len(asked.answers[0])
    (6, 1)
    """
    found = {part: samples.questions(one, per_scene=per_scene, seed=seed, kinds=kinds) for part, one in scenes.items()}
    texts = tuple(text for one in found.values() for text in one.text)
    return Questions(
        *_pictures(scenes),
        _joined(scenes, {part: one.scene.numpy() for part, one in found.items()}),
        *_rest(found),
        texts,
        tuple((answer,) for one in found.values() for answer in one.answer),
        tuple(kind for one in found.values() for kind in one.kind),
        np.ones(len(texts)),
        _names(len(texts)),
    )


def scene_statements(scenes: Mapping[str, DigitScenes], *, per_pair: int = 1, seed: int = 0) -> Statements:
    """Sentences about two scenes each, by split; see :func:`mc_core.samples.statement_pairs`.

    Args:
        scenes: by split.
        per_pair: sentences about each two scenes, each drawn anew.
        seed: another seed, other sentences.
    """
    found = {
        part: [samples.statement_pairs(one, seed=s) for s in _seeds(seed, per_pair)] for part, one in scenes.items()
    }
    pairs = {
        part: np.concatenate([np.stack([o.first, o.second], 1) for o in several]) for part, several in found.items()
    }
    return Statements(*_judged(scenes, found, pairs))


def scene_entailments(scenes: Mapping[str, DigitScenes], *, per_scene: int = 1, seed: int = 0) -> Entailments:
    """Sentences about a scene each, by split; see :func:`mc_core.samples.entailments`.

    Args:
        scenes: by split.
        per_scene: sentences about each scene, each drawn anew.
        seed: another seed, other sentences.
    """
    found = {part: [samples.entailments(one, seed=s) for s in _seeds(seed, per_scene)] for part, one in scenes.items()}
    rows = {part: np.concatenate([o.scene.numpy() for o in several]) for part, several in found.items()}
    return Entailments(*_judged(scenes, found, rows))


def _judged(
    scenes: Mapping[str, DigitScenes], found: Mapping[str, list[Any]], rows: Mapping[str, np.ndarray]
) -> tuple[Any, ...]:
    several = [one for part in found.values() for one in part]
    labels = np.concatenate([one.label.numpy() for one in several])
    texts = tuple(text for one in several for text in one.text)
    return (*_pictures(scenes), _joined(scenes, rows), *_rest(rows), texts, labels, _names(len(labels)))


def _seeds(seed: int, count: int) -> list[int]:
    return [seed, *(derive_seed(seed, place, _AGAIN) for place in range(1, count))]


def scene_phrases(scenes: Mapping[str, DigitScenes], *, seed: int = 0) -> Phrases:
    """Names of digits with their boxes, by split; see :func:`mc_core.samples.phrases`. Proposals are the boxes of all digits."""
    found = {part: samples.phrases(one, seed=seed) for part, one in scenes.items()}
    boxes = np.concatenate([one.box.numpy() for one in found.values()]).astype(np.float64)
    image_of = _joined(scenes, {part: one.scene.numpy() for part, one in found.items()})
    side = next(iter(scenes.values())).images.shape[-1]
    return Phrases(
        *_pictures(scenes),
        image_of,
        *_rest(found),
        tuple(text for one in found.values() for text in one.text),
        boxes,
        np.full((len(boxes), 2), float(side)),
        _names(len(boxes)),
        {row: boxes[image_of == row] for row in np.unique(image_of).tolist()},
    )


def _pictures(scenes: Mapping[str, DigitScenes]) -> tuple[ArrayImages, np.ndarray]:
    pixels = np.concatenate([one.images.numpy() for one in scenes.values()])
    return ArrayImages(pixels, location="scenes"), array_ids(pixels)


def _joined(scenes: Mapping[str, DigitScenes], rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """Rows of each split as rows of all scenes."""
    starts = np.cumsum([0, *(len(one) for one in scenes.values())])
    return np.concatenate([rows[part] + start for part, start in zip(scenes, starts, strict=False)]).astype(np.int64)


def _rest(found: Mapping[str, Any]) -> tuple[np.ndarray, Counter[str], dict[str, str]]:
    splits = np.array([part for part, one in found.items() for _ in range(len(one))])
    return splits, Counter(), {}


def _names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))
