"""Astrea's objectives against literal readings of their formulas, closed forms and limits, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.paired_losses import same_thing
from mc_vision_language.methods.astrea.loss import (
    balance_loss,
    contrast,
    contrast_logits,
    importance_loss,
    load_shares,
    normalised_entropy,
    prealign_loss,
    z_loss,
)

SCALE = torch.tensor(math.log(4.0), dtype=torch.float64)


def rows(count: int, seed: int, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=1)


def naive_direction(query, columns, ids, column_ids, scale: float) -> float:
    """−mean_i Σ_j T_ij log softmax_j(s q_i·c_j), in Python numbers."""
    total = 0.0
    for i in range(len(query)):
        logits = [scale * float(query[i] @ column) for column in columns]
        log_sum = math.log(sum(map(math.exp, logits)))
        hits = [float(ids[i] == one) for one in column_ids]
        total -= sum(hit / sum(hits) * (logit - log_sum) for hit, logit in zip(hits, logits, strict=True))
    return total / len(query)


@pytest.mark.parametrize("queue", [0, 3])
def test_contrast_is_that_of_its_definition(queue):
    v, keys, old = rows(4, 0), rows(4, 1), rows(queue, 2) if queue else None
    ids, old_ids = [7, 8, 8, 9], [8, 1, 7][:queue]
    same = same_thing([torch.tensor(ids)], [torch.tensor(ids + old_ids)])
    found = contrast(contrast_logits(v, keys, old, SCALE.exp()), same)
    columns = [*keys, *(old if old is not None else ())]
    assert float(found) == pytest.approx(naive_direction(v, columns, ids, ids + old_ids, 4.0), abs=1e-12)


def test_without_a_queue_it_is_the_symmetric_loss_within_the_batch():
    v, t = rows(6, 0), rows(6, 1)
    same = torch.eye(6, dtype=torch.bool)
    both = [contrast(contrast_logits(a, b, None, SCALE.exp()), same) for a, b in ((v, t), (t, v))]
    logits = SCALE.exp() * v @ t.T
    wanted = [torch.nn.functional.cross_entropy(one, torch.arange(6)) for one in (logits, logits.T)]
    assert float(sum(both)) == pytest.approx(float(sum(wanted)), abs=1e-12)


def test_a_repeated_key_is_a_positive_and_no_negative():
    v, keys = rows(2, 0), rows(2, 1)
    repeated = torch.cat([keys, keys[:1]])
    as_positive = contrast(contrast_logits(v[:1], repeated, None, SCALE.exp()), torch.tensor([[True, False, True]]))
    as_negative = contrast(contrast_logits(v[:1], repeated, None, SCALE.exp()), torch.tensor([[True, False, False]]))
    assert float(as_positive) == pytest.approx(float(as_negative), abs=1e-12)  # equal keys: shares sum to the same
    logits = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    contrast(logits, torch.tensor([[True, False, True]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] < 0  # towards it
    assert logits.grad[0, 1] > 0


def test_contrast_has_a_gradient_for_query_and_scale():
    v, keys, old = rows(3, 0).requires_grad_(), rows(3, 1), rows(4, 2)
    scale = SCALE.exp().requires_grad_()
    same = torch.eye(3, 7, dtype=torch.bool)
    assert torch.autograd.gradcheck(lambda q, s: contrast(contrast_logits(q, keys, old, s), same), (v, scale))


def test_soft_targets_are_shares_of_the_teachers_softmax():
    logits, taught = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    same = torch.eye(3, 5, dtype=torch.bool)
    targets = 0.7 * same.double() + 0.3 * taught.softmax(1)
    wanted = -(targets * logits.log_softmax(1)).sum(1).mean()
    assert float(contrast(logits, same, taught, 0.3)) == pytest.approx(float(wanted), abs=1e-12)
    assert float(contrast(logits, same, taught, 0.0)) == pytest.approx(float(contrast(logits, same)), abs=1e-12)


@pytest.mark.parametrize("soft", [0.0, 0.4])
def test_directions_that_go_together_are_the_mean_of_each_alone(soft):
    logits, taught = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 3, 5, dtype=torch.float64)
    same = torch.eye(3, 5, dtype=torch.bool)
    same[0, 4] = True
    alone = [contrast(one, same, told, soft) for one, told in zip(logits, taught, strict=True)]
    assert float(contrast(logits, same, taught, soft)) == pytest.approx(float(sum(alone)) / 2, abs=1e-12)
    assert float(contrast(logits, same)) == pytest.approx(
        float(sum(contrast(one, same) for one in logits)) / 2, abs=1e-12
    )


def naive_sym(a, b, ids, scale: float) -> float:
    return 0.5 * (naive_direction(a, b, ids, ids, scale) + naive_direction(b, a, ids, ids, scale))


@pytest.mark.parametrize("before", [0, 1, 2])
def test_pre_alignment_is_that_of_its_definition(before):
    image, text, joined = rows(4, 0), rows(4, 1), [rows(4, 10 + place) for place in range(before)]
    ids = [1, 2, 2, 3]
    same = same_thing([torch.tensor(ids)], [torch.tensor(ids)])
    wanted = naive_sym(image, text, ids, 4.0)
    if joined:
        mean = [sum(one[row] for one in joined) / before for row in range(4)]
        wanted += 0.3 * naive_sym(image, [one / math.sqrt(float(one @ one)) for one in mean], ids, 4.0)
    found = prealign_loss(image, text, SCALE, joined, cross=0.3, same=same)
    assert float(found) == pytest.approx(wanted, abs=1e-12)


def test_pre_alignment_sends_no_gradient_to_those_that_joined_before():
    image, text, joined = (rows(4, seed).requires_grad_() for seed in range(3))
    prealign_loss(image, text, SCALE, [joined], cross=0.5).backward()
    assert joined.grad is None
    plain = rows(4, 0).requires_grad_()
    prealign_loss(plain, text.detach(), SCALE).backward()
    assert image.grad is not None
    assert plain.grad is not None
    assert not torch.allclose(image.grad, plain.grad, atol=1e-4)  # the cross term pulls at the newcomer
    assert float(text.grad.abs().sum()) > 0


@pytest.mark.parametrize("experts", [2, 4])
def test_the_balance_loss_is_one_when_level_and_the_number_of_experts_when_collapsed(experts):
    level = torch.full((12, experts), 1 / experts, dtype=torch.float64)
    selected = torch.eye(experts, dtype=torch.bool).repeat(12 // experts, 1)
    assert float(balance_loss(level, selected)) == pytest.approx(1.0, abs=1e-12)
    collapsed = torch.zeros(12, experts, dtype=torch.float64)
    collapsed[:, 1] = 1
    assert float(balance_loss(collapsed, collapsed.bool())) == pytest.approx(experts, abs=1e-12)


def test_the_balance_loss_is_that_of_its_definition_and_moves_probabilities_alone():
    logits = torch.randn(3, 5, 4, dtype=torch.float64, requires_grad=True)
    p = logits.softmax(-1)
    selected = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.topk(2, dim=-1).indices, True)
    f = [float(selected[..., k].sum()) / (15 * 2) for k in range(4)]
    wanted = 4 * sum(share * p[..., k].mean() for k, share in enumerate(f))
    assert float(balance_loss(p, selected).detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    torch.testing.assert_close(load_shares(selected), torch.tensor(f), rtol=0, atol=1e-6)
    (found,) = torch.autograd.grad(balance_loss(p, selected), p, retain_graph=True)
    torch.testing.assert_close(found, (4 * torch.tensor(f).double() / 15).expand_as(found), rtol=0, atol=1e-6)


def test_importance_of_three_to_one_is_a_third():
    p = torch.tensor([[2.0, 0.5, 0.5, 0.5], [1.0, 0.5, 0.5, 0.5]], dtype=torch.float64, requires_grad=True)
    found = importance_loss(p)
    assert float(found.detach()) == pytest.approx(1 / 3, abs=1e-12)
    assert float(importance_loss(torch.full((5, 4), 0.25))) == 0.0
    found.backward()
    assert p.grad is not None
    assert p.grad[0, 0] > 0 > p.grad[0, 1]


def test_the_z_loss_of_zero_logits():
    assert float(z_loss(torch.zeros(7, 3, 4, dtype=torch.float64))) == pytest.approx(math.log(4) ** 2, abs=1e-12)
    logits = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    wanted = [math.log(sum(map(math.exp, row))) ** 2 for row in logits.tolist()]
    assert float(z_loss(logits)) == pytest.approx(sum(wanted) / 2, abs=1e-12)


def test_entropy_is_of_the_mean_weights():
    assert float(normalised_entropy(torch.eye(4, dtype=torch.float64))) == pytest.approx(1.0, abs=1e-12)
    one = torch.zeros(3, 2, 4, dtype=torch.float64)
    one[..., 0] = 1
    assert float(normalised_entropy(one)) == 0.0
    assert float(normalised_entropy(torch.ones(3, 1))) == 0.0  # of one expert
