"""The hyper-pixel contrast is its definition: a literal double loop, closed forms and gradients, invariances."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from mc_core.errors import DataError
from mc_remote_sensing.methods.hpcl_net.loss import Anchors, Keys, hyper_pixel_contrast, hyper_pixel_terms


def unit_rows(count, dim, generator):
    return normalize(torch.randn(count, dim, generator=generator, dtype=torch.float64), dim=1)


def problem(seed=0, anchors=(5, 7), keys=(9, 4), dim=6):
    """Anchors and keys of both classes in float64, some of them masked."""
    generator = torch.Generator().manual_seed(seed)

    def some(count):
        return torch.rand(count, generator=generator) < 0.7

    def all_or(count):
        mask = some(count)
        mask[0] = True
        return mask

    made_anchors = [
        Anchors(unit_rows(n, dim, generator).requires_grad_(), unit_rows(n, dim, generator), some(n), all_or(n))
        for n in anchors
    ]
    return made_anchors, [Keys(unit_rows(n, dim, generator), all_or(n)) for n in keys]


def by_definition(anchors, keys, temperature, positives="class"):
    """Section by section as the equations say it, one pair at a time; also ∂L/∂q."""
    losses, gradients = [], []
    for of_class, these in enumerate(anchors):
        gradient = torch.zeros_like(these.query)
        for a in range(len(these.query)):
            if not these.valid[a]:
                continue
            query = these.query[a].detach()
            positive = [k for k, valid in zip(keys[of_class].features, keys[of_class].valid, strict=True) if valid]
            if these.own_counts[a]:
                positive.append(these.own[a])
            if positives == "self":
                positive = [these.own[a]]
            negative = [
                k for k, valid in zip(keys[1 - of_class].features, keys[1 - of_class].valid, strict=True) if valid
            ]
            if not positive or not negative:
                continue
            total = 0.0
            for p in positive:
                top = math.exp(float(query @ p) / temperature)
                bottom = [math.exp(float(query @ n) / temperature) for n in negative]
                total += -math.log(top / (top + sum(bottom)))
                share = sum(bottom) / (top + sum(bottom))  # σ(S − s_p)
                gradient[a] -= share / len(positive) * p / temperature
                for n, weight in zip(negative, bottom, strict=True):
                    gradient[a] += share / len(positive) * weight / sum(bottom) * n / temperature
            losses.append(total / len(positive))
        gradients.append(gradient)
    count = max(len(losses), 1)
    return sum(losses) / count, [gradient / count for gradient in gradients]


@pytest.mark.parametrize("positives", ["class", "self"])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_it_is_the_literal_double_loop_with_its_closed_form_gradient(positives, temperature):
    for seed in range(4):
        anchors, keys = problem(seed)
        loss = hyper_pixel_contrast(anchors, keys, temperature=temperature, positives=positives)
        expected, gradients = by_definition(anchors, keys, temperature, positives)
        assert abs(loss.item() - expected) < 1e-9
        loss.backward()
        for these, gradient in zip(anchors, gradients, strict=True):
            torch.testing.assert_close(these.query.grad, gradient, rtol=0, atol=1e-9)


def test_the_gradient_at_each_similarity_is_that_of_the_equations():
    """−σ(S − s_p)/|P| at positives, softmax(s_n) · mean σ(S − s_p) at negatives: with keys along the axes."""
    positive, negative = torch.tensor([0.3, -0.1, 0.6]), torch.tensor([0.2, 0.5])
    axes = torch.eye(5, dtype=torch.float64)
    similarity = torch.cat([positive, negative]).double()[None].requires_grad_()
    yes = torch.ones(1, dtype=torch.bool)
    anchors = Anchors(similarity, torch.zeros_like(similarity).detach(), ~yes, yes)
    terms, _ = hyper_pixel_terms(anchors, Keys(axes[:3], yes.expand(3)), Keys(axes[3:], yes.expand(2)), temperature=1.0)
    terms.sum().backward()
    s_p, s_n = positive.double(), negative.double()
    pull = torch.sigmoid(s_n.logsumexp(0) - s_p)
    expected = torch.cat([-pull / 3, s_n.softmax(0) * pull.mean()])
    torch.testing.assert_close(similarity.grad[0], expected, rtol=0, atol=1e-12)


def test_keys_receive_no_gradient_even_where_they_could():
    anchors, keys = problem()
    open_keys = [Keys(k.features.clone().requires_grad_(), k.valid) for k in keys]
    own = [Anchors(a.query, a.own.clone().requires_grad_(), a.own_counts, a.valid) for a in anchors]
    hyper_pixel_contrast(own, open_keys, temperature=0.1).backward()
    assert all(k.features.grad is None for k in open_keys)
    assert all(a.own.grad is None for a in own)


def test_one_class_of_keys_alone_gives_exactly_nothing_and_keeps_the_graph():
    for missing in (0, 1):
        anchors, keys = problem()
        keys[missing] = Keys(keys[missing].features, torch.zeros_like(keys[missing].valid))
        anchors[missing] = Anchors(
            *[getattr(anchors[missing], n) for n in ("query", "own", "own_counts")],
            torch.zeros_like(anchors[missing].valid),
        )
        loss = hyper_pixel_contrast(anchors, keys, temperature=0.1)
        assert loss.item() == 0.0
        loss.backward()
        assert all(torch.equal(a.query.grad, torch.zeros_like(a.query)) for a in anchors)


def test_no_row_of_negatives_at_all_is_as_good_as_masked_ones():
    anchors, keys = problem()
    empty = Keys(keys[0].features[:0], keys[0].valid[:0])
    terms, counts = hyper_pixel_terms(anchors[1], keys[1], empty, temperature=0.1)
    assert not counts.any()
    terms.sum().backward()
    assert torch.equal(anchors[1].query.grad, torch.zeros_like(anchors[1].query))


@pytest.mark.parametrize("negatives", [1, 2, 50])
def test_equal_similarities_give_the_log_of_one_plus_the_negatives(negatives):
    row = torch.full((1, 4), 0.5, dtype=torch.float64)
    yes = torch.ones(1, dtype=torch.bool)
    keys = [Keys(row.expand(negatives, 4), yes.expand(negatives)), Keys(row.expand(3, 4), yes.expand(3))]
    anchor = Anchors(row, row, yes, yes)
    terms, _ = hyper_pixel_terms(anchor, keys[1], keys[0], temperature=0.1)
    assert terms.item() == pytest.approx(math.log(1 + negatives), abs=1e-12)


def test_it_vanishes_as_positives_come_near_and_negatives_go_away():
    row = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    yes = torch.ones(1, dtype=torch.bool)
    terms, _ = hyper_pixel_terms(
        Anchors(row, row, yes, yes), Keys(row, yes), Keys(-row.expand(100, 2), yes.expand(100)), temperature=0.02
    )
    assert 0 <= terms.item() < 1e-40


def test_extreme_similarities_stay_finite_in_float32():
    row = torch.tensor([[1.0, 0.0]]).requires_grad_()
    yes = torch.ones(1, dtype=torch.bool)
    terms, _ = hyper_pixel_terms(
        Anchors(row, -row.detach(), yes, yes), Keys(-row.detach(), yes), Keys(row.detach(), yes), temperature=1e-3
    )
    assert terms.item() == pytest.approx(2000, rel=1e-6)  # e^2000 itself would be infinite
    terms.sum().backward()
    assert torch.isfinite(row.grad).all()


def test_neither_the_order_of_keys_nor_masked_rows_matter():
    anchors, keys = problem()
    before = hyper_pixel_contrast(anchors, keys, temperature=0.1)
    generator = torch.Generator().manual_seed(9)
    changed = []
    for k in keys:
        features = torch.cat([k.features, 100 * unit_rows(6, 6, generator)])
        valid = torch.cat([k.valid, torch.zeros(6, dtype=torch.bool)])
        order = torch.randperm(len(features), generator=generator)
        changed.append(Keys(features[order], valid[order]))
    after = hyper_pixel_contrast(anchors, changed, temperature=0.1)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)


def test_the_own_key_counts_once_whether_it_is_among_the_keys_or_not():
    anchors, keys = problem()
    first = anchors[0]
    alone = [Anchors(first.query[:1], first.own[:1], torch.tensor([True]), torch.tensor([True])), anchors[1]]
    among = [Anchors(first.query[:1], first.own[:1], torch.tensor([False]), torch.tensor([True])), anchors[1]]
    more = Keys(torch.cat([keys[0].features, first.own[:1]]), torch.cat([keys[0].valid, torch.tensor([True])]))
    one, _ = hyper_pixel_terms(alone[0], keys[0], keys[1], temperature=0.1)
    two, _ = hyper_pixel_terms(among[0], more, keys[1], temperature=0.1)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_both_classes_count_alike():
    """Background is as much a negative of the target as the reverse: exchanging the classes changes nothing."""
    anchors, keys = problem()
    torch.testing.assert_close(
        hyper_pixel_contrast(anchors, keys, temperature=0.1),
        hyper_pixel_contrast(anchors[::-1], keys[::-1], temperature=0.1),
        rtol=0,
        atol=1e-12,
    )
    for of_class in (0, 1):
        pushed = [Keys(k.features.clone(), k.valid) for k in keys]
        pushed[of_class].features.neg_()
        assert not torch.isclose(
            hyper_pixel_contrast(anchors, pushed, temperature=0.1), hyper_pixel_contrast(anchors, keys, temperature=0.1)
        )


def test_the_similarities_are_float32_under_autocast():
    generator = torch.Generator().manual_seed(3)
    rows = [unit_rows(40, 64, generator).float() for _ in range(4)]
    yes = torch.ones(40, dtype=torch.bool)
    anchors = [Anchors(rows[0], rows[1], yes, yes), Anchors(rows[1], rows[0], yes, yes)]
    keys = [Keys(rows[2], yes), Keys(rows[3], yes)]
    plain = hyper_pixel_contrast(anchors, keys, temperature=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hyper_pixel_contrast(anchors, keys, temperature=0.1), plain)


def test_widths_that_differ_are_refused():
    anchors, keys = problem()
    keys[0] = Keys(keys[0].features[:, :4], keys[0].valid)
    with pytest.raises(DataError, match="widths 4, 6"):
        hyper_pixel_contrast(anchors, keys, temperature=0.1)
