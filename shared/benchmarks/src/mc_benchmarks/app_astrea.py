"""The commands of ``mc-benchmark`` for Astrea. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEEP = Path("runs/benchmarks")


def astrea_claims(*, seeds: int = 5, steps: int = 1000, keep: Path = _KEEP, only_seed: int | None = None) -> None:
    """What Astrea's experts, router, queue, pre-alignment and shortcut are worth, on annotated scenes of digits.

    Args:
        seeds: Scenes, experts, weights and order of their own.
        steps: Updates of each row.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.astrea_claims import run_astrea_claims

    run_astrea_claims(seeds=seeds, steps=steps, keep=keep, only_seed=only_seed)


def astrea_apart(*, seeds: int = 5, steps: int = 1000, keep: Path = _KEEP, only_seed: int | None = None) -> None:
    """What a router is worth where experts have learned from different pictures: beside uniform weights and channels side by side.

    Args:
        seeds: Scenes, experts, weights and order of their own.
        steps: Updates of each row.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.astrea_claims import run_astrea_claims

    run_astrea_claims(seeds=seeds, steps=steps, keep=keep, only_seed=only_seed, experts_apart=True)


def astrea_step(*, repeats: int = 51, seconds: float = 20.0, case: tuple[str, ...] = ()) -> None:
    """Time of a training step of Astrea beside the forward and backward passes of its parts, with kept maps and without.

    Args:
        repeats: Rounds.
        seconds: Of each row, after which three rounds are enough.
        case: One by its name in the table; repeat for several. Default: all.
    """
    from mc_benchmarks.astrea_step import run_astrea_step

    run_astrea_step(repeats=repeats, seconds=seconds, cases=case)


def astrea_real(
    *,
    data: Path | None = None,
    seeds: int = 3,
    steps: int = 300,
    keep: Path = _KEEP,
    only_seed: int | None = None,
) -> None:
    """Astrea from scratch on real photographs with captions, boxes and masks, beside one encoder of equal parameters.

    Args:
        data: Folder of the sets. Default: vision-language in the folder MC_DATA.
        seeds: Splits by picture, and initial weights.
        steps: Updates of each stage, of each expert.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this split and report nothing, for several processes.
    """
    import os

    from mc_benchmarks.astrea_real import run_astrea_real

    run_astrea_real(
        data=data or Path(os.environ.get("MC_DATA", ".")) / "vision-language",
        seeds=seeds,
        steps=steps,
        keep=keep,
        only_seed=only_seed,
    )


ASTREA_COMMANDS: tuple[Callable[..., Any], ...] = (astrea_claims, astrea_apart, astrea_real, astrea_step)
