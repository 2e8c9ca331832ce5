"""The commands of ``mc-benchmark`` for images with words. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from mc_benchmarks.vl_sizes import Size

Device = Literal["cpu", "cuda"]
Task = Literal["retrieval", "vqa", "nlvr2", "entailment", "grounding"]
TASKS: tuple[Task, ...] = ("retrieval", "vqa", "nlvr2", "entailment", "grounding")


def vl_claims(
    *,
    seeds: int = 5,
    steps: int = 400,
    downstream: bool = False,
    keep: Path = Path("runs/benchmarks"),
    only_seed: int | None = None,
) -> None:
    """What each part of ALBEF is worth: contrast, matching, hard negatives, momentum distillation, with right and wrong captions.

    Args:
        seeds: Weights, order and wrong captions of their own.
        steps: Optimizer steps.
        downstream: Also train the last row further for retrieval, without and with momentum distillation.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.vl_claims import run_vl_claims

    run_vl_claims(seeds=seeds, keep=keep, steps=steps, downstream=downstream, only_seed=only_seed)


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


def vl_real(
    *,
    data: Path | None = None,
    seeds: int = 5,
    steps: int = 1500,
    task_steps: int = 500,
    size: Size = "pocket",
    device: Device = "cpu",
    keep: Path = Path("runs/benchmarks"),
    only_seed: int | None = None,
) -> None:
    """ALBEF from scratch on real pictures with captions: retrieval, boxes, questions and statements, beside contrast alone.

    Args:
        data: Folder of the sets. Default: vision-language in the folder MC_DATA.
        seeds: Splits by picture, and initial weights.
        steps: Optimizer steps of pretraining.
        task_steps: Optimizer steps of each task.
        size: Of the model.
        device: Where.
        keep: Where runs and finished splits are kept.
        only_seed: Compute this split and report nothing, for several processes.
    """
    import os

    from mc_benchmarks.vl_real import run_vl_real

    run_vl_real(
        data=data or Path(os.environ.get("MC_DATA", ".")) / "vision-language",
        seeds=seeds,
        steps=steps,
        task_steps=task_steps,
        size=size,
        device=device,
        keep=keep,
        only_seed=only_seed,
    )


def vl_tasks(*, seeds: int = 3, keep: Path = Path("runs/benchmarks"), task: tuple[Task, ...] = TASKS) -> None:
    """What pretraining and a teacher are worth to each task, on the embedded scenes.

    Args:
        seeds: Weights and order of their own.
        keep: Where finished rows are kept.
        task: Which; repeat for several.
    """
    from mc_benchmarks.vl_tasks import run_vl_tasks

    run_vl_tasks(seeds=seeds, keep=keep, tasks=task)


def vl_step(*, repeats: int = 51, seconds: float = 60.0, device: Device = "cpu", size: tuple[str, ...] = ()) -> None:
    """Time of a training step of ALBEF beside the passes of its networks alone, and what its shortcuts save.

    Args:
        repeats: Rounds.
        seconds: Of each size, after which three rounds are enough.
        device: Where.
        size: One by its name in the table; repeat for several. Default: all.
    """
    from mc_benchmarks.vl_step import run_vl_step

    run_vl_step(repeats=repeats, seconds=seconds, device=device, sizes=size)


def ctp_step(*, repeats: int = 51, seconds: float = 90.0, device: Device = "cpu", size: tuple[str, ...] = ()) -> None:
    """Time of a training step of CTP in a later task beside one of sequential fine-tuning, and LwF's.

    Args:
        repeats: Rounds.
        seconds: Of each size, after which three rounds are enough.
        device: Where.
        size: One by its name in the table; repeat for several. Default: all.
    """
    from mc_benchmarks.ctp_step import run_ctp_step

    run_ctp_step(repeats=repeats, seconds=seconds, device=device, sizes=size)


VL_COMMANDS: tuple[Callable[..., Any], ...] = (vl_claims, vl_tasks, vl_search, vl_real, vl_step, ctp_step)
