"""The loss of ESimCSE: a naive loop by its equation, closed forms, and what may and may not change it."""

import math

import pytest
import torch
from torch.nn.functional import cosine_similarity

from mc_text_code.methods.esimcse.loss import esimcse_loss, unit

TAU = 0.05


def rows(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(anchor, positive, queue=None, temperature=TAU, ids=None, queue_ids=None):
    """Equation 7, a row and a candidate at a time."""
    losses = []
    for i in range(len(anchor)):
        terms = []
        for j in range(len(positive)):
            if j == i or ids is None or ids[j] != ids[i]:
                terms.append(cosine_similarity(anchor[i], positive[j], dim=0) / temperature)
        for m in range(0 if queue is None else len(queue)):
            if ids is None or queue_ids is None or queue_ids[m] != ids[i]:
                terms.append(cosine_similarity(anchor[i], queue[m], dim=0) / temperature)
        own = cosine_similarity(anchor[i], positive[i], dim=0) / temperature
        losses.append(torch.logsumexp(torch.stack(terms), 0) - own)
    return torch.stack(losses)


@pytest.mark.parametrize("keys", [0, 1, 7])
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_it_is_equation_7(keys, temperature):
    anchor, positive, queue = rows(5, 8).requires_grad_(), rows(5, 8, seed=1).requires_grad_(), rows(keys, 8, seed=2)
    expected = naive(anchor, positive, queue, temperature)
    found = esimcse_loss(unit(anchor), unit(positive), unit(queue), temperature=temperature, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    left = torch.autograd.grad(expected.mean(), (anchor, positive))
    right = torch.autograd.grad(
        esimcse_loss(unit(anchor), unit(positive), unit(queue), temperature=temperature), (anchor, positive)
    )
    torch.testing.assert_close(right, left, rtol=1e-9, atol=1e-11)


def test_without_a_queue_it_is_cross_entropy_over_the_batch():
    anchor, positive = unit(rows(6, 4)), unit(rows(6, 4, seed=1))
    expected = torch.nn.functional.cross_entropy(anchor @ positive.T / TAU, torch.arange(6))
    for queue in (None, rows(0, 4)):
        torch.testing.assert_close(esimcse_loss(anchor, positive, queue), expected)


@pytest.mark.parametrize(("batch", "keys"), [(4, 0), (4, 3), (64, 160)])
def test_collapsed_rows_cost_the_logarithm_of_the_candidates(batch, keys):
    same = unit(torch.ones(batch, 8, dtype=torch.float64))
    loss = esimcse_loss(same, same, unit(torch.ones(keys, 8, dtype=torch.float64)))
    assert float(loss) == pytest.approx(math.log(batch + keys), abs=1e-9)


def test_orthonormal_rows_cost_almost_nothing():
    basis = torch.eye(16, dtype=torch.float64)
    assert float(esimcse_loss(basis, basis)) == pytest.approx(math.log1p(15 * math.exp(-1 / TAU)), rel=1e-6)
    assert float(esimcse_loss(basis, basis, temperature=1.0)) == pytest.approx(math.log1p(15 * math.exp(-1)), rel=1e-12)


def test_a_key_in_the_queue_never_lowers_a_row():
    anchor, positive, queue = unit(rows(6, 8)), unit(rows(6, 8, seed=1)), unit(rows(9, 8, seed=2))
    before = esimcse_loss(anchor, positive, reduction="none")
    for count in range(1, 10):
        after = esimcse_loss(anchor, positive, queue[:count], reduction="none")
        assert bool((after > before).all())
        before = after


def test_no_gradient_reaches_the_queue_and_every_positive_gets_some():
    anchor, positive, queue = (unit(rows(4, 8, seed=s)).requires_grad_() for s in range(3))
    esimcse_loss(anchor, positive, queue).backward()
    assert queue.grad is None
    assert bool((anchor.grad.abs().sum(1) > 0).all())
    one = torch.autograd.grad(esimcse_loss(anchor, positive, reduction="none")[0], positive)[0]
    assert bool((one.abs().sum(1) > 0).all()), "a row's loss pushes every positive"


def test_it_is_not_symmetric():
    anchor, positive = unit(rows(5, 8)), unit(rows(5, 8, seed=1))
    assert abs(float(esimcse_loss(anchor, positive) - esimcse_loss(positive, anchor))) > 1e-3


def test_the_length_of_rows_and_their_order_do_not_matter():
    anchor, positive, queue = rows(5, 8), rows(5, 8, seed=1), rows(7, 8, seed=2)
    order = torch.tensor([3, 1, 4, 0, 2])
    plain = esimcse_loss(unit(anchor), unit(positive), unit(queue))
    scaled = esimcse_loss(unit(anchor * 7), unit(positive * 0.1), unit(queue.flip(0)))
    torch.testing.assert_close(plain, scaled)
    torch.testing.assert_close(plain, esimcse_loss(unit(anchor[order]), unit(positive[order]), unit(queue)))


def test_equal_sentences_are_no_negatives():
    anchor, positive, queue = rows(4, 8), rows(4, 8, seed=1), rows(3, 8, seed=2)
    ids, queue_ids = torch.tensor([5, 6, 5, 7]), torch.tensor([6, 9, 7])
    found = esimcse_loss(unit(anchor), unit(positive), unit(queue), ids=ids, queue_ids=queue_ids, reduction="none")
    torch.testing.assert_close(found, naive(anchor, positive, queue, ids=ids, queue_ids=queue_ids))
    assert not torch.allclose(found, naive(anchor, positive, queue))


def test_rows_of_a_process_among_those_of_all():
    anchor, positive, ids = unit(rows(6, 8)), unit(rows(6, 8, seed=1)), torch.tensor([1, 2, 3, 1, 4, 5])
    whole = esimcse_loss(anchor, positive, ids=ids, reduction="none")
    parts = [
        esimcse_loss(anchor[at : at + 3], positive, ids=ids[at : at + 3], positive_ids=ids, offset=at, reduction="none")
        for at in (0, 3)
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_half_precision_rows_are_normalised_in_full():
    half = rows(3, 8, dtype=torch.float32).to(torch.bfloat16)
    assert unit(half).dtype == torch.float32
    torch.testing.assert_close(unit(half).norm(dim=1), torch.ones(3))
