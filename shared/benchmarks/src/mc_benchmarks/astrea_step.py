"""What a step of Astrea costs beyond its forward and backward parts, and what keeping the experts' maps saves.

The parts are the frozen experts forward where views vary, the moving average's fusion and text tower forward, the trained fusion
and text tower forward and backward, in instruction tuning also the language model, and the losses, whose contrast runs over the
queues. Optimizer, moving average, queues and the router's figures come on top. Beside that a step is held against the passes of the
networks alone, without any loss.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_benchmarks.astrea_claims import SETTINGS
from mc_benchmarks.contract import Report, Row, environment, median, median_ratio, paired, spread
from mc_core.cli import keep_freed_memory
from mc_core.engine import Batch, Progress
from mc_core.optim import build_optimizer
from mc_core.queue import FeatureQueue
from mc_core.random import BatchRandom
from mc_core.recipes import merge
from mc_vision_language.experts.config import KINDS
from mc_vision_language.experts.training import expert_for
from mc_vision_language.methods.astrea.adapters import on_grid
from mc_vision_language.methods.astrea.base import MAP
from mc_vision_language.methods.astrea.instruct import READS, AstreaInstruct
from mc_vision_language.methods.astrea.joint import AstreaJoint
from mc_vision_language.methods.astrea.model import AstreaModel
from mc_vision_language.recipe import Recipe, resolve_recipe
from mc_vision_language.staged.data import InstructData, JointData
from mc_vision_language.staged.sample import staged_sample
from mc_vision_language.tokenizers import train_tokenizer

_SIDE = 224
_TIMM = {  # one of each kind of map: convolutions, a transformer, several levels
    "classification": {"backbone": "vit_small_patch16_224"},
    "captioning": {"backbone": "convnext_tiny"},
    "detection": {"backbone": "resnet50", "levels": 2},
    "segmentation": {"backbone": "convnext_tiny", "levels": 3},
}
LARGE: dict[str, Any] = {
    "method": {
        "experts": [{"kind": kind, "image_size": _SIDE, **_TIMM[kind]} for kind in KINDS],
        "image": {"image_size": _SIDE},
        "grid": 14,
        "width": 384,
        "dim": 256,
        "pool_heads": 6,
        "text": {"text_layers": 6, "hidden_size": 384, "heads": 6},
        "language": {"hidden_size": 384, "heads": 6, "layers": 6, "positions": 256},
        "queue_size": 4096,
    },
    "augment": {"size": _SIDE},
    "fit": {"batch_size": 16},
}


@dataclass(frozen=True)
class Case:
    """A row.

    Attributes:
        settings: beside those of the claims.
        instruct: instruction tuning; else joint training.
        kept: maps are read; else experts look at each step.
    """

    settings: Mapping[str, Any]
    instruct: bool
    kept: bool


_NAMES = {False: "joint", True: "instruct"}
_MAPS = {True: "kept maps", False: "experts look"}
CASES: dict[str, Case] = {
    f"{size}, {_NAMES[instruct]}, {_MAPS[kept]}": Case(settings, instruct, kept)
    for size, settings in (
        ("laptop, 32 px, B = 32", {}),
        (f"four timm experts, {_SIDE} px, fusion of 384, text of 6 layers, B = 16", LARGE),
    )
    for instruct in (False, True)
    for kept in (True, False)
}
COLUMNS = (
    "rounds",
    "ms (median)",
    "ms (IQR)",
    "parts ms",
    OVER := "× parts",
    ALONE := "× networks without losses",
    UPDATE := "of it optimizer and average",
)
BAR = 1.15
"""Times its parts that a step may take."""


def made_step(case: Case) -> tuple[Recipe[Any], AstreaJoint, Batch]:
    """A method with full queues and one batch of the sample's scenes, in memory."""
    recipe = resolve_recipe("astrea-laptop", merge(SETTINGS, merge({"fit": {"steps": 100}}, case.settings)))
    B = recipe.fit.batch_size
    data = staged_sample(counts={"train": 4 * B}).part("train")
    assert data.questions is not None
    words = [*data.pairs.captions, *data.questions.texts, *(one for each in data.questions.answers for one in each)]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(list(dict.fromkeys(words)), 200)
    config = recipe.method
    experts = {one.kind: expert_for(one, data, tokenizer) for one in config.experts}
    model = AstreaModel(config, tokenizer, experts=experts)
    method = (AstreaInstruct if case.instruct else AstreaJoint)(config, tokenizer, model)
    for queue in method.queues.values():
        assert isinstance(queue, FeatureQueue)
        keys = normalize(torch.randn(queue.size, queue.dim), dim=1)
        queue.enqueue(keys, torch.arange(queue.size) - 2**40)
    joint = JointData(data, tokenizer, size=config.image.image_size, max_length=config.text.max_length)
    given: Any = InstructData(joint, model.language_text, tokenizer) if case.instruct else joint
    rows = list(range(0, len(given), len(given) // B))[:B]  # captions and questions
    batch: dict[str, Any] = {**given.get_batch(rows, 0, 0), "index": torch.tensor(rows)}
    batch = {**given.device_transform(batch, BatchRandom(0, 0, batch["index"])), "epoch": 0, "micro": 0}
    if case.kept:
        found = on_grid(model.own.maps(batch.pop("view")), method.fusion.block.features, config.grid)
        batch |= {MAP + kind: one.float() for kind, one in found.items()}
    return recipe, method.train(), batch


def step_of(method: AstreaJoint, recipe: Recipe[Any], batch: Batch, update: list[float]) -> Callable[[], object]:
    """A whole step as the engine takes it; ``update`` takes the seconds of what follows the backward pass."""
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay, decay_1d=False), recipe.fit)
    progress = Progress(1_000, 100_000, 1_000, recipe.fit.batch_size)

    def step() -> None:
        with torch.no_grad():
            prepared = method.prepare_step([batch], progress)
        method.training_step(batch, progress, prepared).loss.backward()
        start = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1
        update.append(time.perf_counter() - start)

    return step


