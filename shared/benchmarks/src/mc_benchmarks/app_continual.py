"""The commands of ``mc-benchmark`` for models that go on learning. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_KEEP = Path("runs/benchmarks")


def ctp_claims(
    *, seeds: int = 5, steps: int = 200, others: bool = False, keep: Path = _KEEP, only_seed: int | None = None
) -> None:
    """What CTP and its parts are worth beside sequential fine-tuning and joint training, on two new digits in each of five tasks.

    Args:
        seeds: Weights and order of their own.
        steps: Optimizer steps of each task.
        others: Also EWC, MAS, SI, RWalk, AFEC, LwF, herding, k-means, iCaRL and LUCIR.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.ctp_claims import run_ctp_claims

    run_ctp_claims(seeds=seeds, steps=steps, others=others, keep=keep, only_seed=only_seed)


def ctp_turns(
    *, seeds: int = 5, steps: int = 250, others: bool = False, keep: Path = _KEEP, only_seed: int | None = None
) -> None:
    """The same on five digits that are turned further from task to task.

    Args:
        seeds: Weights and order of their own.
        steps: Optimizer steps of each task.
        others: Also EWC, MAS, SI, RWalk, AFEC, LwF, herding, k-means, iCaRL and LUCIR.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.ctp_claims import run_ctp_claims

    run_ctp_claims(seeds=seeds, steps=steps, others=others, keep=keep, only_seed=only_seed, tasks="turns")


def ctp_started(
    *, seeds: int = 10, steps: int = 250, others: bool = False, keep: Path = _KEEP, only_seed: int | None = None
) -> None:
    """The same on turned digits, by a model that knows five other digits already.

    Args:
        seeds: Weights, order and writers held out of their own.
        steps: Optimizer steps of each task.
        others: Also EWC, MAS, SI, RWalk, AFEC, LwF, herding, k-means, iCaRL and LUCIR.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.ctp_claims import run_ctp_claims

    run_ctp_claims(seeds=seeds, steps=steps, others=others, keep=keep, only_seed=only_seed, tasks="started")


def ctp_products(
    *,
    data: Path | None = None,
    seeds: int = 5,
    steps: int = 120,
    others: bool = False,
    keep: Path = _KEEP,
    only_seed: int | None = None,
) -> None:
    """The same on real pictures of products with their titles, category after category, in both orders.

    Args:
        data: Folder of the sets. Default: vision-language in the folder MC_DATA.
        seeds: Splits, weights and order of their own.
        steps: Optimizer steps of each task.
        others: Also EWC, MAS, SI, RWalk, AFEC, LwF, herding, k-means, iCaRL and LUCIR.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.ctp_claims import run_ctp_claims

    run_ctp_claims(
        seeds=seeds,
        steps=steps,
        others=others,
        keep=keep,
        only_seed=only_seed,
        tasks="products",
        data=data or Path(os.environ.get("MC_DATA", ".")) / "vision-language",
    )


def growclip_claims(*, seeds: int = 5, steps: int = 120, keep: Path = _KEEP, only_seed: int | None = None) -> None:
    """What growing is worth beside a small model that stays and beside beginning anew, on digits that arrive in four slices.

    Args:
        seeds: Weights, slices and order of their own.
        steps: Optimizer steps for each slice.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.growclip_claims import run_growclip_claims

    run_growclip_claims(seeds=seeds, steps=steps, keep=keep, only_seed=only_seed)


CONTINUAL_COMMANDS: tuple[Callable[..., Any], ...] = (
    ctp_claims,
    ctp_turns,
    ctp_started,
    ctp_products,
    growclip_claims,
)
