"""What a step of CTP costs beside one of sequential fine-tuning, from the second task on, when all its models are there.

Sequential fine-tuning passes forward and backward through the image encoder, the text layers twice (plain and masked captions), the
fusion layers and the head for words. CTP adds one forward pass of all that for the momentum model and one of both encoders, without
fusion, for the old model: with a backward pass at twice a forward one, 1.60 times the multiplications at the published size. LwF
beside it asks the old model alone, about masked words too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import normalize

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_benchmarks.vl_step import made_batch
from mc_core.cli import keep_freed_memory
from mc_core.continual import Task
from mc_core.engine import Batch, Progress
from mc_core.optim import build_optimizer
from mc_core.queue import FeatureQueue
from mc_core.recipes import merge
from mc_vision_language.backbone import Backbone
from mc_vision_language.continual.base import Sequential, Step
from mc_vision_language.continual.config import ContinualConfig
from mc_vision_language.continual.table import TABLE
from mc_vision_language.methods.albef.masking import Masked
from mc_vision_language.methods.ctp import model as ctp_module
from mc_vision_language.methods.ctp.model import CTP
from mc_vision_language.recipe import Recipe, resolve_recipe

SIZES: dict[str, dict[str, Any]] = {
    "ctp-laptop, B = 64, 12 tokens": {"recipe": "ctp-laptop", "changes": {}, "tokens": 12},
    "ViT-S/16 and 6 + 6 layers of 384, 224 px, B = 16, 30 tokens": {
        "recipe": "ctp",
        "changes": {
            "method": {
                "image": {"name": "deit_small_patch16_224"},
                "text": {"hidden_size": 384, "heads": 6},
            },
            "fit": {"batch_size": 16},
        },
        "tokens": 30,
    },
    "recipe ctp: ViT-B/16 and 6 + 6 layers of 768, 224 px, B = 8, 30 tokens": {
        "recipe": "ctp",
        "changes": {"fit": {"batch_size": 8}},
        "tokens": 30,
    },
}
COLUMNS = (
    "rounds",
    "sequential ms (median)",
    "CTP ms (median)",
    "CTP ms (IQR)",
    OVER := "CTP × sequential",
    "CTP's first task × sequential",
    "LwF × sequential",
    "CTP × with the old model's whole pass",
)
BAR = 1.65
"""Times sequential fine-tuning that a step may take."""
LATER = Task(1, "later")


class WholeOldPass(CTP):
    """Takes the old model through fusion layers and the head for words as well, which nothing reads."""

    def _topology_losses(self, step: Step) -> dict[str, torch.Tensor]:
        assert self.old is not None
        with torch.no_grad():
            encode_whole(ctp_module.backbone_of(self.old), step.batch, step.masked)
        return super()._topology_losses(step)


def encode_whole(backbone: Backbone, batch: Batch, masked: Masked | None) -> torch.Tensor | None:
    """(M, V) what :class:`WholeOldPass` adds: masked captions through text and fusion layers, and the head."""
    if masked is None:
        return None
    mask = batch["attention_mask"]
    height, width = backbone.image.grid
    tokens = batch["view"].new_zeros(len(mask), 1 + height * width, backbone.image.num_features)
    states = backbone.fuse(backbone.text_states(masked.input_ids, mask), mask, backbone.keys(tokens))
    return backbone.lm_logits(states[masked.rows, masked.columns])


def made(kind: str | type[CTP], recipe: Recipe[Any], device: torch.device, task: Task = LATER) -> Sequential:
    """A method as it is in the middle of a task, with full queues.

    Args:
        kind: name in the table of methods on tasks, or a class of CTP's.
        recipe: of CTP.
        device: where.
        task: which.
    """
    torch.manual_seed(0)
    if isinstance(kind, str):
        shared = {name: getattr(recipe.method, name) for name in ContinualConfig.model_fields}
        config = recipe.method if kind == "ctp" else TABLE.config_class(kind).model_validate(shared)
        method = TABLE.method_class(kind)(config)
    else:
        method = kind(recipe.method)
    method.to(device).train()
    with torch.no_grad():
        method.start_task(task)
    for queue in getattr(method, "queues", {}).values():
        assert isinstance(queue, FeatureQueue)
        rows = normalize(torch.randn(queue.size, queue.dim, generator=torch.Generator().manual_seed(1)), dim=1)
        queue.enqueue(rows.to(device), torch.arange(queue.size, device=device) - 2**40)
    return method


def step_of(method: Sequential, recipe: Recipe[Any], batch: Batch) -> Callable[[], object]:
    """A whole step: forward, losses, backward, AdamW, and what moves after it."""
    optimizer = build_optimizer(
        method.parameter_groups(recipe.fit.weight_decay, decay_1d=recipe.fit.decay_1d), recipe.fit
    )
    progress = Progress(1_000, 100_000, 1_000, recipe.fit.batch_size)
    autocast = torch.autocast(batch["view"].device.type, torch.bfloat16, enabled=recipe.fit.precision == "bf16")

    def step() -> None:
        with autocast:
            loss = method.training_step(batch, progress).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


def run_ctp_step(*, repeats: int = 51, seconds: float = 90.0, device: str = "cpu", sizes: Sequence[str] = ()) -> Report:
    """Measure, save, show.

    Args:
        repeats: rounds.
        seconds: of each size, after which three rounds are enough.
        device: where.
        sizes: some of :data:`SIZES`; default: all.
    """
    keep_freed_memory()
    target = torch.device(device)
    precision = "bf16" if target.type == "cuda" else "fp32"
    rows = []
    for name in sizes or SIZES:
        size = SIZES[name]
        recipe = resolve_recipe(
            size["recipe"], merge(size["changes"], {"fit": {"device": device, "precision": precision}})
        )
        batch = made_batch(recipe, size["tokens"], target)
        methods = {
            "sequential": made("sequential", recipe, target),
            "ctp": made("ctp", recipe, target),
            "first": made("ctp", recipe, target, Task(0, "first")),
            "lwf": made("lwf", recipe, target),
            "whole": made(WholeOldPass, recipe, target),
        }
        candidates = {label: step_of(method, recipe, batch) for label, method in methods.items()}
        found = paired(candidates, repeats=repeats, warmup=1, device=target, limit=seconds)
        values = (
            str(len(found["ctp"])),
            1e3 * median(found["sequential"]),
            1e3 * median(found["ctp"]),
            1e3 * spread(found["ctp"]),
            *(median_ratio(found[label], found["sequential"]) for label in ("ctp", "first", "lwf")),
            median_ratio(found["ctp"], found["whole"]),
        )
        rows.append(Row(name=name, values=dict(zip(COLUMNS, values, strict=True))))
    most = max(float(row.values[OVER]) for row in rows)  # type: ignore[arg-type]
    report = Report(
        benchmark=f"ctp_step_{target.type}",
        command="uv run mc-benchmark ctp-step" + ("" if device == "cpu" else f" --device {device}"),
        question="A whole step of CTP in a later task beside one of sequential fine-tuning, by the same networks",
        settings={"repeats": repeats, "seconds": seconds, "precision": precision, "sizes": SIZES},
        environment=environment(target),
        columns=list(COLUMNS),
        rows=rows,
        reading=f"CTP takes at most {most:.3g} of a sequential step (bar {BAR:g}: "
        f"{'reached' if most <= BAR else 'not reached'}). Multiplications alone make 1.60 times at the published size; optimizer "
        "and moving average are in it. In the first task there is no old model; LwF has no momentum model.",
    )
    report.save()
    report.show()
    return report