def parts_of(method: AstreaJoint, recipe: Recipe[Any], batch: Batch) -> Callable[[], object]:
    """Forward and backward passes of a copy of the same method with its losses, and nothing else of a step."""
    method = copy.deepcopy(method)
    progress = Progress(1_000, 100_000, 1_000, recipe.fit.batch_size)
    trained = _trained(method)
    language = method.model.language if isinstance(method, AstreaInstruct) else None

    def step() -> None:
        with torch.no_grad():
            prepared = method.prepare_step([batch], progress)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        losses: dict[str, Tensor] = {}
        if method.teacher is None:
            fused = method.fusion.tokens(prepared.maps[0])
        else:
            seen = method.fusion(prepared.maps[0], ids, mask)
            fused = seen.fused
            losses["contrast"] = method.contrast(seen, prepared, 0)
        if language is not None:
            losses["language"] = language.loss(method.model.prefix(fused.tokens), *(batch[name] for name in READS))
        losses |= method.balance(fused)
        torch.stack([method.weight_of(name) * loss for name, loss in losses.items()]).sum().backward()
        _forget(trained)

    return step


def networks_of(method: AstreaJoint, batch: Batch) -> Callable[[], object]:
    """The passes of a copy of the same networks, nothing between them."""
    model = copy.deepcopy(method.model).train()
    teacher = copy.deepcopy(model.fusion).requires_grad_(False).eval() if method.teacher is not None else None
    ids, mask = batch["input_ids"], batch["attention_mask"]
    kept = {kind: batch[MAP + kind] for kind in model.config.kinds if MAP + kind in batch}
    trained = _trained(model)

    def step() -> None:
        maps = kept or model.own.maps(batch["view"])
        made: list[Tensor] = []
        if teacher is not None:
            with torch.no_grad():
                teacher(maps, ids, mask)
        if teacher is None and model.language is not None:
            tokens = model.fusion.tokens(maps).tokens
        else:
            seen = model.fusion(maps, ids, mask)
            tokens = seen.fused.tokens
            made += [seen.image.sum(), seen.text.sum()]
        if model.language is not None:
            made.append(model.language.loss(model.prefix(tokens), *(batch[name] for name in READS)))
        torch.stack(made).sum().backward()
        _forget(trained)

    return step


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    """Drop their gradients. ``zero_grad`` of a module would walk through all frozen experts."""
    for parameter in parameters:
        parameter.grad = None


def run_astrea_step(*, repeats: int = 51, seconds: float = 20.0, cases: Sequence[str] = ()) -> Report:
    """Measure, save, show.

    Args:
        repeats: rounds.
        seconds: of each row, after which three rounds are enough.
        cases: some of :data:`CASES`; default: all.
    """
    keep_freed_memory()
    rows = []
    for name in cases or CASES:
        recipe, method, batch = made_step(CASES[name])
        update = list[float]()
        candidates = {
            "networks": networks_of(method, batch),
            "parts": parts_of(method, recipe, batch),
            "ours": step_of(method, recipe, batch, update),
        }
        found = paired(candidates, repeats=repeats, warmup=1, device=torch.device("cpu"), limit=seconds)
        values = (
            str(len(found["ours"])),
            1e3 * median(found["ours"]),
            1e3 * spread(found["ours"]),
            1e3 * median(found["parts"]),
            median_ratio(found["ours"], found["parts"]),
            median_ratio(found["ours"], found["networks"]),
            median(update[1:]) / median(found["parts"]),
        )
        rows.append(Row(name=name, values=dict(zip(COLUMNS, values, strict=True))))
    over = [(float(str(row.values[OVER])), row.name) for row in rows]
    missed = [f"{name} {most:.3g}" for most, name in over if most > BAR]
    report = Report(
        benchmark="astrea_step_cpu",
        command="uv run mc-benchmark astrea-step",
        question="A whole step of Astrea beside its forward and backward parts alone",
        settings={"repeats": repeats, "seconds": seconds, "large": LARGE, "laptop": SETTINGS},
        environment=environment(torch.device("cpu")),
        columns=list(COLUMNS),
        rows=rows,
        reading=f"A step takes at most {max(over)[0]:.3g} times its parts (bar {BAR:g}: "
        f"{'not reached by ' + '; '.join(missed) if missed else 'reached'}). Parts: experts where they look, the moving average's "
        "passes forward, the trained networks' forward and backward, and the losses; optimizer, moving average, queues and the "
        "router's figures are not among them. Maps that are kept are read from memory here.",
    )
    report.save()
    report.show()
    return report
