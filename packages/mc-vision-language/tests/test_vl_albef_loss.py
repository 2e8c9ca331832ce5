"""The losses of ALBEF against their equations, read literally in float64, and what must hold of them."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.losses import info_nce
from mc_vision_language.methods.albef.loss import contrast, contrast_logits, hard_negatives, masked_words, matching

B, K, D, TAU = 6, 11, 5, 0.13


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, D, generator=generator, dtype=torch.float64), dim=1)


@pytest.fixture
def sides():
    """Student's queries, teacher's queries, teacher's keys, queue, and which are the same thing."""
    ids = torch.tensor([3, 1, 3, 4, 5, 6])
    queue_ids = torch.tensor([1, 9, 9, 3, 8, 8, 7, 7, 7, 6, 2])
    same = ids[:, None] == torch.cat([ids, queue_ids])
    return rows(B, 0), rows(B, 1), rows(B, 2), rows(K, 3), same


def literal_contrast(query, teacher, keys, queue, same, alpha, tau=TAU):
    """Section 3.2 and equation 6, entry by entry."""
    candidates = [*keys, *queue]
    losses = []
    for b in range(len(query)):
        s = [float(query[b] @ k) / tau for k in candidates]
        taught = [float(teacher[b] @ k) / tau for k in candidates]
        total, taught_total = sum(map(math.exp, s)), sum(map(math.exp, taught))
        positives = int(same[b].sum())
        loss = 0.0
        for j in range(len(candidates)):
            y = float(same[b, j]) / positives
            q = alpha * math.exp(taught[j]) / taught_total + (1 - alpha) * y
            loss -= q * (s[j] - math.log(total))
        losses.append(loss)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_contrast_equals_the_equations(sides, alpha):
    query, teacher, keys, queue, same = sides
    logits = contrast_logits(query, keys, queue, TAU)
    soft = contrast_logits(teacher, keys, queue, TAU) if alpha else None
    expected = literal_contrast(query, teacher, keys, queue, same, alpha)
    torch.testing.assert_close(contrast(logits, soft, same, alpha), expected, rtol=0, atol=1e-9)


