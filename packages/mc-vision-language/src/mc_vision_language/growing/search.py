"""The supernet phase: one model that holds all candidates as views, trained briefly, and judged on pairs held out.

The supernet has the largest size of every candidate and starts, by a lossless expansion, as the same function as the model before:
so does each candidate in it. Every update trains one candidate, each fourth the smallest. Candidates are measured on the same
held-out batches; what two of them have in common is computed once.

Legend: C candidates, R evaluations, N held-out batches, B pairs of a batch, d width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mc_core.data import StepPlan, finish_on_device, step_loader, to_device
from mc_core.engine.method import Batch, Progress
from mc_core.errors import ConfigError
from mc_core.growth.spec import ArchSpec, TowerSpec
from mc_core.modules import evaluating
from mc_core.paired_losses import same_thing
from mc_core.random import derive_seed
from mc_vision_language.continual.loss import both_ways
from mc_vision_language.data.pair_data import PairData
from mc_vision_language.growing.space import Tokens
from mc_vision_language.methods.growclip.model import GrowCLIP, GrowCLIPModel, Towers, Views

_CANDIDATE = 0x6A5
_MEMORY = 5


class GrowthSearch(GrowCLIP):
    """Trains a supernet and measures its candidates.

    Args:
        model: the supernet, of the largest size of all candidates.
        space: C candidates by name, the smallest first.
        held_out: N batches, of one size.
        steps: updates of the search.

    Attributes:
        losses: (C, R, N) held-out losses of the moving average, 0 where not measured yet; part of the state.
    """

    losses: Tensor

    def __init__(
        self, model: GrowCLIPModel, space: Mapping[str, ArchSpec], held_out: Sequence[Batch], *, steps: int
    ) -> None:
        super().__init__(model.config, model=model)
        # a search is short: its average looks back a fifth of it at most, or it would still be the model before
        self.average.momentum = min(self.config.momentum, max(0.0, 1 - _MEMORY / steps))
        growth = self.config.growth
        self.names, self.candidates = tuple(space), [spec.parts for spec in space.values()]
        self.held_out = list(held_out)
        count = min(growth.evaluations, steps)
        self._due = {round(steps * (k + 1) / count): k for k in range(count)}
        shape = len(self.names), count, len(self.held_out)
        self.register_buffer("losses", torch.zeros(shape, dtype=torch.float64))

    def views(self, progress: Progress) -> Views:
        """One candidate per update: the smallest now and then, else one at random, a function of (seed, step)."""
        return self.candidates[self._drawn(progress.run_seed, progress.step)]

    def drawn(self, seed: int, steps: int) -> list[int]:
        """Which candidate each update trains."""
        return [self._drawn(seed, step) for step in range(steps)]

    def _drawn(self, seed: int, step: int) -> int:
        smallest = step % self.config.growth.smallest_every == 0
        return 0 if smallest else derive_seed(seed, step, _CANDIDATE) % len(self.candidates)

    def after_step(self, progress: Progress) -> None:
        """As GrowCLIP's; and measure the candidates when it is time."""
        super().after_step(progress)
        place = self._due.get(progress.step + 1)
        if place is not None:
            self.losses[:, place] = candidate_losses(
                self.averaged, self.candidates, self.held_out, ids=self.config.ids
            ).to(self.losses)

    def save(self, folder: Path, card: Mapping[str, Any]) -> None:
        """Nothing: what the search leaves is the choice."""


@torch.no_grad()
def candidate_losses(
    towers: Towers, candidates: Sequence[Views], batches: Sequence[Batch], *, ids: bool = True
) -> Tensor:
    """(C, N) losses of views of one model on the same batches, without exchange between processes.

    A part that several candidates compute alike is computed once: the image tower does not look at the text tower, and both pass
    their own blocks before the shared ones.

    Args:
        towers: the supernet, in evaluation mode while it works.
        candidates: C views.
        batches: N, finished: ``view``, ``input_ids``, ``attention_mask``, ``image_ids``, ``text_ids``.
        ids: see :class:`~mc_vision_language.methods.growclip.config.GrowCLIPConfig`.
    """
    device = towers.logit_scale.device
    losses = torch.empty(len(candidates), len(batches), dtype=torch.float64, device=device)
    with evaluating(towers):
        for column, batch in enumerate(batches):
            batch = to_device(batch, device)
            mask = batch["attention_mask"].bool()
            entry = {"image": towers.image(batch["view"]), "text": towers.text(batch["input_ids"])}
            masks: dict[str, Tensor | None] = {"image": None, "text": mask}
            own: dict[tuple[str, TowerSpec], Tensor] = {}
            rows: dict[tuple[str, TowerSpec, TowerSpec], Tensor] = {}
            same = _same(batch) if ids else None
            for place, views in enumerate(candidates):
                found = []
                for stream in ("image", "text"):
                    key = stream, views[stream], views["shared"]
                    if key not in rows:
                        first = key[:2]
                        if first not in own:
                            own[first] = towers.part(stream, entry[stream], stream, masks[stream], views)
                        after = towers.part("shared", own[first], stream, masks[stream], views)
                        pooled = towers.pooled(after, stream, masks[stream])
                        embed = towers.embed_image_tokens if stream == "image" else towers.embed_text_states
                        rows[key] = embed(pooled)
                    found.append(rows[key])
                image, text = found
                logits = towers.logit_scale.exp() * image @ text.T
                losses[place, column] = both_ways(logits, logits.T, same)
    return losses


def search_flops(space: Mapping[str, ArchSpec], tokens: Tokens) -> int:
    """Forward FLOPs of one pair through all candidates, what they share counted once, as :func:`candidate_losses` computes it."""
    first = next(iter(space.values()))
    text_tokens, image_tokens = tokens["text"][0], tokens["image"][0]
    lengths = {"image": image_tokens, "text": text_tokens}
    own = {(stream, spec.parts[stream]) for spec in space.values() for stream in lengths}
    both = {(stream, spec.parts[stream], spec.parts["shared"]) for spec in space.values() for stream in lengths}
    cost = sum(part.flops(first.width, first.head_width, lengths[stream]) for stream, part in own)
    return cost + sum(shared.flops(first.width, first.head_width, lengths[stream]) for stream, _, shared in both)


def held_out_batches(data: PairData, batch_size: int, count: int, *, seed: int = 0) -> list[Batch]:
    """Batches that stay the same: ``count`` of them, of the training's size where there are pairs enough.

    Args:
        data: pairs held out, without random changes.
        batch_size: of the training.
        count: N.
        seed: of the order.

    Raises:
        ConfigError: fewer than two pairs for each batch.
    """
    size = min(batch_size, len(data) // count)
    if size < 2:
        raise ConfigError(
            f"{len(data)} pairs held out for {count} batches to choose by: give a larger second --split.shares, or a smaller "
            "method.growth.batches"
        )
    plan = StepPlan(len(data), size, seed)
    return [finish_on_device(data, batch, seed) for batch in step_loader(data, plan, start=0, stop=count, workers=0)]


def _same(batch: Batch) -> Tensor:
    own = [batch["image_ids"], batch["text_ids"]]
    return same_thing(own, own)
