"""What the router does: how much each expert counts, where in a picture, for which questions, and how that came about.

Legend: P pictures, E experts, G × G places of the grid, S points of a curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mc_core.errors import ConfigError, DataError
from mc_core.files import read_jsonl
from mc_core.modules import evaluating
from mc_vision_language.data.images import ImageSet
from mc_vision_language.gallery import picture_batches
from mc_vision_language.methods.astrea.model import AstreaModel

_FOLLOWED = ("weight", "load", "usefulness", "alpha", "beta")


@dataclass(frozen=True)
class RouterReport:
    """What :func:`inspect_router` finds.

    Attributes:
        kinds: E experts.
        weight: (E,) mean weight.
        least, most: (E,) smallest and largest weight anywhere.
        load: (E,) share of places, or pictures, where the expert is among the selected: without a hard selection, has the
            largest weight.
        entropy: of the mean weights, in [0, 1]: 1 where all experts count alike on the whole.
        entropy_each: mean entropy of the weights of a place, in [0, 1]: 1 where all count alike everywhere.
        spread: (E,) standard deviation of the weight over pictures and places: 0 where the router looks at nothing.
        place: (G, G, E) mean weight of each place; with weights for whole pictures all places are alike.
        pictures: P.
    """

    kinds: tuple[str, ...]
    weight: np.ndarray
    least: np.ndarray
    most: np.ndarray
    load: np.ndarray
    entropy: float
    entropy_each: float
    spread: np.ndarray
    place: np.ndarray
    pictures: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        each = ("weight", "least", "most", "load", "spread")
        experts = {
            kind: {name: round(float(getattr(self, name)[row]), 4) for name in each}
            for row, kind in enumerate(self.kinds)
        }
        return {
            "experts": experts,
            "entropy": round(self.entropy, 4),
            "entropy_each": round(self.entropy_each, 4),
            "pictures": self.pictures,
        }


@torch.no_grad()
def inspect_router(model: AstreaModel, images: ImageSet, *, batch_size: int = 64) -> RouterReport:
    """The weights of a model over pictures.

    Args:
        model: whose experts have weights.
        images: P pictures.
        batch_size: pictures at once.

    Raises:
        ConfigError: a fusion without weights. DataError: no pictures. BadSampleError: one that cannot be read.
    """
    need_weights(model)
    if not len(images):
        raise DataError("no pictures to look at")
    weights, selected = [], []
    with evaluating(model):
        for _, pixels in picture_batches(images, model.image_size, batch_size=batch_size):
            fused = model.own.fused(model.own.maps(model.prepare(pixels)))
            assert fused.weights is not None
            assert fused.selected is not None
            weights.append(fused.weights.float().cpu().numpy())
            selected.append(fused.selected.cpu().numpy())
    every, chosen = np.concatenate(weights), np.concatenate(selected)
    flat = every.reshape(-1, every.shape[-1])
    mean = flat.mean(0)
    count = len(model.config.kinds)
    return RouterReport(
        model.config.kinds,
        mean,
        flat.min(0),
        flat.max(0),
        chosen.reshape(-1, count).mean(0),
        _entropy(mean[None], count),
        _entropy(flat, count),
        flat.std(0),
        _on_grid(every, model.config.grid).mean(0),
        len(every),
    )


@torch.no_grad()
def weight_maps(model: AstreaModel, images: Any, questions: Sequence[str] | None = None) -> np.ndarray:
    """(P, G, G, E) float32 weights of every place; with weights for whole pictures all places are alike.

    Args:
        model: whose experts have weights.
        images: P pictures, as for :meth:`AstreaModel.seen`.
        questions: P, for a router that reads them.

    Raises:
        ConfigError: a fusion without weights. BadSampleError: a file that is no picture.
    """
    need_weights(model)
    weights = model.seen(images, questions).weights
    assert weights is not None
    return _on_grid(weights.float().cpu().numpy(), model.config.grid)


def need_weights(model: AstreaModel) -> None:
    """Raise ConfigError where experts have no weights."""
    if model.config.fusion == "concat":
        raise ConfigError("fusion: concat gives experts no weights: there is nothing to inspect")


def weights_of_questions(
    model: AstreaModel, images: Any, questions: Sequence[str], kinds: Sequence[str]
) -> dict[str, np.ndarray]:
    """Kind of question → (E,) mean weight, for a router that reads questions.

    Args:
        model: as above.
        images: P pictures.
        questions: P, one about each.
        kinds: P.

    Raises:
        ConfigError: a router that reads no questions.
    """
    if not (model.config.routes and model.config.router.text):
        raise ConfigError(
            "this router reads no questions (router.text is false): its weights are the same for all of them"
        )
    each = weight_maps(model, images, questions).mean((1, 2))
    names = np.array(kinds)
    return {str(kind): each[names == kind].mean(0) for kind in np.unique(names)}


def contribution_over_training(run_dir: Path | str) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """How weights, loads and usefulness moved in training, from the run's ``metrics.jsonl``.

    Args:
        run_dir: the run folder.

    Returns:
        ``weight``, ``load``, ``usefulness`` (and ``alpha``, ``beta`` where there are such) → kind of expert → (S,) steps and (S,)
        values; and under ``entropy`` those of the mean weights (``mean``) and of each place (``each``).

    Raises:
        DataError: no curves there.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise DataError(f"{run_dir} has no metrics.jsonl: give the run folder of a finished stage")
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for line in read_jsonl(path):
        for name, value in line.items():
            head, _, kind = name.partition("/")
            if name in ("entropy", "entropy_each"):
                head, kind = "entropy", "mean" if name == "entropy" else "each"
            elif head not in _FOLLOWED or not kind:
                continue
            if value is not None:
                steps, values = found.setdefault(head, {}).setdefault(kind, ([], []))
                steps.append(float(line["step"]))
                values.append(float(value))
    return {head: {kind: (np.array(s), np.array(v)) for kind, (s, v) in each.items()} for head, each in found.items()}


