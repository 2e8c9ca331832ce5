"""The commands of ``mc-benchmark`` for images with words. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


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


VL_COMMANDS: tuple[Callable[..., Any], ...] = (vl_claims,)
