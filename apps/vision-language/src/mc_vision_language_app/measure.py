"""Several models on the same pairs: the tables that ``pretrain`` and ``evaluate`` print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mc_core.cli import print_table
from mc_vision_language.data.pairs import Pairs
from mc_vision_language.evaluation.retrieval import CANDIDATES, RetrievalResult, retrieval
from mc_vision_language.model import VisionLanguageModel

TRAINED = "trained"
RANDOM = "random_encoder"
METRIC = "retrieval_mean_recall"
_FEW = 4  # of fewer candidates than four times the shortlist, a quarter are ranked again


@dataclass(frozen=True)
class Comparison:
    """What each model reaches.

    Attributes:
        rows: model → its figures; the trained one first.
        images: measured on.
        captions: measured on.
    """

    rows: Mapping[str, RetrievalResult]
    images: int
    captions: int

    metric = METRIC

    def value(self, name: str) -> float:
        """The mean of six recalls of a model, as a user gets them."""
        return self.rows[name].best.mean.value

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "images": self.images,
            "captions": self.captions,
            "measured": {name: found.to_dict() for name, found in self.rows.items()},
        }


def candidates(images: int, asked: int | None) -> int:
    """How many candidates of each query are ranked again."""
    return asked or min(CANDIDATES, max(10, images // _FEW))


def compare(
    models: Mapping[str, VisionLanguageModel],
    test: Pairs,
    *,
    k: int | None = None,
    add_cosine: bool = False,
    draws: int = 1000,
) -> Comparison:
    """Measure each model on ``test``; only the first ranks again, as a random matching head has nothing to say.

    Raises:
        ConfigError: ``k`` given for a first model that learned no matching.
    """
    if k and models:
        next(iter(models.values())).need_matching()
    rows = {
        name: retrieval(
            model, test, k=candidates(len(test), k), rerank=False if place else None, add_cosine=add_cosine, draws=draws
        )
        for place, (name, model) in enumerate(models.items())
    }
    return Comparison(rows, len(test), len(test.captions))


def show(found: Comparison, title: str) -> None:
    """The table, to standard output."""
    first, *others = found.rows.items()
    trained = first[1]
    heads = ["contrast"]
    columns = [trained.contrast]
    if trained.reranked is not None:
        heads.append(f"best {trained.k} re-ranked")
        columns.append(trained.reranked)
    for name, one in others:
        heads.append(name.replace("_", " "))
        columns.append(one.contrast)
    rows = []
    for way, label, chance in (
        ("text_to_image", "text → image", trained.chance[:3]),
        ("image_to_text", "image → text", trained.chance[3:]),
    ):
        for place, rank in enumerate((1, 5, 10)):
            cells = [_cell(getattr(one, way)[rank]) for one in columns]
            rows.append([f"{label}, R@{rank}", *cells, f"{chance[place]:.3f}"])
    rows.append(["mean of the six", *(_cell(one.mean) for one in columns), f"{sum(trained.chance) / 6:.3f}"])
    print_table(f"{title}: 95 % intervals over images", ["", *heads, "chance"], rows)


def _cell(interval: Any) -> str:
    if not interval.high > interval.low:
        return f"{interval.value:.3f}"
    return f"{interval.value:.3f} ({interval.low:.3f}–{interval.high:.3f})"
