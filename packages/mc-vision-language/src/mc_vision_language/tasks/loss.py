"""The losses of the downstream tasks: pure functions of logits, softened by a momentum teacher.

With p the trained model's distribution, p′ the teacher's and α the share of distillation::

    ℓ      = (1 − α) CE(p, y) − α Σ_c p′_c log p_c              a statement, an entailment, one token of an answer
    L      = 1/B Σ_b ℓ_b                                        classification
    L_VQA  = 1/B Σ_a weight_a Σ_t ℓ_{a,t}                       all answers a of the B questions, their tokens t

Source: ALBEF (Li et al. 2021, arXiv:2107.07651), section 3 (momentum distillation, eq. 7 for tokens) and its downstream tasks.

Legend: R rows, C classes (or the vocabulary), T tokens of all answers, A answers, B questions.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy

from mc_core.errors import DataError


def distilled_cross_entropy(logits: Tensor, targets: Tensor, teacher_logits: Tensor | None, alpha: float) -> Tensor:
    """(R,) cross-entropies with labels that a teacher softens.

    Gradient flows into ``logits`` alone. Half precision is widened first.

    Args:
        logits: (R, C).
        targets: (R,) int64 classes.
        teacher_logits: (R, C); None with α = 0.
        alpha: α in [0, 1].

    Raises:
        DataError: a share of distillation without a teacher.

    >>> import torch
    >>> distilled_cross_entropy(
    ...     torch.zeros(1, 4), torch.tensor([2]), torch.randn(1, 4), 0.4
    ... )  # log 4, whatever the targets
    tensor([1.3863])
    """
    logits = _wide(logits)
    hard = cross_entropy(logits, targets, reduction="none")
    if not alpha:
        return hard
    if teacher_logits is None:
        raise DataError(f"alpha {alpha} needs the teacher's logits")
    soft = cross_entropy(logits, _wide(teacher_logits.detach()).softmax(1), reduction="none")
    return hard.lerp(soft, alpha)


def answer_loss(token_losses: Tensor, answer_of: Tensor, weights: Tensor, questions: int) -> Tensor:
    """L_VQA, a scalar: the tokens of each answer are summed, answers weighted, the sum divided by the number of questions.

    Args:
        token_losses: (T,) of all answers, without padding.
        answer_of: (T,) int64, to which answer each token belongs.
        weights: (A,) of the answers, such as the share of people who gave it.
        questions: B.

    >>> import torch
    >>> answer_loss(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 0, 1]), torch.tensor([0.5, 0.25]), questions=1)
    tensor(2.5000)
    """
    return (token_losses * weights.to(token_losses.dtype)[answer_of]).sum() / questions


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype.itemsize < 4 else logits
