"""Why a larger contrastive batch can lose zero-shot accuracy: handwritten digits with captions of single instances.

Each of 1,797 digits gets a caption of five facts (how much ink a row or a column holds), and half of the captions also name the
digit. Other pictures of the same digit are then negatives that a caption cannot tell apart from positives by its class word: false
negatives of the class, of which a larger batch holds more.

Legend: N pairs of a batch, b of a micro-batch, W words, d width.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import normalize

from mc_benchmarks.contract import Report, Row, environment
from mc_core.paired_losses import distilled_targets, shared_targets, soft_cross_entropy
from mc_core.seeds import Spread

_TRAIN, _BATCH, _WIDTH = 1200, 120, 32
_LEVELS, _SIDE, _FACTS = 6, 8, 5
_WORDS = 10 + 2 * _SIDE * _LEVELS
_PEAK, _WARM_UP, _NOISE = 3e-3, 20, 0.1

COLUMNS = (
    "retrieval, recall at 5, %",
    "zero-shot, which digit, %",
    "nearest class mean, %",
    "cosine within a digit",
)


@dataclass(frozen=True)
class Scheme:
    """One row.

    Attributes:
        keys: own rows with gradient within the micro-batch or the batch (``live``), own rows as constants (``constant``), or the
            teacher's (``teacher``).
        micro: b, with ``live`` keys.
        momentum: of the teacher.
        alpha: share of the targets that is the teacher's.
        steps: optimizer steps.
        by_class: pictures of the same digit count as positives.
    """

    keys: Literal["live", "constant", "teacher"]
    micro: int = _BATCH
    momentum: float = 0.0
    alpha: float = 0.0
    steps: int = 200
    by_class: bool = False


SCHEMES = {
    "plain accumulation, b = 8": Scheme("live", micro=8),
    "plain accumulation, b = 40": Scheme("live", micro=40),
    "true batch of 120": Scheme("live"),
    "fresh keys without gradient": Scheme("constant"),
    "momentum keys, m = 0.8": Scheme("teacher", momentum=0.8),
    "momentum keys, m = 0.97": Scheme("teacher", momentum=0.97),
    "momentum keys, m = 0.8, α = 0.4": Scheme("teacher", momentum=0.8, alpha=0.4),
    "plain accumulation, b = 8, twice the steps": Scheme("live", micro=8, steps=400),
    "true batch, twice the steps": Scheme("live", steps=400),
    "fresh keys, twice the steps": Scheme("constant", steps=400),
    "true batch, same digit a positive": Scheme("live", by_class=True),
    "fresh keys, same digit a positive": Scheme("constant", by_class=True),
}


def run_medical_digits(*, seeds: int) -> Report:
    """All schemes under each seed: captions, weights and order are its own."""
    found = {name: [_one(scheme, seed) for seed in range(seeds)] for name, scheme in SCHEMES.items()}
    report = Report(
        benchmark="medical_digits",
        command="uv run mc-benchmark medical-digits" + (f" --seeds {seeds}" if seeds != 6 else ""),
        question=f"Why a larger contrastive batch can lose zero-shot accuracy: digits with captions, {seeds} seeds",
        settings={"seeds": seeds, "batch": _BATCH, "train": _TRAIN},
        environment=environment(),
        columns=list(COLUMNS),
        rows=[
            Row(name=name, values={c: _cell([r[i] for r in rows], i) for i, c in enumerate(COLUMNS)})
            for name, rows in found.items()
        ],
        reading=(
            "The larger the batch and the longer the training, the further pictures of one digit are pushed apart (last column), "
            "while class means still tell digits: a caption's own picture is found as well as before, but the bare word of a class "
            "fits its pictures less. Whether keys carry gradient, how stale they are and α change little. Where pictures of the "
            "same digit are no negatives the loss of zero-shot accuracy is gone, and with it the finding of single pictures: what "
            "counts as the same decides what is learnt, more than the kind of keys."
        ),
    )
    report.save()
    report.show()
    return report


def _cell(values: list[float], column: int) -> str:
    return f"{Spread.of(values):{'.2f' if column == 3 else '.1f'}}"


class _Dual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, _WIDTH, bias=False))
        self.text = nn.Sequential(
            nn.Linear(_WORDS, 64, bias=False), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, _WIDTH, bias=False)
        )

    def forward(self, pixels: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """(N, d) unit rows of both."""
        share = 4 * words / words.sum(1, keepdim=True).clamp_min(1)
        return normalize(self.image(pixels), dim=1), normalize(self.text(share), dim=1)


def _digits() -> tuple[Tensor, Tensor]:
    pixels, digits = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pixels))
    return torch.tensor(pixels[order] / 16, dtype=torch.float32), torch.tensor(digits[order])


def _captions(pixels: Tensor, digits: Tensor, seed: int) -> Tensor:
    """(1797, W) words: five facts about rows and columns, and the digit in half of the captions."""
    rng = np.random.default_rng(seed)
    images = pixels.view(-1, _SIDE, _SIDE)
    ink = torch.cat([images.mean(2), images.mean(1)], dim=1)
    level = (ink * _SIDE).long().clamp(max=_LEVELS - 1)
    words = torch.zeros(len(pixels), _WORDS)
    for i in range(len(pixels)):
        if rng.random() < 0.5:
            words[i, digits[i]] = 1
        facts = torch.from_numpy(rng.choice(2 * _SIDE, size=_FACTS, replace=False))
        words[i, 10 + facts * _LEVELS + level[i, facts]] = 1
    return words


def _one(scheme: Scheme, seed: int) -> list[float]:
    pixels, digits = _digits()
    words = _captions(pixels, digits, seed + 100)
    torch.manual_seed(seed)
    net = _Dual()
    teacher = copy.deepcopy(net).requires_grad_(False)
    scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    optimizer = torch.optim.AdamW([*net.parameters(), scale], lr=_PEAK, weight_decay=1e-2)
    order = torch.Generator().manual_seed(seed)
    for step in range(scheme.steps):
        for group in optimizer.param_groups:
            group["lr"] = _PEAK * min(1, (step + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / scheme.steps))
        rows = torch.randperm(_TRAIN, generator=order)[:_BATCH]
        seen = pixels[rows] + _NOISE * torch.randn(_BATCH, 64, generator=order)
        same_as = digits[rows] if scheme.by_class else rows
        other = pixels[rows] + _NOISE * torch.randn(_BATCH, 64, generator=order)
        loss = _loss(scheme, net, teacher, seen, other, words[rows], same_as, scale.exp())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            scale.clamp_(0, math.log(100))
            momentum = min(scheme.momentum, 1 - 1 / (step + 2))
            for slow, fast in zip(teacher.parameters(), net.parameters(), strict=True):
                slow.lerp_(fast, 1 - momentum)
    return _measured(net, pixels, digits, words)


def _loss(
    scheme: Scheme,
    net: _Dual,
    teacher: _Dual,
    seen: Tensor,
    other: Tensor,
    words: Tensor,
    ids: Tensor,
    kappa: Tensor,
) -> Tensor:
    image, text = net(seen, words)
    same = ids[:, None] == ids[None, :]
    if scheme.keys == "live":
        total = torch.zeros(())
        for first in range(0, _BATCH, scheme.micro):
            part = slice(first, first + scheme.micro)
            targets = shared_targets(same[part, part])
            logits = kappa * image[part] @ text[part].T
            both = soft_cross_entropy(logits, targets).mean() + soft_cross_entropy(logits.T, targets).mean()
            total = total + both / 2 * scheme.micro / _BATCH
        return total
    with torch.no_grad():
        image_key, text_key = teacher(other, words) if scheme.keys == "teacher" else net(seen, words)
        fixed = kappa.detach()
        image_targets = distilled_targets(same, fixed * image_key @ text_key.T, scheme.alpha)
        text_targets = distilled_targets(same, fixed * text_key @ image_key.T, scheme.alpha)
    found = soft_cross_entropy(kappa * image @ text_key.T, image_targets).mean()
    return (found + soft_cross_entropy(kappa * text @ image_key.T, text_targets).mean()) / 2


@torch.no_grad()
def _measured(net: _Dual, pixels: Tensor, digits: Tensor, words: Tensor) -> list[float]:
    image, text = net(pixels[_TRAIN:], words[_TRAIN:])
    truth = digits[_TRAIN:]
    cosine, own = image @ text.T, torch.arange(len(image))[:, None]
    recall = [(side.topk(5, 1).indices == own).any(1).float().mean() for side in (cosine, cosine.T)]
    classes = normalize(net.text(4 * torch.eye(10, _WORDS)), dim=1)
    zero_shot = ((image @ classes.T).argmax(1) == truth).float().mean()
    known, _ = net(pixels[:_TRAIN], words[:_TRAIN])
    means = normalize(torch.stack([known[digits[:_TRAIN] == c].mean(0) for c in range(10)]), dim=1)
    by_mean = ((image @ means.T).argmax(1) == truth).float().mean()
    within = torch.stack([(image[truth == c] @ image[truth == c].T).mean() for c in range(10)]).mean()
    return [100 * float(sum(recall)) / 2, 100 * float(zero_shot), 100 * float(by_mean), float(within)]