def told(report: RouterReport, added: Mapping[str, float] | None = None) -> list[str]:
    """Findings in words, for people.

    >>> half = np.array([0.5, 0.5])
    >>> report = RouterReport(
    ...     ("a", "b"), half, half, half, np.array([1.0, 0.0]), 1.0, 1.0, half * 0, np.ones((1, 1, 2)), 3
    ... )
    >>> told(report)[0]
    'all experts count alike everywhere: the router has learned nothing, or had nothing to learn'
    """
    lines = []
    if report.spread.max() < _STILL:
        if report.entropy > _EVEN:
            lines.append("all experts count alike everywhere: the router has learned nothing, or had nothing to learn")
        else:
            lines.append("weights are the same for every picture and place: the router does not look at them")
    strongest = int(report.weight.argmax())
    lines.append(
        f"the {report.kinds[strongest]} expert counts most, with a mean weight of {report.weight[strongest]:.2f}"
    )
    if added:
        losses = {name: added["all"] - value for name, value in added.items() if name.startswith("without ")}
        if losses:
            name = max(losses, key=lambda one: losses[one])
            lines.append(f"{name} the model loses most: R_m {added['all']:.3f} → {added[name]:.3f}")
    return lines


_STILL, _EVEN = 1e-3, 0.999


def _entropy(weights: np.ndarray, experts: int) -> float:
    """Mean entropy of rows, as a share of the largest possible."""
    safe = np.where(weights > 0, weights, 1.0)
    return float(-(weights * np.log(safe)).sum(1).mean() / math.log(max(experts, 2)))


def _on_grid(weights: np.ndarray, grid: int) -> np.ndarray:
    """(P, G, G, E) of weights (P, N, E) or (P, E)."""
    if weights.ndim == 2:
        return np.broadcast_to(weights[:, None, None], (len(weights), grid, grid, weights.shape[1]))
    return weights.reshape(len(weights), grid, grid, -1)
