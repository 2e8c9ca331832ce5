"""The equations of ALBEF (Li et al. 2021, arXiv:2107.07651) as pure functions::

    s(g) = [ z·k_1 … z·k_B, z·n_1 … z·n_K ] / τ         logits of a row against keys and queue, both the teacher's
    q    = α softmax( s' ) + (1 − α) y                   y: in equal shares for whatever is the same thing
    itc  = −Σ_j q_j log softmax( s )_j                   eq. 1, 6; each direction
    itm  = cross-entropy of match and no match           eq. 3, negatives drawn by softmax( s ) among the batch
    mlm  = (1 − α) CE( word ) − α Σ_v p'_v log p_v       eq. 4, 7; over the vocabulary, at masked places alone

The paper writes the soft part as a KL divergence: the same gradient, without the teacher's entropy. ``mlm`` sums over the
vocabulary; the official code did so only from March 2022 on.

Legend: B pairs of a batch, K keys of a queue, d width, M masked tokens, V words.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core.paired_losses import distilled_targets, shared_targets, soft_cross_entropy


def contrast_logits(query: Tensor, keys: Tensor, queue: Tensor | None, temperature: Tensor | float) -> Tensor:
    """(B, B + K) logits s: a batch of queries against the keys of the batch, then those of the queue.

    Args:
        query: (B, d) unit rows.
        keys: (B, d) unit rows of the teacher, those of the batch; row b is the positive of row b.
        queue: (K, d) unit rows, or None.
        temperature: τ.
    """
    cosines = query @ keys.T
    if queue is not None:
        # the products are joined, not the keys: a long queue is not copied
        cosines = torch.cat([cosines, query @ queue.to(query.dtype).T], dim=1)
    return cosines / temperature


def contrast(logits: Tensor, teacher_logits: Tensor | None, same: Tensor, alpha: float) -> Tensor:
    """(B,) losses of one direction.

    Args:
        logits: (B, N) s.
        teacher_logits: (B, N) s′; None with α = 0.
        same: (B, N) bool, at least one true in each row.
        alpha: α.

    >>> contrast(torch.zeros(1, 4), None, torch.eye(4, dtype=torch.bool)[:1], 0.0)  # log 4
    tensor([1.3863])
    """
    logits = _wide(logits)
    if teacher_logits is None or not alpha:
        return soft_cross_entropy(logits, shared_targets(same, logits.dtype))
    return soft_cross_entropy(logits, distilled_targets(same, _wide(teacher_logits), alpha))


@torch.no_grad()
def hard_negatives(logits: Tensor, same: Tensor, noise: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """One negative for each row, drawn with probability softmax(strength · s) among what is not the same thing.

    What is the same thing gets −∞ before the softmax, so that nothing underflows however small the temperature.

    Args:
        logits: (B, B) s against the batch.
        same: (B, B) bool.
        noise: (B, B) uniform in [0, 1), the chance of the draw.
        strength: 1: as in the paper; 0: all alike.

    Returns:
        (B,) places, and (B,) bool, false where everything is the same thing (its place then means nothing).

    >>> same = torch.eye(2, dtype=torch.bool)
    >>> hard_negatives(torch.zeros(2, 2), same, torch.rand(2, 2))[0]
    tensor([1, 0])
    """
    tiny = torch.finfo(torch.float32).tiny
    gumbel = -(-noise.float().clamp_min(tiny).log()).clamp_min(tiny).log()
    # the largest of logits with Gumbel noise is a draw from their softmax (Gumbel 1954)
    scores = (strength * logits.float() + gumbel).masked_fill(same, -torch.inf)
    return scores.argmax(1), ~same.all(1)


def matching(logits: Tensor, valid: Tensor) -> Tensor:
    """Scalar: mean cross-entropy of B pairs that match, then 2B that do not.

    Args:
        logits: (3B, 2); class 1 is a match.
        valid: (3B,) bool, what counts.

    >>> matching(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
    tensor(0.6931)
    """
    logits = _wide(logits)
    labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    labels[: len(logits) // 3] = 1
    weight = valid.to(logits.dtype)
    return (F.cross_entropy(logits, labels, reduction="none") * weight).sum() / weight.sum()


def masked_words(logits: Tensor, words: Tensor, teacher_logits: Tensor | None, alpha: float) -> Tensor:
    """(M,) losses of words at masked places.

    Args:
        logits: (M, V).
        words: (M,) what stood there.
        teacher_logits: (M, V); None with α = 0.
        alpha: α.
    """
    log_p = _wide(logits).log_softmax(1)
    hard = F.nll_loss(log_p, words, reduction="none")
    if teacher_logits is None or not alpha:
        return hard
    soft = -(_wide(teacher_logits.detach()).softmax(1) * log_p).sum(1)
    return (1 - alpha) * hard + alpha * soft


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype.itemsize < 4 else x
