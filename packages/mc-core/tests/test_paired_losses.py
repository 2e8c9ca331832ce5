"""Losses of some rows against the keys of a step: against loops by definition, in closed form, and in gradient."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.errors import DataError
from mc_core.losses import info_nce
from mc_core.paired_losses import (
    distilled_targets,
    entropy,
    keyed_cross_entropy,
    same_thing,
    shared_targets,
    soft_cross_entropy,
    two_sided_gradients,
)


def rows(count, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def test_targets_and_loss_by_definition():
    study, text = torch.tensor([1, 1, 2, 3]), torch.tensor([7, 8, 8, 9])
    teacher = 3 * rows(4, seed=1) @ rows(6, seed=2).T
    key_study, key_text = torch.tensor([1, 1, 2, 3, 4, 9]), torch.tensor([7, 8, 8, 9, 9, 1])
    same = same_thing((study, text), (key_study, key_text))
    logits = rows(4) @ rows(6, seed=3).T
    got = soft_cross_entropy(logits, distilled_targets(same, teacher, 0.3))
    for i in range(4):
        positive = [bool(study[i] == key_study[j] or text[i] == key_text[j]) for j in range(6)]
        weights = [math.exp(teacher[i, j]) for j in range(6)]
        norm = sum(math.exp(logits[i, j]) for j in range(6))
        expected = 0.0
        for j in range(6):
            target = 0.7 * positive[j] / sum(positive) + 0.3 * weights[j] / sum(weights)
            expected -= target * (logits[i, j].item() - math.log(norm))
        assert got[i].item() == pytest.approx(expected, rel=1e-12)


def test_equal_things_share_the_target():
    same = same_thing([torch.tensor([5])], [torch.tensor([5, 2, 5, 5])])
    targets = distilled_targets(same, torch.zeros(1, 4, dtype=torch.float64), 0.4)
    assert targets[0, 0] == targets[0, 2] == targets[0, 3]
    assert targets[0].tolist() == pytest.approx([0.6 / 3 + 0.1, 0.1, 0.6 / 3 + 0.1, 0.6 / 3 + 0.1])
    assert shared_targets(same).sum(1).tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9])
def test_uniform_logits_give_log_n(alpha):
    same = torch.eye(6, dtype=torch.bool)
    teacher = rows(6) @ rows(6, seed=1).T
    loss = soft_cross_entropy(torch.full((6, 6), 2.5, dtype=torch.float64), distilled_targets(same, teacher, alpha))
    assert loss.tolist() == pytest.approx([math.log(6)] * 6)


def test_targets_hold_no_graph_and_are_not_written_into():
    teacher = rows(3).requires_grad_() @ rows(3, seed=1).T
    before = teacher.detach().clone()
    targets = distilled_targets(torch.eye(3, dtype=torch.bool), teacher, 0.4)
    assert not targets.requires_grad
    assert torch.equal(teacher.detach(), before)


def test_the_least_loss_is_the_entropy_of_the_targets():
    logits = rows(3) @ rows(4, seed=1).T
    targets = logits.softmax(1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), entropy(targets), rtol=1e-12, atol=0)
    hard = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    assert entropy(hard).item() == 0.0


def test_unequal_numbers_of_ids_are_refused():
    with pytest.raises(DataError, match="1 ids for the queries and 2 for the keys"):
        same_thing([torch.zeros(2)], [torch.zeros(2), torch.zeros(2)])


def _dense(left, right, kappa, targets):
    logits = kappa * left @ right.T
    sides = ((logits, targets[0]), (logits.T, targets[1]))
    return sum(soft_cross_entropy(part, target).mean() for part, target in sides) / 2


@pytest.mark.parametrize("block", [1, 3, 7, 12])
def test_streamed_gradients_are_those_of_the_dense_loss(block):
    left, right = rows(7).requires_grad_(), rows(7, seed=1).requires_grad_()
    kappa = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    targets = [distilled_targets(torch.eye(7, dtype=torch.bool), rows(7, 7, seed) * 2, 0.4) for seed in (2, 3)]
    asked = []

    def some(part, right):
        asked.append(part.stop - part.start)
        return targets[int(right)][part]

    found = two_sided_gradients(left.detach(), right.detach(), kappa.detach(), some, rows=block)
    loss = _dense(left, right, kappa, targets)
    expected = torch.autograd.grad(loss, (left, right, kappa))
    assert found.loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for got, grad in zip((found.left, found.right, found.scale), expected, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-10, atol=1e-13)
    assert max(asked) == min(block, 7)
    assert sum(asked) == 14


def test_with_one_positive_it_is_info_nce_both_ways():
    left, right = rows(6), rows(6, seed=1)
    found = two_sided_gradients(
        left, right, torch.tensor(5.0, dtype=torch.float64), lambda part, _: torch.eye(6).double()[part], rows=4
    )
    both = [info_nce(a, b, temperature=0.2, in_batch=True) for a, b in ((left, right), (right, left))]
    assert found.loss.item() == pytest.approx(float(sum(both)) / 2, rel=1e-6)


def test_the_lean_form_is_the_dense_one_with_its_gradients():
    query, keys = rows(4).requires_grad_(), rows(6, seed=1)
    kappa = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    targets = 1.5 * distilled_targets(
        torch.eye(4, 6, dtype=torch.bool), rows(4, 6, 2), 0.4
    )  # also rows that sum to more
    weights = torch.tensor([1.0, 0.0, -2.0, 0.5], dtype=torch.float64)
    dense = soft_cross_entropy(kappa * query @ keys.T, targets)
    lean = keyed_cross_entropy(query, keys, kappa, targets)
    torch.testing.assert_close(lean, dense, rtol=1e-12, atol=1e-14)
    expected = torch.autograd.grad((dense * weights).sum(), (query, kappa))
    for got, wanted in zip(torch.autograd.grad((lean * weights).sum(), (query, kappa)), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


def test_the_lean_form_keeps_nothing_as_long_as_the_keys():
    kept = []
    query, keys = rows(4).requires_grad_(), rows(5000, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        keyed_cross_entropy(
            query, keys, torch.tensor(3.0).double(), shared_targets(torch.ones(4, 5000) > 0, keys.dtype)
        )
    assert max(kept) == 4 * 5
