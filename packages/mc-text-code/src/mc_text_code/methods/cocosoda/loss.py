"""The loss of CoCoSoDa: a pure function of six terms.

With c, q the unit rows of functions and questions, c*, q* the slow copy's unit rows of their augmented selves, N_c, N_q the keys
of earlier steps and τ the temperature, each term is, in the mean over its anchors a_i::

    L(a, k, N) = −log  exp(a_i·k_i/τ) / ( Σ_j exp(a_i·k_j/τ) + Σ_n exp(a_i·n/τ) )

    block       1             2              3             4              5              6
    a, k, N     c, q, N_q     c, q*, N_q     q, c, N_c     q, c*, N_c     c, c*, N_c     q, q*, N_q

Blocks 1 to 4 are the paper's inter-modal terms (its equations for L_q^inter and L_c^inter, with both kinds of positives), 5 and 6
the intra-modal ones. The result is the mean over blocks, by their weights.

The paper (Shi et al. 2023, arXiv:2204.03293) has no negatives from the batch in its equations; its released code has, as here. That
code further divides cosines by 0.07 and multiplies them by 20, keeps blocks 1 and 3 against two further queues of the trained
encoder's own outputs, and leaves 5 and 6 out in its script; see ``online_queues``.

Legend: B anchors of this process, G rows of all processes, K keys in a queue, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mc_core.errors import ConfigError, DataError

BLOCKS = 6
_CODE, _QUERY = 0, 1  # anchors; also which of two queues
# (anchor, kind of the candidates, whether they are the slow copy's) of blocks 1 to 6
_PLAN = (
    (_CODE, _QUERY, False),
    (_CODE, _QUERY, True),
    (_QUERY, _CODE, False),
    (_QUERY, _CODE, True),
    (_CODE, _CODE, True),
    (_QUERY, _QUERY, True),
)


def cocosoda_loss(
    code: Tensor,
    query: Tensor,
    keys: tuple[Tensor, Tensor] | None = None,
    queues: tuple[Tensor, Tensor] | None = None,
    *,
    temperature: float = 0.05,
    weights: Sequence[float] = (1.0,) * BLOCKS,
    online: tuple[Tensor, Tensor] | None = None,
    online_queues: tuple[Tensor, Tensor] | None = None,
    same: Tensor | None = None,
    queue_same: Tensor | None = None,
    offset: int = 0,
) -> Tensor:
    """The weighted mean of the six terms. All rows are unit vectors, made so by the caller.

    Gradient flows into ``code``, ``query`` and ``online``; keys and queues are constants.

    Args:
        code: (B, D), anchors c.
        query: (B, D), anchors q.
        keys: c* and q*, (G, D) each; not needed where blocks 2, 4, 5 and 6 have weight 0.
        queues: N_c and N_q, (K, D) each, also with K = 0.
        temperature: τ > 0.
        weights: of blocks 1 to 6, at least one above 0.
        online: c and q of all processes, (G, D) each; default: those of this one.
        online_queues: what stands for N_c and N_q in blocks 3 and 1 (the released form).
        same: (B, G) bool, rows that are no negatives of an anchor; the positive stays whatever it says.
        queue_same: (B, K) bool, the same for the queues (and, beside them, ``online_queues``).
        offset: where the rows of these anchors begin among the G.

    Returns:
        A scalar: log(G + K) where all rows are equal.

    Raises:
        ConfigError: weights that are not six, or all 0; a temperature that is not positive.
        DataError: keys that are missing, or rows that do not fit.

    >>> rows = torch.full((4, 9), 1 / 3)  # collapsed
    >>> cocosoda_loss(rows, rows, (rows, rows), (rows[:2], rows[:2]))  # log 6
    tensor(1.7918)
    """
    _check(code, query, keys, queues, weights, temperature)
    online = (code, query) if online is None else online
    constants = None if keys is None else tuple(part.detach() for part in keys)
    wide = torch.float32 if code.dtype.itemsize < 4 else code.dtype
    used = [place for place in range(BLOCKS) if weights[place]]
    groups: dict[tuple[str, int], Tensor] = {}
    for place in used:
        _, kind, is_key = _PLAN[place]
        groups["key" if is_key else "online", kind] = (constants if is_key and constants else online)[kind]
        store = online_queues if online_queues is not None and not is_key else queues
        if store is not None and len(store[kind]):
            groups["queue" if store is queues else "online queue", kind] = store[kind].detach()
    anchors_2BD = torch.cat([code, query]) / temperature
    product = anchors_2BD @ torch.cat([part.to(anchors_2BD.dtype) for part in groups.values()]).T
    widths = [len(part) for part in groups.values()]
    logits = dict(zip(groups, product.to(wide).split(widths, dim=1), strict=True))

    B = len(code)
    rows = torch.arange(B, device=code.device)
    allowed = None if same is None else _without_positive(same, rows, offset)
    known: dict[tuple[str, int, int], Tensor] = {}

    def from_queue(name: str, anchor: int, kind: int) -> Tensor | None:
        if (name, kind) not in logits:
            return None
        if (name, anchor, kind) not in known:
            part = logits[name, kind][anchor * B : (anchor + 1) * B]
            known[name, anchor, kind] = _logsumexp(part, queue_same)
        return known[name, anchor, kind]

    total = torch.zeros((), dtype=wide, device=code.device)
    for place in used:
        anchor, kind, is_key = _PLAN[place]
        part_BG = logits["key" if is_key else "online", kind][anchor * B : (anchor + 1) * B]
        sums_B = _logsumexp(part_BG, allowed)
        name = "queue" if is_key or online_queues is None else "online queue"
        negative_B = from_queue(name, anchor, kind)
        if negative_B is not None:
            sums_B = torch.logaddexp(sums_B, negative_B)
        total = total + weights[place] * (sums_B - part_BG[rows, rows + offset]).mean()
    return total / sum(weights)


def _logsumexp(logits: Tensor, left_out: Tensor | None) -> Tensor:
    return (logits if left_out is None else logits.masked_fill(left_out, -torch.inf)).logsumexp(1)


def _without_positive(same: Tensor, rows: Tensor, offset: int) -> Tensor:
    same = same.clone()
    same[rows, rows + offset] = False
    return same


def _check(
    code: Tensor,
    query: Tensor,
    keys: tuple[Tensor, Tensor] | None,
    queues: tuple[Tensor, Tensor] | None,
    weights: Sequence[float],
    temperature: float,
) -> None:
    if len(weights) != BLOCKS or min(weights) < 0 or not sum(weights):
        raise ConfigError(f"weights {tuple(weights)}: give six, none negative and one of them above 0")
    if not temperature > 0:
        raise ConfigError(f"temperature {temperature}: give one above 0")
    if keys is None and any(weights[place] for place, (_, _, is_key) in enumerate(_PLAN) if is_key):
        raise DataError("blocks 2, 4, 5 and 6 contrast with keys: give them, or weights of 0 for these blocks")
    for name, part in (("query", query), *(("keys", k) for k in keys or ()), *(("queues", k) for k in queues or ())):
        if part.ndim != 2 or part.shape[1] != code.shape[1] or (name == "query" and part.shape != code.shape):
            raise DataError(f"{name} of shape {tuple(part.shape)} do not fit code of shape {tuple(code.shape)}")


def same_thing(
    code_ids: Tensor,
    query_ids: Tensor,
    other_code_ids: Tensor,
    other_query_ids: Tensor,
    *,
    by_language: Tensor | None = None,
) -> Tensor:
    """(B, G) bool: candidates whose code or whose question is the anchor's.

    Args:
        code_ids: (B,) int64 of the anchors' code.
        query_ids: (B,) int64 of the anchors' questions.
        other_code_ids: (G,) of the candidates' code.
        other_query_ids: (G,) of the candidates' questions.
        by_language: (B, G) bool to be left out besides.

    >>> same_thing(torch.tensor([1]), torch.tensor([7]), torch.tensor([1, 2, 3]), torch.tensor([8, 7, 9]))
    tensor([[ True,  True, False]])
    """
    found = (code_ids[:, None] == other_code_ids) | (query_ids[:, None] == other_query_ids)
    return found if by_language is None else found | by_language
