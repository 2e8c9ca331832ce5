"""What a step of ALBEF costs beyond the passes of its networks, and what its shortcuts save.

The floor is what no implementation can avoid: the student's image encoder, its text layers on plain and on masked captions and its
fusion layers on four pairs for each pair, forward and backward, and the teacher's on one, forward. Projections, contrast with the
queues, negatives, masking, the head for words, the optimizer and the moving average come on top.
"""

from __future__ import annotations

import copy
import time
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
from mc_vision_language.backbone import Backbone, Encoded
from mc_vision_language.fusion import ImageKeys, KeyValue
from mc_vision_language.methods.albef.masking import Masked
from mc_vision_language.methods.albef.model import ALBEF
from mc_vision_language.recipe import Recipe, resolve_recipe

SIZES: dict[str, dict[str, Any]] = {
    "albef-laptop, B = 64, 12 tokens": {"recipe": "albef-laptop", "changes": {"fit": {"batch_size": 64}}, "tokens": 12},
    "ViT-S/16 and 6 + 6 layers of 384, 224 px, B = 32, 25 tokens": {
        "recipe": "albef",
        "changes": {
            "method": {
                "image": {"name": "deit_small_patch16_224", "image_size": 224},
                "text": {"hidden_size": 384, "heads": 6},
            },
            "augment": {"size": 224},
            "fit": {"batch_size": 32, "precision": "fp32"},
        },
        "tokens": 25,
    },
    "recipe albef: ViT-B/16 and 6 + 6 layers of 768, 256 px, B = 16, 25 tokens": {
        "recipe": "albef",
        "changes": {"fit": {"batch_size": 16, "precision": "fp32"}},
        "tokens": 25,
    },
}
COLUMNS = (
    "rounds",
    "ms (median)",
    "ms (IQR)",
    "floor ms",
    OVER := "× floor",
    UPDATE := "of it optimizer and average",
    "× with keys for each pass",
    "× with the head on all tokens",
    "× with separate matching",
)
BAR = 1.10
"""Times the floor that a step may take."""


class _KeysForEachPass:
    """Stands for :class:`ImageKeys`, projecting anew whenever it is looked at."""

    mask = None

    def __init__(self, project: Callable[[Tensor], ImageKeys], tokens: Tensor) -> None:
        self._project, self._tokens = project, tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def take(self, rows: Tensor) -> ImageKeys:
        return self._project(self._tokens[rows])

    @property
    def layers(self) -> tuple[KeyValue, ...]:
        return self._project(self._tokens).layers


class HeadOnAllTokens(ALBEF):
    """Predicts words everywhere, then looks at masked places."""

    @staticmethod
    def _words(backbone: Backbone, encoded: Encoded, masked: Masked, mask: Tensor, keys: ImageKeys) -> Tensor:
        assert encoded.masked is not None
        fused = backbone.fuse(encoded.masked, mask, keys)
        return backbone.lm_logits(fused)[masked.rows, masked.columns]


class SeparateMatching(ALBEF):
    """Pairs that match, then pairs that do not, as the official code does."""

    def _fused(self, states: Tensor, mask: Tensor, keys: ImageKeys, texts: Tensor, images: Tensor) -> Tensor:
        whole, B = super()._fused, len(states)
        parts = (slice(0, B), slice(B, None))
        return torch.cat([whole(states, mask, keys, texts[part], images[part]) for part in parts])


def with_keys_for_each_pass(method: ALBEF) -> ALBEF:
    """The same method, which projects an image as often as a text looks at it."""
    for backbone in (method.backbone, method.teacher.module):
        assert isinstance(backbone, Backbone)
        project = backbone.keys
        backbone.__dict__["keys"] = lambda tokens, project=project: _KeysForEachPass(project, tokens)
    return method


def made_batch(recipe: Recipe[Any], tokens: int, device: torch.device) -> Batch:
    """Random images, and captions of full length."""
    B, side = recipe.fit.batch_size, recipe.method.image.image_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, min(recipe.method.text.vocabulary, 64), (B, tokens), generator=generator)
    ids[:, 0] = recipe.method.text.cls_id
    batch: Batch = {
        "view": torch.rand(B, 3, side, side, generator=generator),
        "input_ids": ids,
        "attention_mask": torch.ones(B, tokens, dtype=torch.int64),
        "image_ids": torch.arange(B),
        "text_ids": torch.arange(B),
        "index": torch.arange(B),
    }
    return {**{name: value.to(device) for name, value in batch.items()}, "epoch": 0, "micro": 0}


