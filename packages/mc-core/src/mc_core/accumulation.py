"""Exact large-batch gradients from small micro-batches, in two passes (GradCache; Gao et al. 2021, arXiv 2101.06983).

Adding up the gradients of micro-batches is not the gradient of a contrastive loss over their union: each would only see its own
negatives. Here the first pass (``Method.prepare_step``) embeds every micro-batch without keeping activations, takes the loss of
the whole batch and its gradient with respect to the embeddings, ∂L/∂z; the second (``Method.training_step``) embeds one
micro-batch again and pulls ∂L/∂z back through it. By the chain rule the sum over micro-batches is the gradient of L.

A loss against keys without gradient, such as those of a momentum encoder, needs no second look at the embeddings: once all keys
are there (:func:`encode_step`), row i of the whole batch depends on the trained network through sample i alone, and the gradients
of micro-batches add up to that of the whole batch exactly. Losses for both are in :mod:`mc_core.paired_losses`.

Legend: B samples of a micro-batch, n of this process in a step, D embedding width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mc_core.engine.method import Batch, Progress
from mc_core.norm import no_running_stats
from mc_core.random import derive_seed


@contextlib.contextmanager
def replay(progress: Progress, batch: Batch) -> Iterator[None]:
    """Draw the same dropout masks in both passes over a micro-batch: seeds torch from (seed, step, micro-batch)."""
    torch.manual_seed(derive_seed(progress.seed, progress.step, int(batch.get("micro", 0)), 0xACC))
    yield


@contextlib.contextmanager
def first_pass(module: nn.Module) -> Iterator[None]:
    """No activations are kept and BatchNorm's running statistics do not move: the second pass moves them once."""
    with torch.no_grad(), no_running_stats(module):
        yield


@dataclass(frozen=True)
class CachedGradients:
    """The loss of a whole batch and its gradient at each micro-batch's embeddings.

    Attributes:
        loss: scalar, without gradient.
        gradients: for each micro-batch, one (B, D) gradient per embedding tensor.
        metrics: scalars to log.
        shared: gradients at tensors that belong to no micro-batch, such as a learned temperature.
    """

    loss: Tensor
    gradients: Sequence[Sequence[Tensor]]
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    shared: Sequence[Tensor] = ()

    def surrogate(self, micro: int, embeddings: Sequence[Tensor], shared: Sequence[Tensor] = ()) -> Tensor:
        """A scalar with the value of the whole batch's loss and this micro-batch's share of its gradient.

        The share is multiplied by the number of micro-batches, because the engine averages over them; what is shared is pulled
        by each of them, and so on the average once.

        Args:
            micro: place of the micro-batch in its step.
            embeddings: (B, D) as in the first pass, now with their graph.
            shared: the tensors that :attr:`shared` are the gradients of.
        """
        pull = sum((_pull(z, g) for z, g in zip(embeddings, self.gradients[micro], strict=True)), torch.zeros(()))
        pull = pull * len(self.gradients)
        pull = pull + sum((_pull(z, g) for z, g in zip(shared, self.shared, strict=True)), torch.zeros(()))
        return self.loss + (pull - pull.detach())


def _pull(z: Tensor, gradient: Tensor) -> Tensor:
    return (z * gradient.to(z.dtype)).sum()


@dataclass(frozen=True)
class StepRows:
    """What an encoder makes of all micro-batches of a step: constants, and where each micro-batch's rows lie among them.

    Attributes:
        values: (n, …) tensors of this process, n rows in the order of its micro-batches.
        starts: first row of each micro-batch, and n.
    """

    values: tuple[Tensor, ...]
    starts: tuple[int, ...]

    def rows(self, micro: int) -> slice:
        """The rows of a micro-batch among those of this process."""
        return slice(self.starts[micro], self.starts[micro + 1])

    def part(self, value: int, micro: int) -> Tensor:
        """The rows of a micro-batch in one of the values."""
        return self.values[value][self.rows(micro)]

    def __len__(self) -> int:
        return self.starts[-1]


@torch.no_grad()
def encode_step(
    micro_batches: Sequence[Batch], encode: Callable[[Batch], Sequence[Tensor]], *, rows: int = 1
) -> StepRows:
    """Encode every micro-batch of a step, without keeping activations; only its results stay.

    Args:
        micro_batches: of the step; each is asked for once, in order, and let go.
        encode: a batch to (B, …) tensors, as many for each.
        rows: micro-batches of fewer rows are encoded several at once (:func:`join_batches`), up to so many rows: without
            activations there is room for them, and small batches are slow.

    >>> rows = encode_step([{"x": torch.ones(2)}, {"x": torch.zeros(1)}], lambda batch: (batch["x"],))
    >>> rows.values[0].tolist(), rows.rows(1)
    ([1.0, 1.0, 0.0], slice(2, 3, None))
    """
    parts: list[tuple[Tensor, ...]] = []
    starts = [0]
    waiting: list[Batch] = []
    for micro in range(len(micro_batches)):
        waiting.append(micro_batches[micro])
        size = _count(waiting[-1])
        starts.append(starts[-1] + size)
        if (len(waiting) + 1) * size > rows or micro == len(micro_batches) - 1:
            joined = join_batches(waiting)
            waiting.clear()
            parts.append(tuple(encode(joined)))
    return StepRows(tuple(torch.cat(values) for values in zip(*parts, strict=True)), tuple(starts))


def join_batches(batches: Sequence[Batch]) -> Batch:
    """Several micro-batches as one: tensors row after row, what else they hold as in the first of them.

    Rows of unlike length, such as token ids, are filled up with zeros on the right.

    >>> join_batches([{"ids": torch.ones(1, 2)}, {"ids": torch.ones(1, 3)}])["ids"].tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if len(batches) == 1:
        return batches[0]
    joined = dict(batches[0])
    for name, value in batches[0].items():
        if isinstance(value, Tensor):
            parts = [batch[name] for batch in batches]
            if value.ndim == 2:
                widest = max(part.shape[1] for part in parts)
                parts = [nn.functional.pad(part, (0, widest - part.shape[1])) for part in parts]
            joined[name] = torch.cat(parts)
    return joined


def _count(batch: Batch) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim)


def cache_gradients(
    embeddings: Sequence[Sequence[Tensor]],
    loss: Callable[..., tuple[Tensor, Mapping[str, Any]]],
) -> CachedGradients:
    """Evaluate ``loss`` on the joined embeddings of all micro-batches and keep its gradient at each.

    Args:
        embeddings: for each micro-batch, the (B, D) tensors of the first pass (for instance one per view).
        loss: takes the joined tensors, (ΣB, D) each, and returns (scalar, metrics). Differentiable in all of them.

    >>> z = [(torch.tensor([[1.0]]),), (torch.tensor([[2.0]]),)]
    >>> cached = cache_gradients(z, lambda x: (x.prod(), {}))
    >>> float(cached.loss), [float(g) for (g,) in cached.gradients]
    (2.0, [2.0, 1.0])
    """
    sizes = [len(parts[0]) for parts in embeddings]
    with torch.enable_grad():
        joined = [torch.cat(parts).detach().requires_grad_() for parts in zip(*embeddings, strict=True)]
        value, metrics = loss(*joined)
        gradients = torch.autograd.grad(value, joined)
    by_micro = list(zip(*(gradient.split(sizes) for gradient in gradients), strict=True))
    return CachedGradients(value.detach(), by_micro, metrics)
