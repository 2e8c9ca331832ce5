"""What a training step of CoCoSoDa costs beside in-batch contrast with the same encoder, and what its soft augmentations cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.engine import Batch, Progress
from mc_core.optim import build_optimizer
from mc_core.queue import FeatureQueue
from mc_core.recipes import merge
from mc_text_code.code_recipe import CodeRecipe, resolve_code_recipe
from mc_text_code.methods.cocosoda.model import CoCoSoDa

SIZES: dict[str, dict[str, Any]] = {
    "laptop: 1 layer of 128, B = 64, 128 and 48 tokens": {},
    "12 layers of 768, B = 4, 128 and 64 tokens": {
        "method": {
            "encoder": {
                "hidden_size": 768,
                "layers": 12,
                "heads": 12,
                "max_length": 128,
                "vocabulary": 51_451,
                "positions": 512,
            },
            "queue_size": 4096,
        },
        "batches": {"query_length": 64},
        "fit": {"batch_size": 4},
    },
}
COLUMNS = (
    "rounds",
    "ms (median)",
    "ms (IQR)",
    "× in-batch",
    "augmentation ms",
    "augmentation ms (IQR)",
    SHARE := "augmentation % of a step",
)
BAR = 2.0
"""Percent of a step that soft augmentation may take."""
_MASK, _TYPES = 4, 12


def made_batch(recipe: CodeRecipe[Any], device: torch.device, vocabulary: int) -> Batch:
    """Random tokens of full length, each with a class: the most that a step can have to do."""
    B, code, query = recipe.fit.batch_size, recipe.method.encoder.max_length, recipe.batches.query_length
    generator = torch.Generator().manual_seed(0)

    def tokens(length: int) -> Tensor:
        return torch.randint(20, vocabulary, (B, length), generator=generator)

    batch: Batch = {
        "code_input_ids": tokens(code),
        "code_attention_mask": torch.ones(B, code, dtype=torch.int64),
        "code_type_ids": torch.randint(1, _TYPES + 1, (B, code), generator=generator, dtype=torch.uint8),
        "code_own_name": torch.zeros(B, code, dtype=torch.bool),
        "query_input_ids": tokens(query),
        "query_attention_mask": torch.ones(B, query, dtype=torch.int64),
        "query_type_ids": torch.ones(B, query, dtype=torch.uint8),
        "code_ids": torch.arange(B) << 8,
        "query_ids": torch.arange(B),
        "index": torch.arange(B),
    }
    return {**{name: value.to(device) for name, value in batch.items()}, "epoch": 0, "micro": 0}


def step_of(method: CoCoSoDa, recipe: CodeRecipe[Any], batch: Batch) -> Callable[[], object]:
    """A whole step: forward, loss, backward, clipping, AdamW, moving average and queues."""
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay, decay_1d=False), recipe.fit)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    progress = Progress(1_000, 100_000, 1_000, recipe.fit.batch_size)

    def step() -> None:
        method.training_step(batch, progress).loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


def filled(method: CoCoSoDa) -> CoCoSoDa:
    """The method with full queues, as it is for all but its first steps."""
    for queue in method.queues.values():
        assert isinstance(queue, FeatureQueue)
        rows = normalize(torch.randn(queue.size, queue.dim, generator=torch.Generator().manual_seed(1)), dim=1)
        queue.enqueue(rows.to(queue.features.device), torch.arange(queue.size, device=queue.features.device) - 2**40)
    return method


def run_code_step(
    *, repeats: int = 11, seconds: float = 30.0, device: str = "cpu", sizes: Sequence[str] = ()
) -> Report:
    """Measure, save, show.

    Args:
        repeats: rounds.
        seconds: of each size, after which three rounds are enough.
        device: where.
        sizes: some of :data:`SIZES`; default: all.
    """
    keep_freed_memory()
    target = torch.device(device)
    rows = []
    for name in sizes or SIZES:
        changes = merge(SIZES[name], {"fit": {"device": device}, "method": {"augment": {"token_ids": _token_ids()}}})
        both: dict[str, Callable[[], object]] = {}
        for label, base, more in (
            ("ours", "cocosoda-laptop", {}),
            ("in-batch", "in-batch-laptop", {"method": {"queue_size": 0}}),
        ):
            recipe = resolve_code_recipe(base, merge(changes, more))
            batch = made_batch(recipe, target, recipe.method.encoder.vocabulary)
            torch.manual_seed(0)
            method = filled(CoCoSoDa(recipe.method).to(target).train())
            both[label] = step_of(method, recipe, batch)
            if label == "ours":
                both["augmentation"] = _augmentation(method, batch)
        found = paired(both, repeats=repeats, warmup=1, device=target, limit=seconds)
        values = (
            str(len(found["ours"])),
            1e3 * median(found["ours"]),
            1e3 * spread(found["ours"]),
            median_ratio(found["ours"], found["in-batch"]),
            1e3 * median(found["augmentation"]),
            1e3 * spread(found["augmentation"]),
            100 * median_ratio(found["augmentation"], found["ours"]),
        )
        rows.append(Row(name=name, values=dict(zip(COLUMNS, values, strict=True))))
    most = max(float(row.values[SHARE]) for row in rows)  # type: ignore[arg-type]
    report = Report(
        benchmark=f"code_step_{target.type}",
        command="uv run mc-benchmark code-step" + ("" if device == "cpu" else f" --device {device}"),
        question="A whole step of CoCoSoDa beside in-batch contrast, and its soft augmentations alone",
        settings={"repeats": repeats, "seconds": seconds, "sizes": SIZES},
        environment=environment(target),
        columns=list(COLUMNS),
        rows=rows,
        reading="Soft augmentation: all four kinds on code and masking on questions, for the whole batch; at most "
        f"{most:.2g} % of a step (bar {BAR:g} %: {'reached' if most < BAR else 'not reached'}). In-batch contrast has neither slow "
        "copy nor queues.",
    )
    report.save()
    report.show()
    return report


def _token_ids() -> tuple[int, ...]:
    return tuple(range(_MASK, _MASK + 1 + _TYPES))


def _augmentation(method: CoCoSoDa, batch: Batch) -> Callable[[], object]:
    progress = Progress(1_000, 100_000, 1_000, len(batch["index"]))
    return lambda: method.augmented(batch, progress)
