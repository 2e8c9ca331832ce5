"""Every loss against a float64 loop that reads like its equation, closed forms and invariants, and two processes."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mc_core import _streaming, losses
from mc_core.errors import ConfigError, DataError
from mc_core.losses import (
    anchor_terms,
    dclw_weights,
    decoupled_from_terms,
    decoupled_info_nce,
    decoupled_key_nce,
    info_nce,
    info_nce_from_terms,
    koleo,
    npc_multiplier,
    nt_xent,
    sinkhorn_assignments,
    swapped_prediction,
    two_view_terms,
)

TAU = 0.2


def unit(rows: int, dim: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(rows, dim, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=1)


def grads(loss: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


def same(mine: Any, reference: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(mine, reference, rtol=tolerance, atol=tolerance)


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_streaming, "_CHUNK_ELEMENTS", {"cpu": 1, "cuda": 1})
    monkeypatch.setattr(_streaming, "_CHUNK_ROWS_MIN", 3)
    monkeypatch.setattr(_streaming, "_KEEP_BYTES", 0)


# The equations, read literally.


def candidates_of(i: int, q: Tensor, k: Tensor, n: Tensor | None, in_batch: bool) -> tuple[list[Tensor], int]:
    """Logits of anchor i in the documented order, and which of them is the positive."""
    logits = [q[i] @ k[j] / TAU for j in (range(len(k)) if in_batch else [i])]
    logits += [] if n is None else [q[i] @ row / TAU for row in n]
    return logits, i if in_batch else 0


def info_nce_by_loop(q: Tensor, k: Tensor, n: Tensor | None, *, in_batch: bool) -> Tensor:
    losses = []
    for i in range(len(q)):
        logits, positive = candidates_of(i, q, k, n, in_batch)
        losses.append(-torch.log(torch.exp(logits[positive]) / sum(torch.exp(x) for x in logits)))
    return torch.stack(losses).mean()


def u_of(views: list[Tensor], i: int, k: int, ids: list[int]) -> Tensor:
    """U_{i,k} of the DCL paper: both views of every other sample."""
    terms = [
        torch.exp(views[k][i] @ views[l][j] / TAU)
        for l in (0, 1)  # noqa: E741
        for j in range(len(ids))
        if ids[j] != ids[i]
    ]
    return torch.stack(terms).sum()


def two_view_by_loop(a: Tensor, b: Tensor, kind: str, *, ids: list[int] | None = None, sigma: float = 0.5) -> Tensor:
    views, ids = [a, b], ids if ids is not None else list(range(len(a)))
    s = [a[i] @ b[i] for i in range(len(a))]
    mean = sum(math.exp(x.item() / sigma) for x in s) / len(s)
    losses = []
    for i in range(len(a)):
        for k in (0, 1):
            u = u_of(views, i, k, ids)
            if kind == "nt_xent":
                losses.append(-torch.log(torch.exp(s[i] / TAU) / (torch.exp(s[i] / TAU) + u)))
            else:
                w = 2 - math.exp(s[i].item() / sigma) / mean if kind == "dclw" else 1.0
                losses.append(-w * s[i] / TAU + torch.log(u))
    return torch.stack(losses).mean()


# InfoNCE


@pytest.mark.parametrize("in_batch", [False, True])
@pytest.mark.parametrize("queue", [0, 1, 40, None])
@pytest.mark.parametrize("keys_grad", [False, True])
def test_info_nce_and_its_gradient_equal_the_equation(in_batch, queue, keys_grad):
    q, k = unit(5).requires_grad_(), unit(5, seed=1).requires_grad_(keys_grad)
    n = None if queue is None else unit(queue, seed=2)
    inputs = [q, k] if keys_grad else [q]
    ours = info_nce(q, k, n, temperature=TAU, in_batch=in_batch)
    theirs = info_nce_by_loop(q, k, n, in_batch=in_batch)
    same(ours, theirs)
    if ours.requires_grad:
        for mine, reference in zip(grads(ours, *inputs), grads(theirs, *inputs), strict=True):
            same(mine, reference)
    assert k.grad is None


@pytest.mark.usefixtures("tiny_chunks")
def test_the_streamed_form_is_the_same_loss():
    test_info_nce_and_its_gradient_equal_the_equation(True, 40, True)
    test_soft_targets_that_are_one_hot_are_no_targets(True)


def test_losses_pass_gradcheck_through_keys_queue_and_temperature():
    q, k, n = unit(3, 4).requires_grad_(), unit(4, 4, seed=1).requires_grad_(), unit(5, 4, seed=2).requires_grad_()
    tau = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def loss(q: Tensor, k: Tensor, n: Tensor, tau: Tensor) -> Tensor:
        return info_nce(q, k, n, temperature=tau, in_batch=True, positive_offset=1)

    assert torch.autograd.gradcheck(loss, (q, k, n, tau))
    assert torch.autograd.gradcheck(
        lambda a, b, tau: decoupled_info_nce(a, b, temperature=tau, sigma=0.5, detach_weight=False), (q, k[:3], tau)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions(reduction):
    q, k, n = unit(5), unit(5, seed=1), unit(9, seed=2)
    rows = torch.stack([info_nce(q[i : i + 1], k[i : i + 1], n) for i in range(5)])
    expected = {"mean": rows.mean(), "sum": rows.sum(), "none": rows}[reduction]
    same(info_nce(q, k, n, reduction=reduction), expected)
    views = two_view_terms(q, k)
    expected = {"mean": views.mean(), "sum": views.sum(), "none": views}[reduction]
    same(decoupled_info_nce(q, k, reduction=reduction), expected)


def test_gathered_keys_are_read_at_their_offset():
    q, k = unit(6), unit(6, seed=1)
    whole = info_nce(q, k, temperature=TAU, in_batch=True, reduction="none")
    parts = [
        info_nce(q[i : i + 2], k, temperature=TAU, in_batch=True, positive_offset=i, reduction="none")
        for i in (0, 2, 4)
    ]
    same(torch.cat(parts), whole)


@pytest.mark.parametrize("in_batch", [False, True])
def test_soft_targets_that_are_one_hot_are_no_targets(in_batch):
    q, k, n = unit(5).requires_grad_(), unit(7, seed=1)[: 7 if in_batch else 5], unit(9, seed=2)
    offset = 2 if in_batch else 0
    hot = torch.zeros(5, (7 if in_batch else 1) + 9, dtype=torch.float64)
    hot[torch.arange(5), torch.arange(5) + 2 if in_batch else torch.zeros(5, dtype=torch.int64)] = 1.0
    ids = {"query_ids": torch.arange(5), "key_ids": torch.arange(7) % 3 if in_batch else None}
    ids["negative_ids"] = torch.arange(9)
    for extra in ({}, ids):
        options = {"temperature": TAU, "in_batch": in_batch, "positive_offset": offset, **extra}
        plain, soft = info_nce(q, k, n, **options), info_nce(q, k, n, targets=hot, **options)
        same(soft, plain)
        same(grads(soft, q), grads(plain, q))


def test_soft_targets_are_a_cross_entropy_in_the_documented_order():
    q, k, n = unit(3), unit(3, seed=1), unit(4, seed=2)
    targets = torch.rand(3, 7, dtype=torch.float64).softmax(1)
    logits = torch.stack([torch.stack(candidates_of(i, q, k, n, True)[0]) for i in range(3)])
    same(info_nce(q, k, n, temperature=TAU, in_batch=True, targets=targets), F.cross_entropy(logits, targets))
    with pytest.raises(DataError, match=r"targets have shape \(3, 6\); .* shape \(3, 7\)"):
        info_nce(q, k, n, in_batch=True, targets=targets[:, :6])


# Closed forms and identities


def test_closed_forms():
    n, tau = 6, 0.5
    alike = torch.ones(n, 3, dtype=torch.float64) / math.sqrt(3)
    assert decoupled_info_nce(alike, alike, temperature=tau).item() == pytest.approx(math.log(2 * n - 2))
    assert nt_xent(alike, alike, temperature=tau).item() == pytest.approx(math.log(2 * n - 1))
    pairs = torch.eye(n, dtype=torch.float64)
    expected = -1 / tau + math.log(2 * n - 2)
    assert decoupled_info_nce(pairs, pairs, temperature=tau).item() == pytest.approx(expected)
    q, k, one = unit(4), unit(4, seed=1), unit(1, seed=2)
    same(decoupled_key_nce(q, k, one, temperature=tau), -((q * k).sum(1) - q @ one[0]).mean() / tau)
    assert info_nce(q, q, q[:1].repeat(4, 1) * 0, temperature=1.0).item() == pytest.approx(math.log(1 + 4 / math.e))


@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
def test_info_nce_is_softplus_of_dcl_and_its_gradient_is_sigmoid_of_it_times_dcls(tau):
    q, k, n = unit(5).requires_grad_(), unit(5, seed=1), unit(30, seed=2)
    terms = anchor_terms(q, k, n, temperature=tau)
    dense = F.cross_entropy(
        torch.cat([(q * k).sum(1, keepdim=True), q @ n.T], 1) / tau, torch.zeros(5).long(), reduction="none"
    )
    same(info_nce_from_terms(terms, reduction="none"), dense, 1e-12)
    same(decoupled_from_terms(terms), decoupled_key_nce(q, k, n, temperature=tau))
    for i in range(5):
        (of_info_nce,) = torch.autograd.grad(dense[i], q, retain_graph=True)
        (of_dcl,) = torch.autograd.grad(terms[i], q, retain_graph=True)
        same(of_info_nce, terms[i].detach().sigmoid() * of_dcl, 1e-12)
    same(npc_multiplier(terms), terms.detach().sigmoid().mean())
    assert not npc_multiplier(terms).requires_grad


def test_very_negative_terms_keep_their_digits():
    terms = torch.tensor([-40.0, 40.0], dtype=torch.float64)
    same(info_nce_from_terms(terms, reduction="none"), torch.tensor([math.exp(-40.0), 40.0]).double(), 1e-17)


def test_random_negatives_give_log_k_plus_half_the_variance():
    q, k, n = unit(64, 128, dtype=torch.float32), unit(64, 128, seed=1), unit(16384, 128, seed=2)
    expected = math.log(16384) + 1 / (2 * 128 * 0.2**2)
    terms = anchor_terms(q, k.float(), n.float(), temperature=0.2) + (q * k).sum(1) / 0.2
    assert terms.mean().item() == pytest.approx(expected, abs=0.02)


# Ids, empty queues, rows with nothing left


@pytest.mark.parametrize("in_batch", [False, True])
def test_ids_leave_out_exactly_the_same_things(in_batch):
    q, k, n = unit(4), unit(4, seed=1), unit(6, seed=2)
    ids, queue_ids = torch.tensor([7, 8, 7, 9]), torch.tensor([9, 9, 1, 7, 2, 3])
    ours = anchor_terms(q, k, n, temperature=TAU, in_batch=in_batch, query_ids=ids, negative_ids=queue_ids)
    for i in range(4):
        kept = [q[i] @ n[j] / TAU for j in range(6) if queue_ids[j] != ids[i]]
        kept += [q[i] @ k[j] / TAU for j in range(4) if in_batch and ids[j] != ids[i]]
        same(ours[i], torch.stack(kept).logsumexp(0) - q[i] @ k[i] / TAU)
    blind = anchor_terms(q, k, n, temperature=TAU, in_batch=in_batch, query_ids=ids)
    for i in range(4):  # without ids of the queue, all of it counts
        kept = [*(q[i] @ row / TAU for row in n)]
        kept += [q[i] @ k[j] / TAU for j in range(4) if in_batch and ids[j] != ids[i]]
        same(blind[i], torch.stack(kept).logsumexp(0) - q[i] @ k[i] / TAU)


def test_an_own_key_is_no_negative_even_with_another_id():
    q, k = unit(3), unit(3, seed=1)
    ids = {"query_ids": torch.arange(3), "key_ids": torch.arange(3) + 10}
    same(anchor_terms(q, k, temperature=TAU, in_batch=True, **ids), anchor_terms(q, k, temperature=TAU, in_batch=True))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "info_nce": functools.partial(info_nce, temperature=TAU),
    "dcl": functools.partial(decoupled_key_nce, temperature=TAU),
    "dclw": functools.partial(decoupled_key_nce, temperature=TAU, sigma=0.5),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("queue", ["none", "empty", "all the same"])
@pytest.mark.parametrize("in_batch", [False, True])
def test_without_negatives_the_loss_is_zero_with_zero_gradient(name, queue, in_batch):
    q, k = unit(3).requires_grad_(), unit(3, seed=1).requires_grad_()
    rows = {"none": None, "empty": unit(1)[:0], "all the same": unit(6, seed=2)}[queue]
    options: dict[str, Any] = {"in_batch": in_batch, "query_ids": torch.tensor([5, 5, 5])}
    if rows is not None:
        options["negative_ids"] = torch.full((len(rows),), 5)
    loss = LOSSES[name](q, k, rows, **options)
    assert loss.item() == 0.0
    for grad in grads(loss, q, k):
        assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("name", LOSSES)
def test_one_row_without_negatives_counts_as_zero_and_leaves_the_others_alone(name):
    q, k, n = unit(3).requires_grad_(), unit(3, seed=1), unit(6, seed=2)
    options = {"query_ids": torch.tensor([5, 1, 2]), "negative_ids": torch.full((6,), 5), "reduction": "none"}
    loss = LOSSES[name](q, k, n, **options)
    free = LOSSES[name](q, k, n, reduction="none")
    assert loss[0].item() == 0.0
    same(loss[1:], free[1:])
    same(grads(loss.sum(), q)[0][1:], grads(free.sum(), q)[0][1:])
    assert grads(LOSSES[name](q, k, n, **options).sum(), q)[0][0].abs().max() == 0.0


def test_soft_targets_with_ids_have_finite_gradients():
    q, k = unit(3).requires_grad_(), unit(3, seed=1)
    targets = torch.tensor([[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    loss = info_nce(q, k, temperature=TAU, in_batch=True, targets=targets, query_ids=torch.tensor([5, 5, 6]))
    logits = q @ k.T / TAU
    first = -0.8 * (logits[0, 0] - logits[0, [0, 2]].logsumexp(0))
    second = -0.8 * (logits[1, 1] - logits[1, [1, 2]].logsumexp(0))
    same(loss, (first + second + F.cross_entropy(logits[2:], targets[2:])) / 3)
    assert grads(loss, q)[0].isfinite().all()


def test_enqueueing_before_the_backward_pass_is_refused():
    ring, q = unit(10), unit(3, seed=1).requires_grad_()
    loss = info_nce(q, unit(3, seed=2), ring[:8])
    ring[9:] = 0.0  # the same memory, although not the same rows
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


# Two views


@pytest.mark.parametrize("kind", ["dcl", "dclw", "nt_xent"])
@pytest.mark.parametrize("ids", [None, [3, 4, 3, 5, 4, 6]])
def test_two_view_losses_equal_the_equation(kind, ids):
    a, b = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    tensor = None if ids is None else torch.tensor(ids)
    if kind == "nt_xent":
        ours = nt_xent(a, b, temperature=TAU, ids=tensor)
    else:
        ours = decoupled_info_nce(a, b, temperature=TAU, sigma=0.5 if kind == "dclw" else None, ids=tensor)
    theirs = two_view_by_loop(a, b, kind, ids=ids)
    same(ours, theirs)
    for mine, reference in zip(grads(ours, a, b), grads(theirs, a, b), strict=True):
        same(mine, reference)


@pytest.mark.usefixtures("tiny_chunks")
def test_two_view_losses_do_not_depend_on_the_chunks():
    test_two_view_losses_equal_the_equation("dclw", [3, 4, 3, 5, 4, 6])
    test_two_view_losses_equal_the_equation("nt_xent", None)


def test_two_view_losses_are_symmetric_and_blind_to_the_order():
    a, b, order = unit(6), unit(6, seed=1), torch.randperm(6)
    for loss in (decoupled_info_nce, nt_xent, functools.partial(decoupled_info_nce, sigma=0.5)):
        same(loss(a, b), loss(b, a))
        same(loss(a, b), loss(a[order], b[order]))


@pytest.mark.parametrize("kind", ["dcl", "dclw", "nt_xent"])
def test_sharded_views_average_to_the_loss_and_gradient_of_the_whole(kind):
    loss = nt_xent if kind == "nt_xent" else decoupled_info_nce
    sigma = {"sigma": 0.5} if kind == "dclw" else {}
    a, b, ids = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_(), torch.tensor([1, 2, 3, 1, 5, 6])
    for known in (False, True):
        whole = loss(a, b, temperature=TAU, ids=ids if known else None, **sigma)
        parts = []
        for i in (0, 2, 4):
            rows = slice(i, i + 2)
            extra = {"ids": ids[rows], "all_ids": ids} if known else {}
            parts.append(loss(a[rows], b[rows], temperature=TAU, all_a=a, all_b=b, offset=i, **extra, **sigma))
        mean = torch.stack(parts).mean()
        same(mean, whole)
        for mine, reference in zip(grads(mean, a, b), grads(whole, a, b), strict=True):
            same(mine, reference)


def test_a_hundred_negatives_sum_over_the_union_of_both_views():
    """Two logsumexps, one for each view, would give 2·log(N − 1) instead of log(2N − 2) at equal features."""
    alike = torch.ones(51, 1)
    same(two_view_terms(alike, alike, temperature=1.0), torch.full((2, 51), math.log(100)), 1e-5)


# DCLW


def test_weights_average_one_and_fall_with_the_similarity():
    s = torch.linspace(-1, 1, 9, dtype=torch.float64)
    w = dclw_weights(s)
    same(w.mean(), torch.tensor(1.0, dtype=torch.float64))
    assert (w.diff() < 0).all()
    assert (w > 2 - 9).all()
    assert (w < 2).all()
    same(dclw_weights(torch.full((4,), 0.3)), torch.ones(4), 1e-6)
    same(dclw_weights(s, sigma=1e9), torch.ones_like(s), 1e-8)
    shared = dclw_weights(s[:3], all_similarity=s)
    same(shared, w[:3])


def test_one_aligned_pair_repels_unless_clamped():
    s = torch.zeros(256, dtype=torch.float64)
    s[0] = 1.0
    assert dclw_weights(s)[0].item() == pytest.approx(-5.2, abs=0.05)
    assert dclw_weights(s, weight_min=0.0)[0].item() == 0.0
    assert dclw_weights(s, weight_min=0.0)[1] == dclw_weights(s)[1]


@pytest.mark.parametrize("form", ["two views", "keys"])
def test_the_detach_switch_changes_gradients_alone(form):
    a, b, n = unit(5).requires_grad_(), unit(5, seed=1), unit(9, seed=2)

    def loss(detach: bool) -> Tensor:
        if form == "keys":
            return decoupled_key_nce(a, b, n, temperature=TAU, sigma=0.5, detach_weight=detach)
        return decoupled_info_nce(a, b, temperature=TAU, sigma=0.5, detach_weight=detach)

    same(loss(True), loss(False))
    assert (grads(loss(True), a)[0] - grads(loss(False), a)[0]).abs().max() > 1e-3


@pytest.mark.parametrize("weight_min", [None, 0.9])
def test_weighted_key_loss_equals_the_equation(weight_min):
    q, k, n = unit(4), unit(4, seed=1), unit(7, seed=2)
    s = (q * k).sum(1)
    w = 2 - (s / 0.5).exp() / (s / 0.5).exp().mean()
    w = w if weight_min is None else w.clamp_min(weight_min)
    expected = (-w * s / TAU + (q @ n.T / TAU).exp().sum(1).log()).mean()
    same(decoupled_key_nce(q, k, n, temperature=TAU, sigma=0.5, weight_min=weight_min), expected)


def test_weighted_in_batch_keys_at_an_offset():
    q, k = unit(2), unit(5, seed=1)
    s = (q * k[3:]).sum(1)
    w = 2 - (s / 0.5).exp() / (s / 0.5).exp().mean()
    u = torch.stack([sum((q[i] @ k[j] / TAU).exp() for j in range(5) if j != i + 3) for i in (0, 1)])
    ours = decoupled_key_nce(q, k, temperature=TAU, sigma=0.5, in_batch=True, positive_offset=3)
    same(ours, (-w * s / TAU + u.log()).mean())


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_losses_stay_close_and_finite(dtype):
    q, k, n = unit(32, 128).requires_grad_(), unit(32, 128, seed=1), unit(4096, 128, seed=2)
    q32 = q.detach().float().requires_grad_()
    for loss in LOSSES.values():
        exact = loss(q, k, n)
        with torch.autocast("cpu", dtype=dtype):
            low = loss(q32, k.float(), n.float())
        assert low.dtype == torch.float32
        assert abs(low.item() - exact.item()) < 1e-2
        (mine,), (reference,) = grads(low, q32), grads(exact, q)
        assert (mine - reference).norm() / reference.norm() < 2e-2
    with torch.autocast("cpu", dtype=dtype):
        assert info_nce(q32 * 1, q32.detach(), n.float(), temperature=0.05).isfinite()
        double = info_nce(q, k, n)
        low = two_view_terms(q32, k.float(), temperature=TAU)
    assert (low - two_view_terms(q, k, temperature=TAU)).abs().max() < 5e-2
    same(double, info_nce(q, k, n))  # autocast leaves float64 alone


def test_half_precision_features_are_widened_before_the_sums():
    q, k, n = (unit(8, 64, seed=i).bfloat16() for i in range(3))
    loss = info_nce(q.requires_grad_(), k, n)
    assert loss.dtype == torch.float32
    same(loss, info_nce(q.float(), k.float(), n.float()), 1e-2)
    assert grads(loss, q)[0].dtype == torch.bfloat16


# Sinkhorn and swapped prediction


def official_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    m = torch.exp(scores.T / epsilon)
    prototypes, batch = m.shape
    m = m / m.sum()
    for _ in range(iterations):
        m = m / m.sum(1, keepdim=True) / prototypes
        m = m / m.sum(0, keepdim=True) / batch
    return (m * batch).T


def cosines(batch: int = 40, prototypes: int = 12, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return (unit(batch, 6, seed=seed) @ unit(prototypes, 6, seed=seed + 100).T).to(dtype)


@pytest.mark.parametrize("epsilon", [0.02, 0.03, 0.05, 1.0])
@pytest.mark.parametrize("iterations", [1, 3])
def test_both_forms_equal_the_official_iteration(epsilon, iterations):
    scores = cosines()
    same(
        sinkhorn_assignments(scores, epsilon=epsilon, iterations=iterations),
        official_sinkhorn(scores, epsilon, iterations),
    )
    single = sinkhorn_assignments(scores.float(), epsilon=epsilon, iterations=iterations)
    same(single.double(), official_sinkhorn(scores, epsilon, iterations), 1e-5)


@pytest.mark.parametrize(
    "elements", [1, 30, 84, 10_000]
)  # 1, 2 and 7 rows in a block, the last one cut short; one block
@pytest.mark.parametrize("epsilon", [0.02, 0.05])
def test_blocks_of_any_size_give_the_same_assignments(epsilon, elements, monkeypatch):
    monkeypatch.setattr(losses, "_SINKHORN_BLOCK_ELEMENTS", elements)
    stack = torch.stack([cosines(), cosines(seed=1)])
    expected = torch.stack([official_sinkhorn(scores, epsilon, 3) for scores in stack])
    same(sinkhorn_assignments(stack, epsilon=epsilon), expected)
    same(sinkhorn_assignments(stack.float(), epsilon=epsilon).double(), expected, 1e-5)
    same(sinkhorn_assignments(stack[0].T.contiguous().T, epsilon=epsilon), expected[0])
    stack[1, -1, -1] = 1.5
    with pytest.raises(DataError, match=r"1\.5\]"):
        sinkhorn_assignments(stack, epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [0.005, 0.05])
def test_rows_sum_to_one_and_are_finite_at_any_epsilon(epsilon):
    scores = cosines(64, 300).float()
    scores[:, 0], scores[0] = -1.0, -1.0  # a prototype and a sample far from everything underflow in the scaling form
    codes = sinkhorn_assignments(scores, epsilon=epsilon)
    same(codes.sum(1), torch.ones(64), 1e-5)
    assert not codes.requires_grad


@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_logarithms_hold_where_every_exponential_underflows(iterations):
    scores = unit(64, 6) @ unit(30, 6, seed=7).T
    scores[:, 0], scores[0] = -1.0, -1.0
    found = sinkhorn_assignments(scores.float(), epsilon=0.005, iterations=iterations)
    same(found.double(), official_sinkhorn(scores, 0.005, iterations), 1e-3)


def test_balance_improves_with_iterations():
    scores = cosines(300, 10)
    errors = [(sinkhorn_assignments(scores, iterations=n).sum(0) / 30 - 1).abs().max().item() for n in (1, 3, 10, 100)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_what_cancels_and_what_does_not():
    scores = cosines() * 0.5
    codes, order = sinkhorn_assignments(scores), torch.randperm(len(scores))
    same(sinkhorn_assignments(scores[order]), codes[order])
    same(sinkhorn_assignments(scores + 0.3), codes)
    same(sinkhorn_assignments(scores + torch.linspace(-0.3, 0.3, 12).double()), codes)
    shifted = sinkhorn_assignments(scores + torch.linspace(-0.3, 0.3, 40).double()[:, None])
    assert (shifted - codes).abs().max() > 1e-3  # a constant for each sample matters: no maximum may be subtracted


def test_identical_samples_get_uniform_codes_and_epsilon_hardens():
    same(sinkhorn_assignments(cosines()[:1].expand(9, -1)), torch.full((9, 12), 1 / 12, dtype=torch.float64))
    entropy = [
        -(q * q.clamp_min(1e-30).log()).sum(1).mean().item()
        for q in (sinkhorn_assignments(cosines(), epsilon=e) for e in (0.01, 0.05, 0.1, 1.0))
    ]
    assert entropy == sorted(entropy)
    assert entropy[-1] == pytest.approx(math.log(12), abs=0.1)


@pytest.mark.parametrize("epsilon", [0.01, 0.05])
def test_a_stack_of_problems_is_solved_like_each_alone(epsilon):
    stack = torch.stack([cosines(), cosines(seed=1)])
    kept = stack.clone()
    same(
        sinkhorn_assignments(stack, epsilon=epsilon),
        torch.stack([sinkhorn_assignments(scores, epsilon=epsilon) for scores in stack]),
    )
    assert torch.equal(stack, kept)


@pytest.mark.parametrize("rows", [1, 7, 16, 39])
@pytest.mark.parametrize(("epsilon", "iterations"), [(0.05, 1), (0.05, 3), (0.02, 1), (0.02, 2), (0.02, 4)])
def test_sinkhorn_does_not_depend_on_its_blocks(rows, epsilon, iterations, monkeypatch):
    stack = torch.stack([cosines(), cosines().flip(0) * 0.9])
    monkeypatch.setattr(losses, "_SINKHORN_BLOCK_ELEMENTS", rows * stack.shape[-1])
    found = sinkhorn_assignments(stack, epsilon=epsilon, iterations=iterations)
    same(found, torch.stack([official_sinkhorn(scores, epsilon, iterations) for scores in stack]))
    assert torch.equal(stack, torch.stack([cosines(), cosines().flip(0) * 0.9]))  # left as they were


def test_sinkhorn_is_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn_assignments(cosines(dtype=torch.float32))
    assert codes.dtype == torch.float32
    same(codes.double(), official_sinkhorn(cosines(), 0.05, 3), 1e-5)


def swapped_by_loop(scores: list[Tensor], codes: list[Tensor], tau: float) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(codes)):
        for v in range(len(scores)):
            if v != i:
                total = total - (codes[i] * F.log_softmax(scores[v] / tau, 1)).sum(1).mean() / (len(scores) - 1)
    return total / len(codes)


@pytest.mark.parametrize(("crops", "assigned"), [(2, 1), (2, 2), (5, 2), (4, 4)])
def test_swapped_prediction_equals_the_equation(crops, assigned):
    scores = [cosines(seed=v).requires_grad_() for v in range(crops)]
    codes = [sinkhorn_assignments(scores[i]).requires_grad_() for i in range(assigned)]
    ours, theirs = swapped_prediction(scores, codes, temperature=0.1), swapped_by_loop(scores, codes, 0.1)
    same(ours, theirs)
    options = {"allow_unused": True, "materialize_grads": True}  # the only assigned crop of two is not predicted
    for mine, reference in zip(
        torch.autograd.grad(ours, scores, retain_graph=True, **options),
        torch.autograd.grad(theirs, scores, **options),
        strict=True,
    ):
        same(mine, reference)
    assert torch.autograd.grad(ours, codes, allow_unused=True) == (None,) * assigned
    same(swapped_prediction(torch.stack(scores), torch.stack(codes)), ours)


def test_swapped_prediction_is_bounded_by_the_entropy_of_the_codes():
    scores = [cosines(seed=v) for v in range(3)]
    codes = [sinkhorn_assignments(s) for s in scores[:2]]
    entropy = torch.stack([-(q * q.log()).sum(1).mean() for q in codes]).mean()
    assert swapped_prediction(scores, codes) > entropy
    exact = (scores[0] / 0.1).softmax(1)
    same(swapped_prediction([scores[0]] * 2, [exact] * 2), -(exact * exact.log()).sum(1).mean())


def test_collapsed_scores_are_a_stationary_point_at_log_p():
    scores = torch.zeros(2, 9, 12, dtype=torch.float64, requires_grad=True)
    loss = swapped_prediction(scores, sinkhorn_assignments(scores))
    assert loss.item() == pytest.approx(math.log(12))
    assert grads(loss, scores)[0].abs().max() < 1e-15


# KoLeo


def test_koleo_equals_the_equation():
    z = unit(30).requires_grad_()
    terms = []
    for i in range(30):
        n = max((j for j in range(30) if j != i), key=lambda j: (z[i] @ z[j]).item())
        terms.append(-torch.log((z[i] - z[n] + 1e-8).square().sum().sqrt() + 1e-8))
    theirs = torch.stack(terms).mean()
    same(koleo(z), theirs)
    same(grads(koleo(z), z), grads(theirs, z))


def test_koleo_in_pieces_and_under_autocast(monkeypatch):
    z = unit(30)
    whole = koleo(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = koleo(z.float())
    same(low.double(), whole, 1e-5)
    monkeypatch.setattr("mc_core.losses._KOLEO_CHUNK_ELEMENTS", 100)
    same(koleo(z), whole)


def test_koleo_spreads_and_survives_duplicates():
    z = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0]]), dim=1).requires_grad_()
    moved = F.normalize(z - 0.01 * grads(koleo(z), z)[0], dim=1)
    assert (moved[0] - moved[1]).norm() > (z[0] - z[1]).norm()
    twins = torch.eye(2)[[0, 0, 1]].requires_grad_()
    assert grads(koleo(twins), twins)[0].isfinite().all()


# Bad input


def bad_pairs() -> list[tuple[str, type[Exception], dict[str, Any]]]:
    q, k, n, ids = unit(3), unit(3, seed=1), unit(4, seed=2), torch.arange(3)
    return [
        (r"temperature is 0\.0", ConfigError, {"temperature": 0.0}),
        (r"temperature is nan", ConfigError, {"temperature": float("nan")}),
        (r"temperature is -1\.0", ConfigError, {"temperature": torch.tensor(-1.0)}),
        (r"temperature has shape \(3,\)", ConfigError, {"temperature": torch.ones(3)}),
        (r"query has shape \(8,\)", DataError, {"query": q[0]}),
        (r"query has shape \(0, 8\)", DataError, {"query": q[:0], "key": k[:0]}),
        (r"key has shape \(3, 7\); the query's dim asks for \(rows, 8\)", DataError, {"key": k[:, :7]}),
        (r"negatives has shape \(4, 9\)", DataError, {"negatives": unit(4, 9)}),
        (r"3 queries but 2 keys", DataError, {"key": k[:2]}),
        (r"positive_offset is 1; it only means something with in_batch", ConfigError, {"positive_offset": 1}),
        (r"3 queries with positive_offset 1 do not fit 3 keys", DataError, {"in_batch": True, "positive_offset": 1}),
        (r"positive_offset -1 do not fit", DataError, {"in_batch": True, "positive_offset": -1}),
        (r"without query_ids", ConfigError, {"negative_ids": torch.arange(4), "negatives": n}),
        (r"without query_ids", ConfigError, {"key_ids": ids}),
        (r"negative_ids were given without negatives", ConfigError, {"query_ids": ids, "negative_ids": ids}),
        (r"query_ids is torch.int64 of shape \(2,\).* shape \(3,\)", DataError, {"query_ids": ids[:2]}),
        (r"query_ids is torch.float32", DataError, {"query_ids": ids.float()}),
        (r"key_ids is .* \(2,\)", DataError, {"query_ids": ids, "key_ids": ids[:2]}),
        (r"negative_ids is .* \(3,\).* \(4,\)", DataError, {"query_ids": ids, "negatives": n, "negative_ids": ids}),
        (r"key has 4 rows for 3 queries: give key_ids", ConfigError, {"query_ids": ids, "in_batch": True, "key": n}),
        (r"reduction is 'avg'", ConfigError, {"reduction": "avg"}),
    ]


@pytest.mark.parametrize(("message", "error", "change"), bad_pairs(), ids=lambda value: str(value)[:30])
def test_bad_pairs_are_named(message, error, change):
    options = {"query": unit(3), "key": unit(3, seed=1), "temperature": TAU, **change}
    with pytest.raises(error, match=message):
        info_nce(options.pop("query"), options.pop("key"), **options)
    if "reduction" not in change:
        options = {"query": unit(3), "key": unit(3, seed=1), "temperature": TAU, **change}
        with pytest.raises(error, match=message):
            anchor_terms(options.pop("query"), options.pop("key"), **options)


@pytest.mark.parametrize(
    ("message", "error", "change"),
    [
        (r"batch of 1 has no negatives", DataError, {"view_a": unit(1), "view_b": unit(1)}),
        (r"shapes \(3, 8\) and \(2, 8\)", DataError, {"view_b": unit(2)}),
        (r"temperature is 0", ConfigError, {"temperature": 0}),
        (r"all_a and all_b together", ConfigError, {"all_a": unit(4)}),
        (r"offset 2 do not fit all_a of shape \(4, 8\)", DataError, {"all_a": unit(4), "all_b": unit(4), "offset": 2}),
        (r"only mean something with all_a", ConfigError, {"offset": 2}),
        (r"ids and all_ids together", ConfigError, {"all_a": unit(4), "all_b": unit(4), "ids": torch.arange(3)}),
        (r"ids is torch.int64 of shape \(4,\)", DataError, {"ids": torch.arange(4)}),
    ],
)
def test_bad_views_are_named(message, error, change):
    options = {"view_a": unit(3), "view_b": unit(3, seed=1), **change}
    for loss in (decoupled_info_nce, nt_xent, two_view_terms):
        with pytest.raises(error, match=message):
            loss(**options)


def test_other_bad_input_is_named():
    with pytest.raises(ConfigError, match=r"sigma is 0"):
        decoupled_info_nce(unit(3), unit(3), sigma=0)
    with pytest.raises(ConfigError, match=r"weights and positive together"):
        decoupled_from_terms(torch.zeros(3), weights=torch.ones(3))
    with pytest.raises(ConfigError, match=r"epsilon is 0"):
        sinkhorn_assignments(cosines(), epsilon=0)
    with pytest.raises(ConfigError, match=r"iterations is 0"):
        sinkhorn_assignments(cosines(), iterations=0)
    with pytest.raises(DataError, match=r"scores have shape \(12,\)"):
        sinkhorn_assignments(cosines()[0])
    with pytest.raises(DataError, match=r"scores lie in \[.*, 1\.5\]"):
        sinkhorn_assignments(torch.full((2, 2), 1.5))
    with pytest.raises(DataError, match=r"scores lie in \[nan"):
        sinkhorn_assignments(torch.full((2, 2), float("nan")))
    with pytest.raises(DataError, match=r"1 crops"):
        swapped_prediction([cosines()], [cosines()])
    with pytest.raises(DataError, match=r"2 crops, 3 with"):
        swapped_prediction([cosines()] * 2, [cosines()] * 3)
    with pytest.raises(DataError, match=r"shapes \[\(3, 12\), \(40, 12\)\]"):
        swapped_prediction([cosines()] * 2, [cosines()[:3]])
    with pytest.raises(DataError, match=r"features have shape \(1, 8\)"):
        koleo(unit(1))


# Two processes


def on_this_rank(folder: Path, rank: int, world: int) -> None:
    """What each process does: losses of its shard, with gradients as DistributedDataParallel would average them."""
    import torch.distributed as dist

    from mc_core.distributed import gather_rows, gather_rows_with_grad, own_rows

    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    own = own_rows(3)
    found: dict[str, Any] = {}
    for name, loss in (
        ("dclw", functools.partial(decoupled_info_nce, sigma=0.5)),
        ("dclw_grad", functools.partial(decoupled_info_nce, sigma=0.5, detach_weight=False)),
        ("nt_xent", nt_xent),
    ):
        a, b = unit(6)[own].requires_grad_(), unit(6, seed=1)[own].requires_grad_()
        value = loss(
            a, b, temperature=TAU, all_a=gather_rows_with_grad(a), all_b=gather_rows_with_grad(b), offset=own.start
        )
        found[name] = (value.detach(), *grads(value / world, a, b))
    for detach in (True, False):
        q, k = unit(6)[own].requires_grad_(), unit(6, seed=1)[own]
        value = decoupled_key_nce(
            q,
            gather_rows(k),
            temperature=TAU,
            in_batch=True,
            positive_offset=own.start,
            sigma=0.5,
            detach_weight=detach,
        )
        found[f"key_{detach}"] = (value.detach(), *grads(value / world, q))
    scores = torch.stack([cosines(), cosines(seed=1)])
    half = slice(rank * 20, rank * 20 + 20)
    for epsilon in (0.01, 0.05):
        found[f"codes_{epsilon}"] = sinkhorn_assignments(scores[:, half], epsilon=epsilon)
    found["codes_local"] = sinkhorn_assignments(scores[0, half], distributed=False)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may abort an interpreter that is going (pytorch/pytorch#179291)


def test_two_processes_agree_with_one(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error", __file__, str(tmp_path)]
    started = [
        subprocess.Popen([*command, str(r)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for r in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0].decode() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "\n".join(outputs)
    first, second = (torch.load(tmp_path / f"{r}.pt") for r in range(2))

    a, b = unit(6).requires_grad_(), unit(6, seed=1).requires_grad_()
    keyed = functools.partial(decoupled_key_nce, a, b.detach(), temperature=TAU, in_batch=True, sigma=0.5)
    whole = {
        "dclw": (decoupled_info_nce(a, b, temperature=TAU, sigma=0.5), a, b),
        "dclw_grad": (decoupled_info_nce(a, b, temperature=TAU, sigma=0.5, detach_weight=False), a, b),
        "nt_xent": (nt_xent(a, b, temperature=TAU), a, b),
        "key_True": (keyed(detach_weight=True), a),
        "key_False": (keyed(detach_weight=False), a),
    }
    for name, (loss, *inputs) in whole.items():
        same((first[name][0] + second[name][0]) / 2, loss.detach())
        for position, reference in enumerate(grads(loss, *inputs), start=1):
            same(torch.cat([first[name][position], second[name][position]]), reference)
    scores = torch.stack([cosines(), cosines(seed=1)])
    for epsilon in (0.01, 0.05):
        codes = torch.cat([first[f"codes_{epsilon}"], second[f"codes_{epsilon}"]], 1)
        same(codes, sinkhorn_assignments(scores, epsilon=epsilon))
    same(first["codes_local"], sinkhorn_assignments(scores[0, :20]))


if __name__ == "__main__":
    on_this_rank(Path(sys.argv[1]), int(sys.argv[2]), 2)
