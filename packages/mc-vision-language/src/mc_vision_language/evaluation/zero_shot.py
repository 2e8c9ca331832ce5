"""Zero-shot classification: each class is what sentences about it say, and a picture belongs to the nearest.

With t templates, n(x) = x/‖x‖ and C classes (Radford et al. 2021, arXiv:2103.00020, section 3.1)::

    w_c = n( 1/t Σ_k n(text(template_k(c))) )           ŷ(image) = argmax_c  n(image) · w_c

Legend: N pictures, C classes, e width of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mc_core.errors import BadSampleError, ConfigError, DataError
from mc_core.evaluation import BootstrapInterval, bootstrap_interval
from mc_core.modules import evaluating
from mc_vision_language.data.images import ArrayImages, ImageSet
from mc_vision_language.data.labelled import LabelledImages
from mc_vision_language.evaluation.prompts import PLACE, PLAIN, TEMPLATES, checked
from mc_vision_language.gallery import BATCH, picture_batches
from mc_vision_language.model import VisionLanguageModel

_TOP = 5


@dataclass(frozen=True)
class ZeroShotResult:
    """What :func:`zero_shot` returns; shares are in [0, 1].

    Attributes:
        accuracy: top 1, with a 95 % interval over pictures.
        top5: a right class among the five nearest; None with five classes or fewer.
        per_class: (C,) accuracy of each class; NaN where it has no picture.
        predictions: (N,) int64, of the pictures that could be read.
        labels: (N,) int64, theirs.
        classes: C names.
        templates: sentences for each class.
        left_out: pictures that could not be read.
    """

    accuracy: BootstrapInterval
    top5: float | None
    per_class: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    left_out: tuple[BadSampleError, ...]

    @property
    def mean_per_class(self) -> float:
        """Mean of the classes' accuracies: CLIP's paper reports it of Pets, Caltech101 and Flowers102."""
        return float(np.nanmean(self.per_class))

    @property
    def chance(self) -> float:
        """Accuracy of guessing."""
        return 1 / len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "accuracy": asdict(self.accuracy),
            "mean_per_class": self.mean_per_class,
            "top5": self.top5,
            "chance": self.chance,
            "per_class": {
                name: None if np.isnan(one) else float(one)
                for name, one in zip(self.classes, self.per_class, strict=True)
            },
            "images": len(self.labels),
            "left_out": len(self.left_out),
            "templates": len(self.templates),
        }


def default_templates(kind: str) -> tuple[str, ...]:
    """CLIP's templates of a standard set, or the plain one.

    >>> default_templates("pets"), default_templates("folder")
    (('a photo of a {}, a type of pet.',), ('a photo of a {}.',))
    """
    return TEMPLATES.get(kind, PLAIN)


def class_embeddings(
    model: VisionLanguageModel, classes: Sequence[str], templates: Sequence[str] = PLAIN
) -> np.ndarray:
    """(C, e) float32 unit rows w_c of the module's text.

    Args:
        model: with a tokenizer.
        classes: C names.
        templates: sentences with ``{}`` where the name goes.

    Raises:
        ConfigError: a template without ``{}``, or a model without tokenizer. DataError: no class.
    """
    if isinstance(classes, str) or not len(classes):
        raise DataError("no class to choose from: give a list of names")
    templates = checked(templates, source="templates")
    texts = [template.replace(PLACE, name) for name in classes for template in templates]
    different, place = np.unique(np.array(texts), return_inverse=True)
    rows = model.encode_text(different.tolist())[place.reshape(-1)].reshape(len(classes), len(templates), -1)
    mean = rows.mean(axis=1, dtype=np.float64)
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True).clip(1e-12)).astype(np.float32)


@torch.inference_mode()
def image_embeddings(
    model: VisionLanguageModel,
    images: ImageSet,
    *,
    batch_size: int = BATCH,
    left_out: list[BadSampleError] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the pictures that can be read, and (N, e) float32 unit rows of them.

    Args:
        model: in evaluation mode while it works.
        images: pictures.
        batch_size: encoded together.
        left_out: takes the errors of those that cannot be read, see :func:`mc_vision_language.gallery.picture_batches`.
    """
    rows, found = [np.zeros(0, np.int64)], [np.zeros((0, model.config.dim), np.float32)]
    with evaluating(model):
        for part, pixels in picture_batches(images, model.image_size, batch_size=batch_size, left_out=left_out):
            rows.append(part)
            found.append(model.backbone.embed_images(model.prepare(pixels)).float().cpu().numpy())
    return np.concatenate(rows), np.concatenate(found)


def zero_shot(
    model: VisionLanguageModel,
    data: LabelledImages,
    *,
    templates: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
    batch_size: int = BATCH,
) -> ZeroShotResult:
    """Classify pictures by sentences about the classes alone.

    Args:
        model: with a tokenizer.
        data: labelled pictures.
        templates: sentences with ``{}``; default: those of the set, else "a photo of a {}.".
        draws: resamples of pictures for the interval; 0: none.
        seed: of the resamples.
        batch_size: pictures encoded together.

    Raises:
        ConfigError: a template without ``{}``, a model without tokenizer. DataError: no picture can be read.
    """
    if draws < 0:
        raise ConfigError(f"draws={draws}: 0 for no interval, or more")
    chosen = default_templates(data.kind) if templates is None else tuple(templates)
    weights_Ce = class_embeddings(model, data.classes, chosen)
    left_out: list[BadSampleError] = []
    rows, features_Ne = image_embeddings(model, data.images, batch_size=batch_size, left_out=left_out)
    if not len(rows):
        raise DataError(f"{data.location}: none of the {len(data)} pictures can be read; the first: {left_out[0]}")
    labels = data.labels[rows]
    scores_NC = features_Ne @ weights_Ce.T
    order_NC = np.argsort(-scores_NC, axis=1, kind="stable")
    predictions = order_NC[:, 0]
    hit = predictions == labels
    counts = np.bincount(labels, minlength=len(data.classes))
    with np.errstate(invalid="ignore"):
        per_class = np.bincount(labels, hit, minlength=len(data.classes)) / counts
    many = len(data.classes) > _TOP
    return ZeroShotResult(
        _interval(hit, draws, seed),
        float((order_NC[:, :_TOP] == labels[:, None]).any(axis=1).mean()) if many else None,
        per_class,
        predictions,
        labels,
        tuple(data.classes),
        chosen,
        tuple(left_out),
    )


def labelled_scenes(part: str = "test", *, seed: int = 0, count: int | None = None) -> LabelledImages:
    """The embedded digit scenes with their digits as classes, named in words.

    Args:
        part: train, validation or test, see :func:`mc_vision_language.sample.sample_scenes`.
        seed: another seed, other scenes.
        count: how many. Default: as many as the sample has.

    >>> labelled_scenes(count=3).classes[:2]
    ('zero', 'one')
    """
    from mc_core.samples.scenes import DIGITS
    from mc_vision_language.sample import SAMPLE, sample_scenes

    scenes = sample_scenes(part, seed=seed, count=count)
    return LabelledImages(ArrayImages(scenes.images), scenes.labels.numpy(), DIGITS, SCENE_KIND, SAMPLE)


SCENE_KIND = "digit scenes"


def _interval(hit: np.ndarray, draws: int, seed: int) -> BootstrapInterval:
    if not draws:
        value = float(hit.mean())
        return BootstrapInterval(value, value, value, 0, 0)
    return bootstrap_interval(lambda right, _: float(right.mean()), hit, hit, n=draws, seed=seed)