def filled(method: ALBEF) -> ALBEF:
    """The method with full queues, as it is for all but its first steps."""
    for queue in method.queues.values():
        assert isinstance(queue, FeatureQueue)
        rows = normalize(torch.randn(queue.size, queue.dim, generator=torch.Generator().manual_seed(1)), dim=1)
        queue.enqueue(rows.to(queue.ring.device), torch.arange(queue.size, device=queue.ring.device) - 2**40)
    return method


def step_of(
    method: ALBEF, recipe: Recipe[Any], batch: Batch, update: list[float] | None = None
) -> Callable[[], object]:
    """A whole step: forward, losses, backward, AdamW, moving average and queues.

    ``update`` takes the seconds of what follows the backward pass.
    """
    optimizer = build_optimizer(method.parameter_groups(recipe.fit.weight_decay, decay_1d=False), recipe.fit)
    progress = Progress(1_000, 100_000, 1_000, recipe.fit.batch_size)

    def step() -> None:
        method.training_step(batch, progress).loss.backward()
        start = _now(batch["view"].device) if update is not None else 0.0
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            method.after_step(progress)
        progress.step += 1
        if update is not None:
            update.append(_now(batch["view"].device) - start)

    return step


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def floor_of(method: ALBEF, batch: Batch) -> Callable[[], object]:
    """The passes alone, of copies of the same networks."""
    student = copy.deepcopy(method.backbone)
    teacher = copy.deepcopy(student).requires_grad_(False)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    B = len(ids)
    pairs = torch.arange(B, device=ids.device)
    texts, images = torch.cat([pairs, pairs, pairs.flip(0)]), torch.cat([pairs, pairs.flip(0), pairs])

    def passes(backbone: Backbone) -> list[Tensor]:
        tokens = backbone.image_tokens(batch["view"])
        states, keys = backbone.text_states(ids, mask), backbone.keys(tokens)
        made = [backbone.fuse(backbone.text_states(ids, mask), mask, keys)]
        if backbone is student:
            made.append(backbone.fuse_first(states[texts], mask[texts], keys.take(images)))
        return made

    def step() -> None:
        made = passes(student)
        with torch.no_grad():
            passes(teacher)
        torch.autograd.backward([part.sum() for part in made])
        student.zero_grad(set_to_none=True)

    return step


def run_vl_step(*, repeats: int = 51, seconds: float = 60.0, device: str = "cpu", sizes: Sequence[str] = ()) -> Report:
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
        size = SIZES[name]
        recipe = resolve_recipe(size["recipe"], merge(size["changes"], {"fit": {"device": device}}))
        batch = made_batch(recipe, size["tokens"], target)

        def made(kind: type[ALBEF] = ALBEF, recipe: Recipe[Any] = recipe) -> ALBEF:
            torch.manual_seed(0)
            return filled(kind(recipe.method).to(target).train())

        ours, update = made(), list[float]()
        candidates = {"ours": step_of(ours, recipe, batch, update), "floor": floor_of(ours, batch)}
        for label, method in (
            ("keys", with_keys_for_each_pass(made())),
            ("head", made(HeadOnAllTokens)),
            ("separate", made(SeparateMatching)),
        ):
            candidates[label] = step_of(method, recipe, batch)
        found = paired(candidates, repeats=repeats, warmup=1, device=target, limit=seconds)
        values = (
            str(len(found["ours"])),
            1e3 * median(found["ours"]),
            1e3 * spread(found["ours"]),
            1e3 * median(found["floor"]),
            median_ratio(found["ours"], found["floor"]),
            median(update[1:]) / median(found["floor"]),
            *(median_ratio(found[label], found["ours"]) for label in ("keys", "head", "separate")),
        )
        rows.append(Row(name=name, values=dict(zip(COLUMNS, values, strict=True))))
    most = max(float(row.values[OVER]) for row in rows)  # type: ignore[arg-type]
    passes = max(float(row.values[OVER]) - float(row.values[UPDATE]) for row in rows)  # type: ignore[arg-type]
    report = Report(
        benchmark=f"vl_step_{target.type}",
        command="uv run mc-benchmark vl-step" + ("" if device == "cpu" else f" --device {device}"),
        question="A whole step of ALBEF beside the passes of its networks alone, and beside the same step without a shortcut",
        settings={"repeats": repeats, "seconds": seconds, "sizes": SIZES},
        environment=environment(target),
        columns=list(COLUMNS),
        rows=rows,
        reading="Floor: the student's passes forward and backward, the teacher's forward; optimizer and moving average are not in "
        f"it. A step takes at most {most:.3g} of it (bar {BAR:g}: {'reached' if most <= BAR else 'not reached'}), {passes:.3g} "
        "without optimizer and moving average, whose time does not depend on the batch. The last three columns: images "
        "projected to keys and values for each pass, the head for words on all tokens, matching in two passes.",
    )
    report.save()
    report.show()
    return report
