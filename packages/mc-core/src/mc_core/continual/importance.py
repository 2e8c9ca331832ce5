"""How much each weight matters to what was learned, and what it costs to move it: EWC, MAS, SI, RWalk.

All is kept as one flat row for all parameters, so that a penalty is a handful of calls however many parameters there are.

Legend: P weights of all parameters together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mc_core.distributed import all_reduce_mean
from mc_core.errors import ConfigError

Batch = TypeVar("Batch")


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """(P,) all of them in a row, with gradient.

    >>> flat([torch.ones(2, 2), torch.zeros(1)]).tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0]
    """
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def flat_gradient(parameters: Sequence[Tensor]) -> Tensor:
    """(P,) the gradients, zero where there is none."""
    return flat(torch.zeros_like(one) if one.grad is None else one.grad for one in parameters)


def quadratic(weights: Tensor, anchor: Tensor, importance: Tensor) -> Tensor:
    """Scalar Σ Ω (θ − θ*)², with gradient to ``weights``.

    Args:
        weights: (P,) θ.
        anchor: (P,) θ*.
        importance: (P,) Ω.

    >>> quadratic(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]), torch.tensor([3.0, 9.0]))
    tensor(3.)
    """
    return (importance * (weights - anchor).square()).sum()


def running_mean(old: Tensor, new: Tensor, before: int) -> Tensor:
    """Mean over tasks: a·old + (1 − a)·new with a = t/(t + 1).

    Args:
        old: mean over the tasks before.
        new: of this task.
        before: t, how many those were.

    >>> running_mean(torch.tensor([4.0]), torch.tensor([1.0]), 2)
    tensor([3.])
    """
    share = before / (before + 1)
    return share * old + (1 - share) * new


def mean_gradient_power(
    loss_of: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    parameters: Sequence[nn.Parameter],
    power: int,
) -> Tensor:
    """(P,) mean over batches of \\|gradient of the mean loss of a batch\\|^power.

    With ``power`` 2 and a loss it is the diagonal of the Fisher information as the official code of CTP has it, of batches and
    not of samples (EWC, Kirkpatrick et al. 2017); with ``power`` 1 and a length of outputs the importance of MAS (Aljundi et
    al. 2018). Gradients are averaged over processes first, so that the same batches divided among processes give the same
    importance. The official code does not reduce over processes.

    Args:
        loss_of: a batch → scalar.
        batches: at least one; each process its share of each.
        parameters: with respect to which.
        power: 1 or 2.

    Raises:
        ConfigError: no batch, or another power.

    >>> w = nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> mean_gradient_power(lambda x: (w * x).sum(), [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])], [w], 2)
    tensor([5., 2.])
    """
    if power not in (1, 2):
        raise ConfigError(f"power {power}: take 1 (absolute) or 2 (squared)")
    total, count = None, 0
    for batch in batches:
        with torch.enable_grad():
            found = torch.autograd.grad(loss_of(batch), list(parameters), allow_unused=True)
        gradient = flat(torch.zeros_like(one) if g is None else g for g, one in zip(found, parameters, strict=True))
        gradient = all_reduce_mean(gradient)
        raised = gradient.square() if power == 2 else gradient.abs()
        total = raised if total is None else total + raised
        count += 1
    if total is None:
        raise ConfigError("no batch to measure importances on: take a batch size of at most the number of samples")
    return total / count


def path_importance(path: Tensor, moved: Tensor, damping: float = 0.1, curvature: Tensor | None = None) -> Tensor:
    """(P,) share of the fall of the loss that each weight brought about, over how far it went: w / (c·δ² + damping).

    Summed over the weights, ``path`` is the fall of the loss along the path, to first order (SI, Zenke et al. 2017); with the
    Fisher information as ``curvature`` the score of RWalk (Chaudhry et al. 2018).

    Args:
        path: (P,) w = −Σ over steps of gradient · change.
        moved: (P,) δ, end minus start.
        damping: keeps what stood still from dividing by 0.
        curvature: (P,) c; default: 1.

    >>> path_importance(torch.tensor([0.2]), torch.tensor([0.3]))
    tensor([1.0526])
    """
    square = moved.square() if curvature is None else curvature * moved.square()
    return path / (square + damping)


class Anchor(nn.Module):
    """Where the parameters stood at the end of the last task, and how much each weight matters.

    Args:
        parameters: referenced, not registered; all on one device, of one type.

    Attributes:
        point: (P,) θ*.
        importance: (P,) Ω, 0 before the first task ends.

    >>> w = nn.Parameter(torch.tensor([1.0]))
    >>> anchor = Anchor([w])
    >>> anchor.importance += 2
    >>> with torch.no_grad():
    ...     _ = w.add_(3)
    >>> anchor.penalty().item()
    18.0
    """

    replicated_buffers = True

    point: Tensor
    importance: Tensor

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self._parameters_of = _Held(list(parameters))
        point = flat(one.detach() for one in self.parameters_held)
        self.register_buffer("point", point.clone())
        self.register_buffer("importance", torch.zeros_like(point))

    @property
    def parameters_held(self) -> list[nn.Parameter]:
        """Those it was made for."""
        return self._parameters_of.parameters

    def weights(self) -> Tensor:
        """(P,) θ as they stand, with gradient."""
        return flat(self.parameters_held)

    def penalty(self) -> Tensor:
        """Scalar Σ Ω (θ − θ*)²."""
        return quadratic(self.weights(), self.point, self.importance)

    def slope(self) -> Tensor:
        """(P,) its gradient, 2 Ω (θ − θ*)."""
        with torch.no_grad():
            return 2 * self.importance * (self.weights() - self.point)

    @torch.no_grad()
    def move(self) -> None:
        """θ* ← θ."""
        self.point.copy_(self.weights())


class _Held:
    """Keeps parameters out of the module that uses them; copied with the method around both, it follows the copy."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
