"""Losses of the tasks against a literal reading of their equations in float64."""

import math

import pytest
import torch

from mc_core.errors import DataError
from mc_vision_language.tasks.config import EntailmentConfig, VQAConfig
from mc_vision_language.tasks.loss import answer_loss, distilled_cross_entropy


def naive(logits, targets, teacher, alpha):
    """(1 − α) CE(p, y) − α Σ_c p′_c log p_c, row by row."""
    found = []
    for row, target, taught in zip(logits.tolist(), targets.tolist(), teacher.tolist(), strict=True):
        norm, norm_t = (math.log(sum(math.exp(x) for x in part)) for part in (row, taught))
        hard = norm - row[target]
        soft = sum(math.exp(t - norm_t) * (norm - x) for x, t in zip(row, taught, strict=True))
        found.append((1 - alpha) * hard + alpha * soft)
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    teacher = 2 * torch.randn(7, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (7,), generator=generator), teacher


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_equals_its_equation(drawn, alpha):
    logits, targets, teacher = drawn
    found = distilled_cross_entropy(logits, targets, teacher, alpha)
    torch.testing.assert_close(found, naive(logits, targets, teacher, alpha), rtol=0, atol=1e-9)


def test_gradient_reaches_the_student_alone(drawn):
    logits, targets, teacher = (part.clone() for part in drawn)
    logits.requires_grad_(), teacher.requires_grad_()
    distilled_cross_entropy(logits, targets, teacher, 0.4).sum().backward()
    assert teacher.grad is None
    hot = torch.nn.functional.one_hot(targets, 5)
    expected = logits.detach().softmax(1) - 0.6 * hot - 0.4 * teacher.detach().softmax(1)
    torch.testing.assert_close(logits.grad, expected)


def test_a_student_that_equals_its_teacher_learns_nothing_from_it(drawn):
    logits = drawn[0].clone().requires_grad_()
    distilled_cross_entropy(logits, drawn[1], logits.detach(), 1.0).sum().backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-12)


def test_half_precision_is_widened(drawn):
    logits, targets, teacher = drawn
    found = distilled_cross_entropy(logits.bfloat16(), targets, teacher.bfloat16(), 0.4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), naive(logits.bfloat16(), targets, teacher.bfloat16(), 0.4), rtol=1e-5, atol=1e-5
    )


def test_distillation_needs_a_teacher(drawn):
    with pytest.raises(DataError, match=r"alpha 0\.4 needs the teacher"):
        distilled_cross_entropy(*drawn[:2], None, 0.4)


def test_answers_are_sums_of_tokens_weighted_and_divided_by_questions():
    losses = torch.tensor([0.5, 1.5, 2.0, 3.0, 0.25], dtype=torch.float64)
    answer_of, weights = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0.7, 0.3, 1.0], dtype=torch.float64)
    expected = (0.7 * (0.5 + 1.5) + 0.3 * 2.0 + 1.0 * (3.0 + 0.25)) / 2
    assert float(answer_loss(losses, answer_of, weights, 2)) == pytest.approx(expected, abs=1e-12)
    order = torch.tensor([3, 0, 4, 2, 1])
    assert float(answer_loss(losses[order], answer_of[order], weights, 2)) == pytest.approx(expected, abs=1e-12)


def test_the_share_of_the_teacher_rises_but_not_for_entailment():
    assert [VQAConfig().alpha_at(epochs) for epochs in (0.0, 0.5, 1.0, 3.0)] == [0.0, 0.2, 0.4, 0.4]
    assert EntailmentConfig().alpha_at(0.0) == 0.4
