"""The losses of MSD: by definition, in closed form, and what gradient they let through."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.errors import DataError
from mc_core.losses import info_nce
from mc_core.paired_losses import same_thing
from mc_medical.methods.msd.loss import PairTargets, distillation_loss, in_batch_loss, pair_targets

KAPPA = torch.tensor(6.0, dtype=torch.float64)
APART = torch.eye(6, dtype=torch.bool)


def rows(count=6, dim=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def student(seed):
    return rows(seed=seed).requires_grad_()


def test_it_is_the_equations_row_by_row():
    u, v, image, text = (rows(seed=seed) for seed in range(4))
    study, words = torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([9, 8, 7, 7, 6, 5])
    same = same_thing((study, words), (study, words))
    targets = pair_targets(same, (image, text), (image, text), KAPPA, 0.4)
    got, divergence = distillation_loss(u, v, (image, text), targets, KAPPA)

    def softmax(values):
        total = sum(math.exp(value) for value in values)
        return [math.exp(value) / total for value in values]

    for i in range(6):
        alike = [float(study[i] == study[j] or words[i] == words[j]) for j in range(6)]
        expected = least = 0.0
        for query, teacher, keys in ((u, image, text), (v, text, image)):
            told = softmax([6.0 * float(teacher[i] @ keys[j]) for j in range(6)])
            found = softmax([6.0 * float(query[i] @ keys[j]) for j in range(6)])
            for j in range(6):
                target = 0.4 * told[j] + 0.6 * alike[j] / sum(alike)
                expected -= target * math.log(found[j]) / 2
                least -= target * math.log(target) / 2
        assert got[i].item() == pytest.approx(expected, rel=1e-10)
        assert divergence[i].item() == pytest.approx(expected - least, rel=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.9])
def test_uniform_logits_give_log_n(alpha):
    flat = torch.full((6, 4), 0.5, dtype=torch.float64)
    targets = pair_targets(APART, (rows(), rows(seed=1)), (rows(), rows(seed=1)), KAPPA, alpha)
    loss, _ = distillation_loss(flat, flat, (flat, flat), targets, KAPPA)
    assert loss.tolist() == pytest.approx([math.log(6)] * 6)


def test_without_distillation_and_with_different_texts_it_is_info_nce_both_ways():
    u, v, image, text = (rows(seed=seed) for seed in range(4))
    targets = pair_targets(APART, (image, text), (image, text), KAPPA, 0.0)
    loss, _ = distillation_loss(u, v, (image, text), targets, KAPPA)
    both = info_nce(u, text, temperature=1 / 6, in_batch=True) + info_nce(v, image, temperature=1 / 6, in_batch=True)
    assert loss.mean().item() == pytest.approx(both.item() / 2, rel=1e-6)


def test_a_student_equal_to_its_teacher_learns_nothing_from_its_targets_alone():
    u, v = student(0), student(1)
    keys = u.detach(), v.detach()
    targets = pair_targets(APART, keys, keys, KAPPA, 1.0)
    loss, divergence = distillation_loss(u, v, keys, targets, KAPPA)
    for gradient in torch.autograd.grad(loss.sum(), (u, v)):
        assert gradient.abs().max() < 1e-14
    assert divergence.abs().max() < 1e-12
    mixed = pair_targets(APART, keys, keys, KAPPA, 0.9)
    loss, _ = distillation_loss(u, v, keys, mixed, KAPPA)
    assert torch.autograd.grad(loss.sum(), u)[0].abs().max() > 1e-3


def test_gradient_flows_into_queries_and_temperature_alone():
    u, v, image, text = (student(seed) for seed in range(4))
    kappa = KAPPA.clone().requires_grad_()
    targets = pair_targets(APART, (image, text), (image, text), kappa, 0.4)
    assert not targets.image.requires_grad
    assert not targets.text.requires_grad
    loss, divergence = distillation_loss(u, v, (image, text), targets, kappa, intra_modal=0.5)
    assert not divergence.requires_grad
    loss.sum().backward()
    assert u.grad is not None
    assert v.grad is not None
    assert kappa.grad is not None
    assert image.grad is None
    assert text.grad is None


def test_the_teacher_is_as_sharp_as_the_student():
    """Both use the same κ: else targets would sharpen while the student softens."""
    image, text = rows(), rows(seed=1)
    soft = pair_targets(APART, (image, text), (image, text), torch.tensor(1.0).double(), 0.9)
    sharp = pair_targets(APART, (image, text), (image, text), torch.tensor(50.0).double(), 0.9)
    assert sharp.image.max(1).values.mean() > soft.image.max(1).values.mean() + 0.2


def test_intra_modal_terms_contrast_with_keys_of_the_same_kind():
    u, v, image, text = (rows(seed=seed) for seed in range(4))
    targets = PairTargets(torch.eye(6).double(), torch.eye(6).double())
    without, _ = distillation_loss(u, v, (image, text), targets, KAPPA)
    with_them, _ = distillation_loss(u, v, (image, text), targets, KAPPA, intra_modal=0.5)
    extra = info_nce(u, image, temperature=1 / 6, in_batch=True) + info_nce(v, text, temperature=1 / 6, in_batch=True)
    assert (with_them - without).mean().item() == pytest.approx(0.25 * extra.item(), rel=1e-6)


def test_the_loss_within_a_batch_is_two_sided():
    u, v = student(0), student(1)
    targets = pair_targets(APART, None, (u, v), KAPPA, 0.0)
    loss = in_batch_loss(u, v, u, v, targets, KAPPA).mean()
    both = info_nce(u, v, temperature=1 / 6, in_batch=True) + info_nce(v, u, temperature=1 / 6, in_batch=True)
    assert loss.item() == pytest.approx(both.item() / 2, rel=1e-6)
    ours, theirs = (torch.autograd.grad(value, u, retain_graph=True)[0] for value in (loss, both / 2))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_order_of_pairs_does_not_matter():
    u, v, image, text = (rows(seed=seed) for seed in range(4))
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    same = APART.clone()
    same[1, 4] = same[4, 1] = True

    def loss(rows, alike):
        u, v, image, text = rows
        targets = pair_targets(alike, (image, text), (image, text), KAPPA, 0.4)
        return distillation_loss(u, v, (image, text), targets, KAPPA)[0]

    straight = loss((u, v, image, text), same)
    mixed = loss([part[order] for part in (u, v, image, text)], same[order][:, order])
    torch.testing.assert_close(mixed, straight[order], rtol=1e-12, atol=1e-14)


def test_rows_that_do_not_fit_are_refused():
    targets = PairTargets(torch.eye(6).double(), torch.eye(6).double())
    with pytest.raises(DataError, match="4 rows of text do not fit 6 of images"):
        distillation_loss(rows(), rows(4), (rows(), rows()), targets, KAPPA)
