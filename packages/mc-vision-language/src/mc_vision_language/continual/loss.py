"""What all methods on a sequence of tasks are trained by, as pure functions (CTP, Zhu et al. 2023, arXiv:2308.07146)::

    ita = ½ [ CE( v_i · w̄ / τ, own column ) + CE( w_i · v̄ / τ, own column ) ]       mean over local rows, w̄ and v̄ of all processes
    mlm = CE( word ) at masked places

Legend: B pairs of this process, G of all, M masked tokens, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.paired_losses import shared_targets, soft_cross_entropy


def own_cross_entropy(logits: Tensor, same: Tensor | None, first: int = 0) -> Tensor:
    """Scalar: mean cross-entropy of picking a row's own column, or in equal shares whatever is the same thing.

    Args:
        logits: (B, N) with N ≥ ``first`` + B.
        same: (B, N) bool, at least one true in each row; None: the own column alone.
        first: column of row 0.

    >>> own_cross_entropy(torch.zeros(2, 4), None, first=2)  # log 4
    tensor(1.3863)
    """
    if same is None:
        return F.cross_entropy(logits, torch.arange(first, first + len(logits), device=logits.device))
    return soft_cross_entropy(logits, shared_targets(same, logits.dtype)).mean()


def both_ways(of_images: Tensor, of_texts: Tensor, same: Tensor | None, first: int = 0) -> Tensor:
    """Scalar: the mean of both directions; see :func:`own_cross_entropy`.

    >>> both_ways(torch.zeros(2, 2), torch.zeros(2, 2), None)  # log 2
    tensor(0.6931)
    """
    return 0.5 * (own_cross_entropy(of_images, same, first) + own_cross_entropy(of_texts, same, first))


def soft_words(log_p: Tensor, teacher_logits: Tensor) -> Tensor:
    """Scalar: mean cross-entropy of words at masked places with a teacher's opinion, over the whole vocabulary.

    Args:
        log_p: (M, V) log-probabilities of the student.
        teacher_logits: (M, V), a constant.

    >>> soft_words(torch.zeros(1, 4).log_softmax(1), torch.zeros(1, 4))  # the entropy, where both agree
    tensor(1.3863)
    """
    return -(teacher_logits.detach().to(log_p.dtype).softmax(1) * log_p).sum(1).mean()


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Scalar: mean over rows of KL( softmax(teacher) ‖ softmax(student) ).

    Args:
        teacher: (B, N) logits in at least float32, a constant.
        student: (B, N) logits in at least float32.

    >>> divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]]))
    tensor(0.)
    >>> divergence(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))  # log cosh 1
    tensor(0.4338)
    """
    p, q = teacher.detach().log_softmax(1), student.log_softmax(1)
    return (p.exp() * (p - q)).sum() / len(student)