def test_without_distillation_it_is_info_nce(sides):
    query, _, keys, queue, _ = sides
    diagonal = torch.eye(B, B + K, dtype=torch.bool)
    ours = contrast(contrast_logits(query, keys, queue, TAU), None, diagonal, 0.0).mean()
    theirs = info_nce(query, keys, queue, temperature=TAU, in_batch=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


def test_a_student_that_equals_its_teacher_learns_nothing_at_alpha_1(sides):
    query, _, keys, queue, same = sides
    logits = contrast_logits(query, keys, queue, TAU).requires_grad_()
    contrast(logits, logits.detach(), same, 1.0).sum().backward()
    assert logits.grad.abs().max() < 1e-12


def test_gradient_reaches_the_query_and_the_temperature_alone(sides):
    query, teacher, keys, queue, same = (part.clone() for part in sides)
    for part in (query, teacher, keys, queue):
        part.requires_grad_()
    tau = torch.tensor(TAU, dtype=torch.float64, requires_grad=True)
    soft = contrast_logits(teacher, keys, queue, tau)
    logits = contrast_logits(query, keys.detach(), queue.detach(), tau)
    contrast(logits, soft, same, 0.4).mean().backward()
    assert query.grad is not None
    assert teacher.grad is keys.grad is queue.grad is None

    # of τ: as if the targets were constants
    fixed = tau.detach().clone().requires_grad_()
    logits = contrast_logits(query.detach(), keys.detach(), queue.detach(), fixed)
    contrast(logits, soft.detach(), same, 0.4).mean().backward()
    torch.testing.assert_close(tau.grad, fixed.grad, rtol=0, atol=1e-12)


def test_the_loss_is_at_least_the_entropy_of_its_targets(sides):
    query, teacher, keys, queue, same = sides
    soft = contrast_logits(teacher, keys, queue, TAU)
    y = same.double() / same.sum(1, keepdim=True)
    q = 0.4 * soft.softmax(1) + 0.6 * y
    torch.testing.assert_close(q.sum(1), torch.ones(B, dtype=torch.float64))
    entropy = -torch.special.xlogy(q, q).sum(1)
    assert (contrast(contrast_logits(query, keys, queue, TAU), soft, same, 0.4) >= entropy - 1e-9).all()
    assert (contrast(q.log(), soft, same, 0.4) - entropy).abs().max() < 1e-9


def test_random_unit_vectors_start_at_the_closed_form():
    """ln(B + K) + 1/(2 d τ²), with K and d of the paper."""
    generator = torch.Generator().manual_seed(0)
    query, keys, queue = (normalize(torch.randn(n, 256, generator=generator), dim=1) for n in (64, 64, 65_536))
    loss = contrast(contrast_logits(query, keys, queue, 0.07), None, torch.eye(64, 64 + 65_536, dtype=torch.bool), 0.0)
    assert loss.mean() == pytest.approx(math.log(64 + 65_536) + 1 / (2 * 256 * 0.07**2), abs=0.3)


def test_matching_is_the_mean_over_pairs_that_count():
    logits = torch.randn(3 * B, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    valid = torch.ones(3 * B, dtype=torch.bool)
    valid[B + 2] = False
    expected = [
        -(math.log(math.exp(row[label]) / (math.exp(row[0]) + math.exp(row[1]))))
        for place, row in enumerate(logits.tolist())
        for label in [int(place < B)]
        if valid[place]
    ]
    assert float(matching(logits, valid)) == pytest.approx(sum(expected) / len(expected), abs=1e-9)


def test_matching_that_ignores_the_image_is_stuck_at_its_closed_form():
    """H(1/3) = 0.6365: what a constant prediction reaches."""
    constant = torch.tensor([[2 / 3, 1 / 3]], dtype=torch.float64).log().expand(3 * B, 2)
    assert float(matching(constant, torch.ones(3 * B, dtype=torch.bool))) == pytest.approx(0.6365, abs=1e-4)


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_masked_words_are_distilled_over_the_vocabulary(alpha):
    M, V = 4, 7
    generator = torch.Generator().manual_seed(2)
    logits, taught = (torch.randn(M, V, generator=generator, dtype=torch.float64) for _ in range(2))
    words = torch.tensor([0, 6, 3, 3])
    expected = []
    for m in range(M):
        z = [math.exp(x) for x in logits[m].tolist()]
        t = [math.exp(x) for x in taught[m].tolist()]
        log_p = [math.log(x / sum(z)) for x in z]
        soft = -sum(p / sum(t) * log_p[v] for v, p in enumerate(t))
        expected.append((1 - alpha) * -log_p[int(words[m])] + alpha * soft)
    found = masked_words(logits, words, taught if alpha else None, alpha)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_half_precision_logits_give_losses_in_single_precision():
    half = torch.randn(3 * B, 2).bfloat16()
    assert matching(half, torch.ones(3 * B, dtype=torch.bool)).dtype == torch.float32
    assert masked_words(half, torch.zeros(3 * B, dtype=torch.long), half, 0.4).dtype == torch.float32


class TestHardNegatives:
    SAME = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]], dtype=torch.bool)
    LOGITS = torch.tensor([[3.0, 0.5, -0.5, 9.0], [1.0, 5.0, 0.0, -1.0], [0.0, 0.0, 4.0, 2.0], [8.0, 1.0, 0.0, 7.0]])

    def drawn(self, strength, count=20_000):
        """(count, 4) places; a row is drawn by itself, so that many batches are one."""
        noise = torch.rand(4 * count, 4, generator=torch.Generator().manual_seed(3))
        places, _ = hard_negatives(self.LOGITS.repeat(count, 1), self.SAME.repeat(count, 1), noise, strength)
        return places.view(count, 4)

    @pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
    def test_frequencies_follow_the_softmax(self, strength):
        """Chi-square with 1 to 2 degrees of freedom, below its 99.99 % quantile."""
        expected = (strength * self.LOGITS).masked_fill(self.SAME, -torch.inf).softmax(1)
        places = self.drawn(strength)
        for row in range(4):
            counts = torch.bincount(places[:, row], minlength=4).double()
            possible = expected[row] > 0
            assert counts[~possible].sum() == 0
            wanted = expected[row, possible].double() * len(places)
            assert float(((counts[possible] - wanted) ** 2 / wanted).sum()) < 18.4

    def test_strength_0_is_uniform(self):
        counts = torch.bincount(self.drawn(0.0)[:, 1], minlength=4) / 20_000
        torch.testing.assert_close(counts, torch.tensor([1 / 3, 0.0, 1 / 3, 1 / 3]), atol=0.02, rtol=0)

    def test_no_crash_at_the_lowest_temperature(self):
        """Similarities 0.9 against 0.1 at τ = 0.001: a softmax whose diagonal is then zeroed has no mass left."""
        logits = torch.full((4, 4), 0.1).fill_diagonal_(0.9) / 0.001
        logits[0, 2] += 200
        same = torch.eye(4, dtype=torch.bool)
        assert (logits.softmax(1).masked_fill(same, 0).sum(1) == 0).all()
        places, found = hard_negatives(logits, same, torch.rand(4, 4))
        assert found.all()
        assert places[0] == 2
        assert (places != torch.arange(4)).all()

    def test_a_row_without_negatives_says_so(self):
        same = self.SAME.clone()
        same[1] = True
        _, found = hard_negatives(self.LOGITS, same, torch.rand(4, 4))
        assert found.tolist() == [True, False, True, True]

    def test_noise_at_its_ends_stays_finite(self):
        for u in (0.0, 1 - 2**-24):
            places, _ = hard_negatives(self.LOGITS, self.SAME, torch.full((4, 4), u))
            assert not self.SAME.gather(1, places[:, None]).any()
