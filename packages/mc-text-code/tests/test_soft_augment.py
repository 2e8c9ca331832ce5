"""The soft augmentations: how many tokens, which ones, what they become, and that draws depend on nothing else."""

import numpy as np
import pytest
import torch

from mc_core.random import BatchRandom
from mc_text_code.soft_augment import draw_kinds, hide_names, soft_augment
from mc_text_code.source.token_classes import CLASS_IDS, TOKEN_CLASSES

DM, DR, DRST, DMST = range(4)
MASK = 900
REPLACEMENTS = torch.tensor([MASK, *range(901, 901 + len(TOKEN_CLASSES))])
P = 0.15


def random_of(count, epoch=0):
    return BatchRandom(7, epoch, torch.arange(count))


def made(count=400, length=50, seed=0):
    """Ids above 0; types of three classes with zeros at both ends, and padding behind."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 800, (count, length), generator=generator)
    types = torch.randint(1, 4, (count, length), generator=generator)
    lengths = torch.randint(10, length + 1, (count, 1), generator=generator)
    place = torch.arange(length)
    types = types.masked_fill((place < 3) | (place >= lengths - 1), 0)  # prefix, final </s>, padding
    return ids.masked_fill(place >= lengths, 1), types.to(torch.uint8)


def augment(ids, types, kind, epoch=0, rate=P):
    kinds = torch.full((len(ids),), kind)
    return soft_augment(ids, types, kinds, random_of(len(ids), epoch), REPLACEMENTS, rate=rate)


@pytest.mark.parametrize("kind", [DM, DR])
def test_rate_is_within_three_sigma(kind):
    ids, types = made()
    changed = (augment(ids, types, kind) != ids).sum(1)
    n = (types > 0).sum(1).double()
    # at least one is changed: one in place of none, which happens with probability (1 − p)ⁿ
    expected = (n * P + (1 - P) ** n).sum()
    sigma = (n * P * (1 - P)).sum().sqrt()
    assert abs(float(changed.sum() - expected)) < 3 * float(sigma)


@pytest.mark.parametrize("kind", [DRST, DMST])
def test_rate_among_the_tokens_of_one_type(kind):
    ids, types = made()
    after = augment(ids, types, kind)
    hit = after != ids
    chosen = torch.where(hit, types, 0).amax(1)
    n = (types == chosen[:, None]).sum(1).double()
    expected, sigma = (n * P + (1 - P) ** n).sum(), (n * P * (1 - P)).sum().sqrt()
    assert abs(float(hit.sum() - expected)) < 3 * float(sigma)


@pytest.mark.parametrize("kind", [DM, DR, DRST, DMST])
def test_never_the_identity_and_never_outside(kind):
    ids, types = made()
    for epoch in range(3):
        hit = augment(ids, types, kind, epoch) != ids
        assert hit.any(1).all()
        assert not hit[types == 0].any()


def test_what_tokens_become():
    ids, types = made()
    by_type = REPLACEMENTS[types.long()]
    for kind, becomes in ((DM, torch.full_like(ids, MASK)), (DR, by_type), (DRST, by_type), (DMST, None)):
        after = augment(ids, types, kind)
        hit = after != ids
        wanted = torch.full_like(ids, MASK) if becomes is None else becomes
        assert torch.equal(after[hit], wanted[hit])
    assert TOKEN_CLASSES[int(REPLACEMENTS[CLASS_IDS["string"]]) - 901] == "string"


@pytest.mark.parametrize("kind", [DRST, DMST])
def test_typed_kinds_leave_other_types_alone_and_draw_from_all(kind):
    ids, types = made()
    hit = augment(ids, types, kind) != ids
    drawn = [set(row[mask].tolist()) for row, mask in zip(types, hit, strict=True)]
    assert all(len(kinds) == 1 for kinds in drawn)
    shares = np.bincount([kinds.pop() for kinds in drawn], minlength=4)[1:] / len(drawn)
    assert (np.abs(shares - 1 / 3) < 3 * np.sqrt(2 / 9 / len(drawn))).all()


@pytest.mark.parametrize("kind", [DRST, DMST])
def test_a_type_of_a_single_token_is_not_drawn(kind):
    types = torch.tensor([[0, 1, 2, 2, 3, 0]], dtype=torch.uint8).expand(64, 6)
    ids = torch.arange(10, 16).expand(64, 6)
    hit = augment(ids, types, kind) != ids
    assert set(types[hit].tolist()) == {2}
    alone = torch.tensor([[0, 1, 2, 3, 0]], dtype=torch.uint8)  # no type has two: all are eligible
    assert (augment(ids[:1, :5], alone, kind) != ids[:1, :5]).any()


def test_nothing_eligible_is_left_as_it_is():
    ids = torch.arange(10, 18).reshape(2, 4)
    for kind in (DM, DR, DRST, DMST):
        assert torch.equal(augment(ids, torch.zeros_like(ids), kind), ids)


def test_a_sample_is_the_same_alone_and_in_a_wider_batch():
    ids, types = made(20)
    kinds = draw_kinds(("dm", "dr", "drst", "dmst"), random_of(20))
    together = soft_augment(ids, types, kinds, random_of(20), REPLACEMENTS)
    row = torch.tensor([13])
    alone = soft_augment(ids[row, :40], types[row, :40], kinds[row], BatchRandom(7, 0, row), REPLACEMENTS)
    assert torch.equal(
        torch.where(types[row, :40] > 0, alone, 0), torch.where(types[row, :40] > 0, together[row, :40], 0)
    )


def test_other_epochs_and_streams_differ():
    ids, types = made(50)
    first = augment(ids, types, DM)
    assert not torch.equal(first, augment(ids, types, DM, epoch=1))
    kinds = torch.zeros(50, dtype=torch.int64)
    assert not torch.equal(first, soft_augment(ids, types, kinds, random_of(50), REPLACEMENTS, stream=1))
    assert torch.equal(first, augment(ids, types, DM))


def test_kinds_are_drawn_alike_for_a_step_or_for_each_sample():
    every = draw_kinds(("dm", "dr", "drst", "dmst"), random_of(4000))
    assert (np.abs(np.bincount(every) / 4000 - 0.25) < 0.03).all()
    steps = [draw_kinds(("dr", "dmst"), random_of(5), step=step) for step in range(40)]
    assert all(len(set(kinds.tolist())) == 1 for kinds in steps)
    assert {int(kinds[0]) for kinds in steps} == {DR, DMST}


def test_names_are_hidden_behind_the_type_of_identifiers():
    ids = torch.arange(10, 22).reshape(3, 4)
    own = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]]).bool()
    hidden = hide_names(ids, own, random_of(3), REPLACEMENTS, 1.0)
    assert torch.equal(hidden != ids, own)
    assert set(hidden[own].tolist()) == {int(REPLACEMENTS[CLASS_IDS["identifier"]])}
    assert torch.equal(hide_names(ids, own, random_of(3), REPLACEMENTS, 0.0), ids)
    many = torch.ones(2000, 1, dtype=torch.bool)
    share = (hide_names(many.long(), many, random_of(2000), REPLACEMENTS, 0.4) != 1).float().mean()
    assert abs(float(share) - 0.4) < 0.04
