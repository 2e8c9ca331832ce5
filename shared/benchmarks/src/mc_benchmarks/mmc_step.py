"""What a step of MMC costs beyond its networks.

The floor is what no implementation can avoid: the student forward and backward on corrupted views, the teacher forward on clean
ones. It comes in two forms: encoder and heads alone, and with each patch's scores over the classes, which are products that the
distillation cannot do without. Masking, losses, centres, optimizer and moving average come on top.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.engine import Progress
from mc_core.optim import build_optimizer, clip_each_gradient
from mc_core.recipes import merge
from mc_vision.methods.mmc.model import MMC
from mc_vision.recipe import resolve_recipe

SIZES: dict[str, dict[str, Any]] = {
    "laptop: moco-vit-tiny-8, 32 px, B = 128, E = 256": {"fit": {"batch_size": 128}},
    "ViT-Tiny/16, 224 px, B = 8, E = 1,024": {
        "method": {
            "encoder": {"backbone": "vit_tiny_patch16_224", "image_size": 224},
            "hidden_dim": 2048,
            "dim": 256,
            "outputs": 1024,
        },
        "views": {"preset": "moco-v3", "size": 224},
        "fit": {"batch_size": 8},
    },
    "ViT-Tiny/16, 224 px, B = 8, E = 8,192": {
        "method": {
            "encoder": {"backbone": "vit_tiny_patch16_224", "image_size": 224},
            "hidden_dim": 2048,
            "dim": 256,
            "outputs": 8192,
        },
        "views": {"preset": "moco-v3", "size": 224},
        "fit": {"batch_size": 8},
    },
    "recipe mmc: ViT-Small/16, 224 px, B = 8, E = 8,192": {
        "method": {
            "encoder": {"backbone": "vit_small_patch16_224", "image_size": 224},
            "hidden_dim": 2048,
            "dim": 256,
            "outputs": 8192,
        },
        "views": {"preset": "moco-v3", "size": 224},
        "fit": {"batch_size": 8},
    },
}


def floor_step(method: MMC, views_VCHW: Tensor, *, scores: bool) -> Callable[[], object]:
    """Student forward and backward, teacher forward, reconstruction included; optionally the scores of both."""
    student, teacher = (
        copy.deepcopy(method.student_network),
        copy.deepcopy(method.teacher_network).requires_grad_(False),
    )
    reconstruction = copy.deepcopy(method.reconstruction)
    assert reconstruction is not None
    assert student.classes is not None
    assert teacher.classes is not None
    rows = views_VCHW.shape[2] // method.patch[0]
    parameters: list[nn.Parameter] = [*student.parameters(), *reconstruction.parameters()]

    def step() -> None:
        made = student(views_VCHW)
        outputs = [made.contrast, reconstruction(made.patches, rows)]
        with torch.no_grad():
            kept = teacher(views_VCHW)
            if scores:
                teacher.classes(kept.local)
        outputs.append(student.classes(made.local) if scores else made.local)
        torch.autograd.backward(outputs, [torch.ones_like(x) for x in outputs])
        for parameter in parameters:
            parameter.grad = None

    return step


def our_step(method: MMC, recipe: Any, view_1: Tensor, view_2: Tensor) -> Callable[[], object]:
    """A whole step: masks, corruption, three losses, backward, clipping, AdamW, centres, moving average."""
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay), recipe.fit)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    progress = Progress(10_000, 100_000, 1000, len(view_1))
    batch = {"view_1": view_1, "view_2": view_2, "index": torch.arange(len(view_1)), "epoch": 10, "micro": 0}

    def step() -> None:
        with torch.no_grad():
            prepared = method.prepare_step([batch], progress)
        method.training_step(batch, progress, prepared).loss.backward()
        method.before_optimizer_step(progress)
        clip_each_gradient(trained, recipe.fit.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1

    return step


def optimizer_step(method: MMC, recipe: Any) -> Callable[[], object]:
    """AdamW alone, on gradients that are there."""
    method = copy.deepcopy(method)
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay), recipe.fit)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    return optimizer.step


def run_mmc_step(*, repeats: int = 15, device: str = "cpu") -> Report:
    """Measure, save, show."""
    keep_freed_memory()
    target = torch.device(device)
    rows = []
    for name, changes in SIZES.items():
        recipe = resolve_recipe("mmc-laptop", merge(changes, {"fit": {"device": device}}))
        torch.manual_seed(0)
        method = MMC(recipe.method).to(target).train()
        side, batch = recipe.method.encoder.image_size, recipe.fit.batch_size
        views = [torch.randn(batch, 3, side, side, device=target) for _ in range(2)]
        both = torch.cat(views)
        seconds = paired(
            {
                "networks": floor_step(method, both, scores=False),
                "scores": floor_step(method, both, scores=True),
                "AdamW": optimizer_step(method, recipe),
                "ours": our_step(method, recipe, *views),
            },
            repeats=repeats,
            warmup=2,
            device=target,
        )
        rows.append(
            Row(
                name=name,
                values={
                    "ms (median)": 1e3 * median(seconds["ours"]),
                    "ms (IQR)": 1e3 * spread(seconds["ours"]),
                    "× networks": median_ratio(seconds["ours"], seconds["networks"]),
                    "× networks and scores": median_ratio(seconds["ours"], seconds["scores"]),
                    "AdamW ms": 1e3 * median(seconds["AdamW"]),
                },
            )
        )
    report = Report(
        benchmark=f"mmc_step_{target.type}",
        command="uv run mc-benchmark mmc-step" + ("" if device == "cpu" else f" --device {device}"),
        question="A whole step of MMC beside student forward + backward and teacher forward",
        settings={"repeats": repeats, "sizes": SIZES},
        environment=environment(target),
        columns=["ms (median)", "ms (IQR)", "× networks", "× networks and scores", "AdamW ms"],
        rows=rows,
        reading="Networks: encoders and heads. Scores: of each patch over the E classes, of student and teacher, which no "
        "distillation can do without. AdamW is part of the step, shown alone for comparison.",
    )
    report.save()
    report.show()
    return report
