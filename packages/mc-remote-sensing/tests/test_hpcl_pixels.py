"""Cells say what the labels under them say, exactly; drawing takes what may be drawn, hard ones first, and no more."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mc_core.errors import ConfigError, DataError
from mc_remote_sensing.hyper_pixels import (
    BACKGROUND,
    EDGE,
    INTERIOR,
    candidates,
    draw_anchors,
    draw_keys,
    hyper_pixels,
)


def by_definition(labels, size):
    """One block at a time, in whole numbers."""
    tiles, height, width = labels.shape
    rows, columns = -(-height // size), -(-width // size)
    names = ("fraction", "kind", "target", "valid", "ambiguous", "edge")
    made = {name: np.zeros((tiles, rows, columns)) for name in names}
    for t, r, c in np.ndindex(tiles, rows, columns):
        block = labels[t, r * size : (r + 1) * size, c * size : (c + 1) * size]
        known = int((block != 255).sum())
        share = int((block == 1).sum()) / max(known, 1)
        made["fraction"][t, r, c] = share
        made["kind"][t, r, c] = BACKGROUND if share <= 0.05 else INTERIOR if share >= 0.95 else EDGE
        made["target"][t, r, c] = share >= 0.5
        made["valid"][t, r, c] = known >= size * size / 2
        made["ambiguous"][t, r, c] = 0.35 < share < 0.65
        made["edge"][t, r, c] = 0.05 < share < 0.95
    band = np.zeros((tiles, rows, columns))
    for t, r, c in np.ndindex(tiles, rows, columns):
        band[t, r, c] = made["edge"][t, max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].any()
    return {**made, "band": band}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 20), st.integers(1, 20), st.integers(0, 1000))
def test_cells_are_what_counting_pixels_says(size, height, width, seed):
    rng = np.random.default_rng(seed)
    coarse = rng.choice([0, 1, 255], (2, height // 4 + 1, width // 4 + 1), p=[0.5, 0.3, 0.2])
    labels = coarse.repeat(4, 1).repeat(4, 2)[:, :height, :width].astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 255
    expected = by_definition(labels, size)
    cells = hyper_pixels(torch.from_numpy(labels), size)
    np.testing.assert_allclose(cells.fraction.numpy(), expected["fraction"], rtol=0, atol=1e-6)
    for name in ("kind", "target", "valid", "ambiguous", "band"):
        np.testing.assert_array_equal(getattr(cells, name).numpy(), expected[name], err_msg=name)


@pytest.mark.parametrize("size", [3, 7, 16])
def test_fractions_are_exact_at_nothing_and_all_also_under_autocast(size):
    labels = torch.zeros(1, 2 * size, size, dtype=torch.uint8)
    labels[:, size:] = 1
    labels[:, ::2, ::2] = 255
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cells = hyper_pixels(labels, size)
    assert cells.fraction.flatten().tolist() == [0.0, 1.0]
    assert cells.fraction.dtype == torch.float32


def test_a_drawn_mask_has_its_band_on_both_sides_of_the_boundary():
    labels = torch.zeros(1, 20, 20, dtype=torch.uint8)
    labels[:, :, 11:] = 1  # the boundary runs through the third column of cells
    labels[:, 16:, :3] = 255
    cells = hyper_pixels(labels, 4)
    assert cells.kind[0, 0].tolist() == [BACKGROUND, BACKGROUND, EDGE, INTERIOR, INTERIOR]
    assert cells.band[0, 2].tolist() == [False, True, True, True, False]
    assert cells.valid[0, 4].tolist() == [False, True, True, True, True]
    assert cells.target[0, 0].tolist() == [False, False, False, True, True]  # a quarter of the third column is target


def scene(seed=0, tiles=4, side=40):
    """Tiles with a rectangle, one of them without, one all unknown."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(tiles, side, side, dtype=torch.uint8)
    for t in range(2, tiles):
        top, left = torch.randint(2, side // 2, (2,), generator=generator).tolist()
        labels[t, top : top + side // 3, left : left + side // 3] = 1
    labels[1] = 255
    cells = hyper_pixels(labels, 4)
    u = torch.rand(tiles, cells.fraction[0].numel(), generator=generator)
    return cells, u


@pytest.mark.parametrize("uniform", [False, True])
def test_candidates_are_labelled_clear_and_of_their_class(uniform):
    cells, _ = scene()
    may = candidates(cells, uniform=uniform)
    target = cells.target.flatten(1)
    assert not may[:2].any()  # nothing at boundaries in a tile of one class, and no boundary in what is unknown
    assert may[2:].any(2).all(), "both classes of a mixed tile can be drawn"
    assert not (may[:, 0] & target).any()
    assert not (may[:, 1] & ~target).any()
    either = may.any(1)
    assert not (either & cells.ambiguous.flatten(1)).any()
    assert not (either & ~cells.valid.flatten(1)).any()
    assert bool((either & ~cells.band.flatten(1)).any()) is uniform


def test_keys_are_random_candidates_and_some_cells_of_empty_tiles():
    cells, u = scene()
    may = candidates(cells)
    keys = draw_keys(may, cells, u, per_class=5, background_cells=3)
    counts = keys.valid.sum(2)
    assert counts[0].tolist() == [3, 0], "a tile that is all background gives look-alike terrain, and no target"
    assert counts[1].tolist() == [0, 0], "nothing from what is unknown"
    for tile in (2, 3):
        for of_class in (0, 1):
            drawn = keys.index[tile, of_class][keys.valid[tile, of_class]]
            possible = may[tile, of_class].nonzero().squeeze(1)
            assert len(drawn) == min(5, len(possible))
            best = possible[u[tile, possible].argsort(descending=True)][: len(drawn)]
            assert set(drawn.tolist()) == set(best.tolist()), "by lot"
    assert keys.index[0, 0][keys.valid[0, 0]].unique().numel() == 3


def test_more_background_cells_than_keys_of_a_class_can_be_asked_for():
    cells, u = scene()
    keys = draw_keys(candidates(cells), cells, u, per_class=2, background_cells=7)
    assert keys.valid.sum(2)[0].tolist() == [7, 0]
    assert keys.valid.sum(2)[2].max() <= 2
    assert draw_keys(candidates(cells), cells, u, per_class=2, background_cells=0).valid[0].sum() == 0


def test_half_of_the_anchors_are_hard_where_there_are_enough():
    generator = torch.Generator().manual_seed(1)
    may = torch.rand(3, 2, 200, generator=generator) < 0.5
    may[:, 1] &= ~may[:, 0]
    wrong = torch.rand(3, 200, generator=generator) < 0.2
    wrong[2] = False
    u = torch.rand(3, 200, generator=generator)
    drawn = draw_anchors(may, wrong, u, per_class=10, most=1000)
    assert drawn.valid.all()
    for tile in range(3):
        for of_class in (0, 1):
            index = drawn.index[tile, of_class]
            assert index.unique().numel() == 10
            assert may[tile, of_class, index].all()
            possible = may[tile, of_class]
            hard = (possible & wrong[tile]).nonzero().squeeze(1)
            surely = set(hard[u[tile, hard].argsort(descending=True)][:5].tolist())
            rest = torch.tensor([c for c in possible.nonzero().squeeze(1).tolist() if c not in surely])
            others = rest[u[tile, rest].argsort(descending=True)][: 10 - len(surely)]
            assert set(index.tolist()) == surely | set(others.tolist())


def test_the_other_half_fills_up_where_one_is_short():
    may = torch.zeros(1, 2, 12, dtype=torch.bool)
    may[0, 0, :6] = True
    may[0, 1, 6:8] = True
    u = torch.linspace(0, 0.9, 12)[None]
    every, none = torch.ones(1, 12, dtype=torch.bool), torch.zeros(1, 12, dtype=torch.bool)
    for wrong in (every, none):
        drawn = draw_anchors(may, wrong, u, per_class=4, most=100)
        assert sorted(drawn.index[0, 0].tolist()) == [2, 3, 4, 5]
        assert drawn.valid.sum(2)[0].tolist() == [4, 2]
        assert sorted(drawn.index[0, 1][drawn.valid[0, 1]].tolist()) == [6, 7]


def test_the_number_of_anchors_is_capped_over_all_tiles():
    may = torch.ones(8, 2, 30, dtype=torch.bool)
    u = torch.rand(8, 30, generator=torch.Generator().manual_seed(0))
    drawn = draw_anchors(may, torch.zeros(8, 30, dtype=torch.bool), u, per_class=10, most=37)
    assert drawn.valid.sum() == 37
    assert draw_anchors(may, torch.zeros(8, 30, dtype=torch.bool), u, per_class=10, most=160).valid.sum() == 160
    may[1:] = False  # fewer than the cap
    assert draw_anchors(may, torch.zeros(8, 30, dtype=torch.bool), u, per_class=10, most=37).valid.sum() == 20


def test_drawn_cells_take_their_own_rows_and_are_marked():
    cells, u = scene()
    keys = draw_keys(candidates(cells), cells, u, per_class=5, background_cells=3)
    cell_count = u.shape[1]
    number = torch.arange(4 * cell_count).view(4, cell_count, 1).float()
    taken = keys.take(number)[..., 0]
    expected = keys.index + cell_count * torch.arange(4)[:, None, None]
    assert torch.equal(taken.long(), expected)
    marks = keys.marks(cell_count)
    assert marks.sum() == keys.valid.sum()
    assert torch.equal(marks.nonzero()[:, 1].sort().values, keys.index[keys.valid].sort().values)


def test_a_tile_is_drawn_from_alike_in_any_company():
    cells, u = scene()
    may = candidates(cells)
    wrong = torch.rand(u.shape, generator=torch.Generator().manual_seed(4)) < 0.3
    together = draw_anchors(may, wrong, u, per_class=4, most=1000)
    for tile in range(len(u)):
        alone = draw_anchors(may[tile : tile + 1], wrong[tile : tile + 1], u[tile : tile + 1], per_class=4, most=1000)
        assert torch.equal(alone.index[0][alone.valid[0]], together.index[tile][together.valid[tile]])


def test_bad_labels_and_sizes_are_refused():
    with pytest.raises(DataError, match=r"labels have shape \(4, 4\)"):
        hyper_pixels(torch.zeros(4, 4), 2)
    with pytest.raises(ConfigError, match="0 pixels"):
        hyper_pixels(torch.zeros(1, 4, 4), 0)
