"""The commands of ``mc-benchmark`` for images with words. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mc_benchmarks.vl_sizes import Size

Device = Literal["cpu", "cuda"]


def vl_claims(
    *, seeds: int = 5, steps: int = 400, keep: Path = Path("runs/benchmarks"), only_seed: int | None = None
) -> None:
    """What each part of ALBEF is worth: contrast, matching, hard negatives, momentum distillation, with right and wrong captions.

    Args:
        seeds: Weights, order and wrong captions of their own.
        steps: Optimizer steps.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.vl_claims import run_vl_claims

    run_vl_claims(seeds=seeds, keep=keep, steps=steps, only_seed=only_seed)


def vl_search(
    *,
    pictures: int = 10_000,
    rerank: int = 32,
    repeats: int = 7,
    size: tuple[Size, ...] = ("laptop", "vit-small", "vit-base"),
    device: Device = "cpu",
) -> None:
    """Time of an answer from an index of many pictures: by cosine, and with the best ranked again.

    Args:
        pictures: In the index.
        rerank: How many are ranked again.
        repeats: Rounds.
        size: Of the model; repeat for several.
        device: Where the model is.
    """
    from mc_benchmarks.vl_search import run_vl_search

    run_vl_search(pictures=pictures, rerank=rerank, repeats=repeats, sizes=size, device=device)


VL_COMMANDS: tuple[Callable[..., Any], ...] = (vl_claims, vl_search)
