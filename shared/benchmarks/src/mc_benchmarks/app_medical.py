"""The commands of ``mc-benchmark`` about radiographs and reports. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Device = Literal["cpu", "cuda"]
Size = Literal["laptop", "vit-small"]


def medical_efficiency(
    *,
    batch: int = 256,
    micro: tuple[int, ...] = (8, 16, 32, 64),
    repeats: int = 7,
    size: Size = "laptop",
    true_batch: bool | None = None,
    device: Device = "cpu",
) -> None:
    """Time and memory of MSD beside GradCache, plain accumulation and the true batch.

    Args:
        batch: Pairs of an optimizer step.
        micro: Pairs in the graph; repeat for several.
        repeats: Rounds.
        size: Of the encoders.
        true_batch: Also the whole batch in the graph. Default: with the laptop's encoders, of which it fits into memory.
        device: Where.
    """
    from mc_benchmarks.medical_efficiency import run_medical_efficiency

    run_medical_efficiency(batch=batch, micro=micro, repeats=repeats, size=size, true_batch=true_batch, device=device)


def medical_memory(*, batches: tuple[int, ...] = (128, 512, 2048), micro: int = 32, size: Size = "vit-small") -> None:
    """Memory of a step of MSD from small to large batches, each in a process of its own.

    Args:
        batches: Pairs of an optimizer step, smallest first; repeat for several.
        micro: Pairs in the graph.
        size: Of the encoders.
    """
    from mc_benchmarks.medical_efficiency import run_medical_memory

    run_medical_memory(batches=batches, micro=micro, size=size)


def medical_claims(
    *,
    seeds: int = 5,
    patients: int = 540,
    batch: int = 128,
    micro: int = 8,
    steps: int = 120,
    keep: Path = Path("runs/benchmarks"),
    only_seed: int | None = None,
) -> None:
    """What a large contrastive batch is worth: momentum keys, GradCache, plain accumulation, the true batch.

    Args:
        seeds: Phantoms and weights of their own.
        patients: Phantoms of a seed.
        batch: Pairs of an optimizer step.
        micro: Pairs in the graph.
        steps: Optimizer steps.
        keep: Where finished rows are kept.
        only_seed: Train the rows of this seed and report nothing, for several processes.
    """
    from mc_benchmarks.medical_claims import run_medical_claims

    run_medical_claims(
        seeds=seeds, keep=keep, patients=patients, batch=batch, micro=micro, steps=steps, only_seed=only_seed
    )


def medical_real(
    *, data: Path | None = None, seeds: int = 5, steps: int = 60, keep: Path = Path("runs/benchmarks")
) -> None:
    """MSD on real chest X-rays with notes, beside the random encoder.

    Args:
        data: A tar of images with notes. Default: medical/covid-cxr-notes.tar in the folder MC_DATA.
        seeds: Splits by patient, and initial weights.
        steps: Optimizer steps.
        keep: Where runs are kept.
    """
    import os

    from mc_benchmarks.medical_real import run_medical_real

    place = data or Path(os.environ.get("MC_DATA", ".")) / "medical" / "covid-cxr-notes.tar"
    run_medical_real(data=place, seeds=seeds, steps=steps, keep=keep)


def medical_digits(*, seeds: int = 6) -> None:
    """Why a larger contrastive batch can lose zero-shot accuracy, on digits with captions.

    Args:
        seeds: Captions, weights and order of their own.
    """
    from mc_benchmarks.medical_digits import run_medical_digits

    run_medical_digits(seeds=seeds)


MEDICAL_COMMANDS: tuple[Callable[..., Any], ...] = (
    medical_claims,
    medical_digits,
    medical_real,
    medical_efficiency,
    medical_memory,
)
