"""The choice of a size: exact on power laws, the cheaper of ties, right as often as its noise allows, and sure when it is."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mc_core.errors import ConfigError, DataError
from mc_core.growth import cost_exponent, growth_scores, select_growth

COSTS = np.array([1.0, 1.3, 1.6, 2.0, 2.6])


def steady(losses, batches: int = 8) -> np.ndarray:
    return np.repeat(np.asarray(losses, dtype=np.float64)[:, None], batches, axis=1)


@pytest.mark.parametrize("w", [0.05, 0.2, 1.3])
def test_an_exact_power_law_gives_its_exponent_and_ties(w):
    losses = 3.7 * COSTS**-w
    assert float(cost_exponent(losses, 1e9 * COSTS)) == pytest.approx(w, abs=1e-12)
    scores = growth_scores(losses, 1e9 * COSTS)
    assert np.ptp(scores) < 1e-12
    found = select_growth(steady(losses), 1e9 * COSTS)
    assert (found.best, found.chosen) == (0, 0)


def test_ties_go_to_the_cheaper_in_any_order():
    order = [3, 1, 4, 0, 2]
    found = select_growth(steady(3.7 * COSTS[order] ** -0.3), COSTS[order], current=0)
    assert found.best == 3


def test_the_exponent_is_the_least_squares_slope():
    losses = np.array([3.0, 2.6, 2.7, 2.2, 2.25])
    slope = np.polyfit(np.log(COSTS), np.log(losses), 1)[0]
    assert float(cost_exponent(losses, COSTS)) == pytest.approx(-slope, abs=1e-12)
    np.testing.assert_allclose(growth_scores(losses, COSTS), losses * COSTS**-slope, rtol=1e-12)


@pytest.mark.parametrize("losses", [[2.0] * 5, [2.0, 2.1, 2.2, 2.3, 2.4]])
def test_flat_or_rising_losses_have_exponent_0_and_the_smallest_wins(losses):
    found = select_growth(steady(losses), COSTS)
    assert (found.exponent, found.best, found.chosen) == (0.0, 0, 0)


def test_two_candidates_of_different_cost_always_tie():
    assert select_growth(steady([2.0, 0.1]), [1.0, 1.1]).best == 0


def test_equal_costs_leave_the_loss_to_decide():
    found = select_growth(steady([2.0, 1.5, 1.7]), [5.0, 5.0, 5.0])
    assert (found.exponent, found.chosen) == (0.0, 1)


def test_what_is_below_the_trend_is_found_as_often_as_its_noise_allows():
    rng = np.random.default_rng(0)
    share = {}
    for noise in (0.002, 0.01):
        losses = 3.0 * COSTS**-0.2 * (1 + noise * rng.normal(size=(2000, 5)))
        losses[:, 2] *= 0.98
        share[noise] = float((growth_scores(losses, COSTS).argmin(1) == 2).mean())
    assert share[0.002] == 1.0
    assert share[0.01] == pytest.approx(0.85, abs=0.03)


@pytest.mark.parametrize(("loss", "grows"), [(1.9959, True), (1.9961, False), (1.996, True)])
def test_growth_takes_a_loss_lower_by_the_margin(loss, grows):
    found = select_growth(steady([2.0, loss]), [1.0, 1.0], margin=0.002)
    assert found.best == 1
    assert found.chosen == (1 if grows else 0)
    assert found.name == ("1" if grows else "0")


def test_the_current_one_need_not_come_first():
    found = select_growth(steady([1.999, 2.0]), [1.0, 1.0], current=1)
    assert (found.best, found.chosen) == (0, 1)
    assert select_growth(steady([1.9, 2.0]), [1.0, 1.0], current=1).chosen == 0


def test_confidence_is_paired_batch_by_batch():
    """Batches differ far more than candidates do; their difference is the same on every batch."""
    rng = np.random.default_rng(1)
    batches = 2.0 + 0.5 * rng.normal(size=30) ** 2
    small = 0.004 * rng.normal(size=(3, 30))
    losses = np.array([[0.0], [-0.05], [-0.10]]) + batches + small
    found = select_growth(losses, [1.0, 1.01, 3.0], names=["same", "heads", "blocks"])
    assert found.name == "heads"
    assert found.confidence == 1.0
    low, high = found.interval
    assert low < found.difference < high < 0
    assert high - low < 0.01  # the batches' own spread would give ± 0.2
    expected = losses[1] - losses[0]
    assert found.difference == pytest.approx(expected.mean(), abs=1e-12)
    assert high - low == pytest.approx(2 * 1.96 * expected.std() / math.sqrt(30), rel=0.15)


def test_a_toss_up_is_said_to_be_one():
    rng = np.random.default_rng(2)
    losses = 2.0 + np.array([[0.1], [0.0], [0.0]]) + 0.05 * rng.normal(size=(3, 30))
    found = select_growth(losses, [1.0, 1.0, 1.0])
    assert found.confidence < 0.95
    assert sum(found.shares) == pytest.approx(1.0)
    assert all(share > 0.02 for share in found.shares[1:])


def test_evaluations_of_the_same_batches_are_averaged_not_counted_as_more_batches():
    rng = np.random.default_rng(3)
    losses = 2.0 + 0.1 * rng.normal(size=(3, 5, 12))
    assert select_growth(losses, [1.0, 2.0, 3.0]) == select_growth(losses.mean(1), [1.0, 2.0, 3.0])


def test_the_seed_decides_the_resampling_and_nothing_else():
    rng = np.random.default_rng(4)
    losses = 2.0 + 0.1 * rng.normal(size=(3, 12))
    one, again, other = (select_growth(losses, [1.0, 2.0, 3.0], seed=seed) for seed in (0, 0, 1))
    assert one == again
    assert one.interval != other.interval
    assert (one.chosen, one.scores) == (other.chosen, other.scores)


@pytest.mark.parametrize(("batches", "trials"), [(1, 100), (8, 0)])
def test_without_batches_or_trials_nothing_is_said_of_confidence(batches, trials):
    found = select_growth(steady([2.0, 1.0, 1.5], batches), [1.0, 2.0, 3.0], trials=trials)
    assert (found.confidence, found.interval, found.shares) == (None, None, None)
    assert found.chosen == 1


def test_a_report_is_plain_json():
    found = select_growth(steady([2.0, 1.5]), [1.0, 1.0], names=["current", "image.blocks"])
    told = json.loads(json.dumps(found.to_dict()))
    assert told["chosen"] == "image.blocks"
    assert told["candidates"][1] == {
        "name": "image.blocks",
        "loss": 1.5,
        "cost": 1.0,
        "score": 1.5,
        "chosen_share": told["confidence"],
    }


@pytest.mark.parametrize(
    ("losses", "costs", "told"),
    [
        ([[1.0, math.nan], [1.0, 1.0]], [1.0, 2.0], "losses of candidate 0 hold nan"),
        ([[1.0, 1.0], [1.0, 0.0]], [1.0, 2.0], "losses of candidate 1 hold 0.0"),
        ([[1.0], [1.0]], [1.0, -2.0], "costs of candidate 1 hold -2.0"),
        ([[1.0], [1.0]], [1.0], r"losses are \(2, 1\) and costs \(1,\)"),
        ([1.0, 2.0], [1.0, 2.0], r"losses are \(2,\)"),
        ([[], []], [1.0, 2.0], r"losses are \(2, 0\)"),
    ],
)
def test_losses_and_costs_that_cannot_be_are_refused(losses, costs, told):
    with pytest.raises(DataError, match=told):
        select_growth(losses, costs)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"current": 2}, "current is 2"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"trials": -1}, "trials is -1"),
        ({"level": 1.0}, "level is 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ConfigError, match=told):
        select_growth(steady([2.0, 1.0]), [1.0, 2.0], **options)
    with pytest.raises(DataError, match="1 names for 2 candidates"):
        select_growth(steady([2.0, 1.0]), [1.0, 2.0], names=["a"])
