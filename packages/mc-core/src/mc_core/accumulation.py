"""Exact large-batch gradients from small micro-batches, in two passes (GradCache; Gao et al. 2021, arXiv 2101.06983).

Adding up the gradients of micro-batches is not the gradient of a contrastive loss over their union: each would only see its own
negatives. Here the first pass (``Method.prepare_step``) embeds every micro-batch without keeping activations, takes the loss of
the whole batch and its gradient with respect to the embeddings, ∂L/∂z; the second (``Method.training_step``) embeds one
micro-batch again and pulls ∂L/∂z back through it. By the chain rule the sum over micro-batches is the gradient of L.

Legend: B samples of a micro-batch, D embedding width.
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
    """

    loss: Tensor
    gradients: Sequence[Sequence[Tensor]]
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)

    def surrogate(self, micro: int, embeddings: Sequence[Tensor]) -> Tensor:
        """A scalar with the value of the whole batch's loss and this micro-batch's share of its gradient.

        The share is multiplied by the number of micro-batches, because the engine averages over them.
        """
        pull = sum(
            ((z * g.to(z.dtype)).sum() for z, g in zip(embeddings, self.gradients[micro], strict=True)), torch.zeros(())
        )
        pull = pull * len(self.gradients)
        return self.loss + (pull - pull.detach())


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
