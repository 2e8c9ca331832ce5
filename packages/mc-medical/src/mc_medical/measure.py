"""What a model of images and reports knows: all protocols of :mod:`mc_medical.evaluation` on a cohort.

Legend: N images, C findings, d width of the shared space, D features of the image encoder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mc_core.errors import DataError
from mc_core.modules import evaluating
from mc_medical.data.cohort import Studies
from mc_medical.evaluation import (
    BinaryResult,
    FewShotResult,
    Interval,
    MultiClassResult,
    RetrievalResult,
    binary_probabilities,
    class_precision,
    exclusive_class,
    few_shot,
    first_of_each,
    retrieval,
    score_binary,
    zero_shot_multiclass,
)
from mc_medical.labels import COMPETITION, resolve_labels
from mc_medical.model import ImageTextModel
from mc_medical.prompts import Prompts, default_prompts, prompt_vectors
from mc_medical.training import Cohort

_BATCH = 64
FEWEST_OF_A_CLASS = 5
"""Images with a finding, and without it, below which it is not measured."""
_FEWEST_REPORTS = 2
_PRECISION_AT = (5, 10, 100)
_FEWEST_EXCLUSIVE = 2  # classes that a multi-class test needs


@dataclass(frozen=True)
class Embedded:
    """A cohort as a model sees it, row for row.

    Attributes:
        images: (N, d) unit rows.
        features: (N, D), before the projection.
        texts: (N, d) unit rows of the reports.
    """

    images: np.ndarray
    features: np.ndarray
    texts: np.ndarray


@torch.inference_mode()
def embed_cohort(model: ImageTextModel, cohort: Cohort) -> Embedded:
    """Embed images and reports, on the model's device; equal reports are encoded once."""
    images, features = [], []
    projection = model.encoders.image_projection
    with evaluating(model):
        for first in range(0, len(cohort), _BATCH):
            rows = np.arange(first, min(first + _BATCH, len(cohort)))
            found = model.image_features(model.prepare(cohort.pixels.rows(rows)))
            features.append(found.float().cpu().numpy())
            images.append(torch.nn.functional.normalize(projection(found).float(), dim=1).cpu().numpy())
    texts = list(dict.fromkeys(cohort.studies.reports))
    place = {text: row for row, text in enumerate(texts)}
    encoded = model.encode_text(texts)
    order = [place[text] for text in cohort.studies.reports]
    return Embedded(np.concatenate(images), np.concatenate(features), encoded[order])


@dataclass(frozen=True)
class Measured:
    """What :func:`measure` finds.

    Attributes:
        retrieval: reports by image and images by report, one image a study; None without reports.
        binary: each finding by itself, zero-shot; None without labels.
        classes: which one of several exclusive findings, zero-shot; None where fewer than two occur alone.
        class_precision: k → share of the k nearest reports that are of the image's class, among images of exclusive findings.
        few_shot: heads on frozen features; None without training images.
        few_shot_from_text: heads on the projected images that start from the vectors of the findings' phrases.
        left_out: protocol → why it could not be run.
    """

    retrieval: RetrievalResult | None = None
    binary: BinaryResult | None = None
    classes: MultiClassResult | None = None
    class_precision: dict[int, Interval] = field(default_factory=dict)
    few_shot: FewShotResult | None = None
    few_shot_from_text: FewShotResult | None = None
    left_out: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found: dict[str, Any] = {}
        for name in ("retrieval", "binary", "classes", "few_shot", "few_shot_from_text"):
            one = getattr(self, name)
            if one is not None:
                found[name] = one.to_dict()
        if self.class_precision:
            found["class_precision"] = {str(k): one.to_dict() for k, one in self.class_precision.items()}
        return {**found, "left_out": self.left_out}


def findings_of(studies: Studies, prompts: Prompts | None) -> tuple[Prompts, tuple[str, ...]]:
    """The prompts to ask with, and the labels they belong to.

    Args:
        studies: with labels, or without.
        prompts: of the user, every one of which must be a label; None: ours for CheXpert's observations, and the bare name for any
            other label.

    Raises:
        ConfigError: prompts for a class that is no label of the studies.
    """
    if prompts is not None:
        prompts.check_labels(studies.label_names)
        return prompts, prompts.names
    ours, names = default_prompts(), tuple(studies.label_names)
    positive = {name: ours.positive.get(name, (name,)) for name in names}
    negative = {name: ours.negative.get(name, (f"no {name}",)) for name in names}
    return Prompts(positive, negative), names


def _frequent(labels: np.ndarray, names: tuple[str, ...], left_out: dict[str, str]) -> list[int]:
    """Which findings are there, and are not, often enough for a figure to mean something."""
    kept = []
    for place, name in enumerate(names):
        there, not_there = int((labels[:, place] == 1).sum()), int((labels[:, place] == 0).sum())
        if min(there, not_there) >= FEWEST_OF_A_CLASS:
            kept.append(place)
        elif there:
            left_out[name] = (
                f"{there} images with it, {not_there} without; at least {FEWEST_OF_A_CLASS} of each are needed"
            )
    return kept


