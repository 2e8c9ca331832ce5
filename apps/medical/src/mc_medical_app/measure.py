"""Several models on the same studies: the tables that ``pretrain`` and ``evaluate`` print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mc_core.cli import print_table
from mc_core.errors import DataError
from mc_medical.evaluation import MultiClassResult
from mc_medical.measure import Measured, measure
from mc_medical.model import ImageTextModel
from mc_medical.prompts import Prompts
from mc_medical.training import Cohort

TRAINED = "trained"
RANDOM = "random_encoder"
AUROC, RECALL = "zero_shot_macro_auroc", "text_to_image_recall_at_5"


@dataclass(frozen=True)
class Comparison:
    """What each model reaches.

    Attributes:
        rows: model → its figures; the trained one first.
        images: measured on.
        patients: they belong to.
    """

    rows: Mapping[str, Measured]
    images: int
    patients: int

    @property
    def metric(self) -> str:
        """The headline: zero-shot AUROC where there are labels, else retrieval."""
        return AUROC if all(found.binary is not None for found in self.rows.values()) else RECALL

    def value(self, name: str) -> float:
        """The headline figure of a model.

        Raises:
            DataError: the studies have neither labels nor reports.
        """
        found = self.rows[name]
        if self.metric == AUROC and found.binary is not None:
            return found.binary.macro_auroc.value
        if found.retrieval is None:
            raise DataError("the studies have neither reports nor labels of findings: there is nothing to measure")
        return found.retrieval.text_to_image.recall[5].value

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "patients": self.patients,
            "measured": {name: found.to_dict() for name, found in self.rows.items()},
        }


def compare(
    models: Mapping[str, ImageTextModel],
    train: Cohort | None,
    test: Cohort,
    *,
    prompts: Prompts | None = None,
    draws: int = 1000,
) -> Comparison:
    """Measure each model on ``test``, with few-shot heads from ``train``."""
    rows = {name: measure(model, test, train=train, prompts=prompts, draws=draws) for name, model in models.items()}
    return Comparison(rows, len(test), len(np.unique(test.studies.patients)))


def show(found: Comparison, title: str) -> None:
    """All tables, to standard output."""
    names = list(found.rows)
    heads = [name.replace("_", " ") for name in names]
    print_table(f"{title}: 95 % intervals over patients", ["", *heads, "chance"], _overview(found))
    if all(one.binary is not None for one in found.rows.values()):
        print_table("Zero-shot, AUROC of each finding", ["", *heads, "share with it"], _findings(found))
    if all(one.few_shot is not None for one in found.rows.values()):
        print_table(
            "Few-shot heads on frozen features, macro AUROC ± deviation over draws", ["labelled", *heads], _heads(found)
        )
    for what, why in next(iter(found.rows.values())).left_out.items():
        print_table(f"Not measured: {what}", ["because"], [[why]])


def _overview(found: Comparison) -> list[list[str]]:
    rows: list[list[str]] = []
    every = list(found.rows.values())
    if all(one.retrieval is not None for one in every):
        for label, side in (("report → image", "text_to_image"), ("image → report", "image_to_text")):
            each = [getattr(one.retrieval, side) for one in every]
            rows += [
                [f"{label}, recall at {k}", *(str(one.recall[k]) for one in each), f"{each[0].chance[k]:.3f}"]
                for k in each[0].recall
            ]
    if all(one.binary is not None for one in every):
        each = [one.binary for one in every]
        rows.append(["zero-shot, macro AUROC", *(str(one.macro_auroc) for one in each if one), "0.500"])
    if all(one.classes is not None for one in every):
        each = [one.classes for one in every]
        first = each[0]
        assert first is not None
        label = f"zero-shot, which of {len(first.classes)}, accuracy"
        rows.append([label, *(str(one.accuracy) for one in each if one), f"{first.chance:.3f}"])
        share = f"{_same_class(first):.3f}"
        rows += [
            [
                f"image → its finding, precision at {k}",
                *(str(one.class_precision[k]) for one in every),
                share,
            ]
            for k in every[0].class_precision
        ]
        rows.append(["calibration error of zero-shot", *(f"{one.calibration.error:.3f}" for one in each if one), ""])
    return rows


def _same_class(found: MultiClassResult) -> float:
    """How often two images of exclusive findings have the same."""
    share = found.confusion.sum(axis=1) / found.confusion.sum()
    return float((share**2).sum())


def _findings(found: Comparison) -> list[list[str]]:
    each = [one.binary for one in found.rows.values() if one.binary is not None]
    return [
        [name, *(str(one.auroc[name]) if name in one.auroc else "–" for one in each), f"{share:.2f}"]
        for name, share in each[0].positives.items()
    ]


def _heads(found: Comparison) -> list[list[str]]:
    each = [one.few_shot for one in found.rows.values() if one.few_shot is not None]
    findings = max(len(one) for one in each[0].auroc.values())  # a mean over fewer is not comparable
    sizes = [size for size in each[0].macro if all(len(one.auroc.get(size, ())) == findings for one in each)]
    return [
        [
            f"{size} of all" if size.endswith("%") else f"{size} with, {size} without",
            *(f"{one.macro[size]:.3f} ± {one.macro_spread[size]:.3f}" for one in each),
        ]
        for size in sizes
    ]