def labels_of(studies: Studies, names: tuple[str, ...]) -> np.ndarray:
    """(N, C) labels in {1, 0, NaN} of these findings; uncertain ones by the CheXpert competition's policy, blank is 0."""
    columns = [studies.label_names.index(name) for name in names]
    return resolve_labels(studies.labels[:, columns], names)


def measure(
    model: ImageTextModel,
    test: Cohort,
    *,
    train: Cohort | None = None,
    prompts: Prompts | None = None,
    draws: int = 1000,
    shots: tuple[int, ...] = (4, 8, 16, 32),
    shares: tuple[float, ...] = (0.01, 0.1, 1.0),
    seed: int = 0,
) -> Measured:
    """Retrieval, zero-shot and few-shot figures of a model, with intervals over patients.

    Args:
        model: in any mode; it is not changed.
        test: images of patients held out.
        train: images to draw the few labelled ones from; None leaves few-shot out.
        prompts: see :func:`findings_of`.
        draws: resamples of the intervals; 0 for none.
        shots: labelled images of each class for the heads.
        shares: of all labelled training images, instead.
        seed: of resamples and supports.

    Raises:
        ConfigError: prompts for a class that is no label of the studies.
    """
    studies = test.studies
    ask, names = findings_of(studies, prompts)
    found = embed_cohort(model, test)
    result: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    told = np.flatnonzero([bool(text) for text in studies.reports])
    rows = told[first_of_each(studies.studies[told])]
    if len(rows) >= _FEWEST_REPORTS:
        result["retrieval"] = retrieval(
            found.images[rows],
            found.texts[rows],
            studies.text_ids[rows],
            patients=studies.patients[rows],
            draws=draws,
            seed=seed,
        )
    else:
        left_out["retrieval"] = f"{len(rows)} studies have a report"
    if names:
        kept = _frequent(labels_of(studies, names), names, left_out)
        names = tuple(names[place] for place in kept)
    if not names:
        left_out["zero-shot and few-shot"] = "the studies have no finding that is labelled often enough"
        return Measured(left_out=left_out, **result)
    labels = labels_of(studies, names)
    positive, negative = prompt_vectors(ask.only(names), model.encode_text)
    try:
        chance = binary_probabilities(found.images, positive, negative, model.kappa)
        result["binary"] = score_binary(chance, labels, names, patients=studies.patients, draws=draws, seed=seed)
    except DataError as error:
        left_out["zero-shot"] = str(error)
    exclusive = _exclusive(studies, names, left_out)
    if exclusive is not None:
        several, truth = exclusive
        result["classes"] = zero_shot_multiclass(
            found.images,
            positive[[names.index(name) for name in several]],
            truth,
            several,
            scale=model.kappa,
            patients=studies.patients,
            draws=draws,
            seed=seed,
        )
        with_report = np.where([bool(text) for text in studies.reports], truth, -1)
        if (with_report >= 0).sum() >= min(_PRECISION_AT):
            result["class_precision"] = class_precision(
                found.images,
                found.texts,
                with_report,
                with_report,
                ks=_PRECISION_AT,
                patients=studies.patients,
                draws=draws,
                seed=seed,
            )
    if train is not None:
        own = embed_cohort(model, train)
        start = dict(zip(names, model.kappa * (positive - negative), strict=True))
        for name, kind, priors in (("few_shot", "features", None), ("few_shot_from_text", "images", start)):
            try:
                result[name] = few_shot(
                    getattr(own, kind),
                    labels_of(train.studies, names),
                    getattr(found, kind),
                    labels,
                    names,
                    shots=shots,
                    shares=shares,
                    priors=priors,
                    train_patients=train.studies.patients,
                    test_patients=studies.patients,
                    resamples=0,  # the spread over draws is shown; intervals are the few-shot command's
                    seed=seed,
                )
            except DataError as error:
                left_out[name.replace("_", " ")] = str(error)
    return Measured(left_out=left_out, **result)


def _exclusive(
    studies: Studies, names: tuple[str, ...], left_out: dict[str, str]
) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Findings of which a study has exactly one, and which: the five of the competition where they are there, else all."""
    five = tuple(name for name in COMPETITION if name in names)
    several = five if len(five) >= _FEWEST_EXCLUSIVE else tuple(name for name in names if name != "No Finding")
    columns = [studies.label_names.index(name) for name in several]
    truth = exclusive_class(studies.labels[:, columns], several, several)
    if len(np.unique(truth[truth >= 0])) < _FEWEST_EXCLUSIVE:
        left_out["which finding"] = f"fewer than two of {', '.join(several)} occur alone"
        return None
    return several, truth
