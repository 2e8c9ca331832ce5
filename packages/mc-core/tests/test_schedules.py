"""The learning-rate factor: end points, closed forms, and the released scripts' values."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise

import pytest

from mc_core.engine.config import Fit
from mc_core.errors import ConfigError
from mc_core.schedules import learning_rate_factor, weight_decay_factor

SPE, EPOCHS = 10, 200
TOTAL = SPE * EPOCHS


def factors(**options: object) -> list[float]:
    fit = Fit(epochs=EPOCHS, **options)
    return [learning_rate_factor(fit, step, SPE, TOTAL) for step in range(TOTAL + 1)]


def test_cosine_per_step_runs_from_one_to_zero_without_rising():
    values = factors(schedule="cosine")
    assert (values[0], values[-1]) == (1.0, 0.0)
    assert values[TOTAL // 2] == pytest.approx(0.5)
    assert all(b < a for a, b in pairwise(values))


def test_cosine_per_epoch_is_moco_v2():
    values = factors(schedule="cosine", schedule_every="epoch")
    for step in range(TOTAL):
        assert values[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step // SPE) / EPOCHS)), abs=1e-12)


def test_steps_are_moco_v1():
    values = factors(schedule="step", milestones=(0.6, 0.8), schedule_every="epoch")
    for step in range(TOTAL):
        epoch = step // SPE
        assert values[step] == pytest.approx(0.1 ** ((epoch >= 120) + (epoch >= 160)))


def test_a_milestone_inside_an_epoch_waits_for_the_next_only_per_epoch():
    options = {"schedule": "step", "milestones": (0.6025,), "decay_factor": 0.5}
    per_step, per_epoch = factors(**options), factors(**options, schedule_every="epoch")
    assert (per_step[1204], per_step[1205]) == (1.0, 0.5)
    assert (per_epoch[1209], per_epoch[1210]) == (1.0, 0.5)


@pytest.mark.parametrize("schedule_every", ["step", "epoch"])
def test_warmup_is_linear_per_step_then_cosine_of_the_rest(schedule_every):
    values = factors(schedule="cosine", warmup_epochs=10, schedule_every=schedule_every)
    for step in range(101):
        assert values[step] == pytest.approx(step / 100)
    for step in range(100, TOTAL + 1):
        position = step // SPE * SPE if schedule_every == "epoch" else step
        assert values[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (position - 100) / (TOTAL - 100))), abs=1e-9)


def test_a_fractional_warmup_never_dips_after_its_end():
    values = factors(schedule="cosine", warmup_epochs=0.55, schedule_every="epoch")
    assert values[5] == pytest.approx(5 / 5.5)
    assert values[6:10] == [1.0] * 4
    assert values[10] < 1.0


def test_constant_stays_at_one_after_warmup():
    values = factors(schedule="constant", warmup_epochs=1)
    assert values[:3] == [0.0, 0.1, 0.2]
    assert set(values[10:]) == {1.0}


def test_milestones_count_the_warmup_in():
    values = factors(schedule="step", warmup_epochs=130, milestones=(0.6,))
    assert values[1299] == pytest.approx(1299 / 1300)
    assert values[1300] == pytest.approx(0.1)


@pytest.mark.parametrize("warmup", [200, 300])
def test_a_warmup_as_long_as_the_run_or_longer_rises_throughout(warmup):
    values = factors(schedule="cosine", warmup_epochs=warmup)
    for step in range(TOTAL):
        assert values[step] == pytest.approx(step / (warmup * SPE))


@pytest.mark.parametrize(("step", "per_epoch", "total"), [(-1, 1, 10), (11, 1, 10), (0, 0, 10), (0, 1, 0)])
def test_numbers_out_of_range_are_named(step, per_epoch, total):
    with pytest.raises(ConfigError, match=f"step {step} of {total}, {per_epoch} per epoch"):
        learning_rate_factor(Fit(epochs=1), step, per_epoch, total)


def test_a_warmup_from_and_a_cosine_to_other_rates_than_zero():
    fit = Fit(epochs=10, warmup_epochs=2, warmup_from=0.0625, decay_to=0.001, lr=4.8)  # SwAV: from 0.3 to 4.8 to 0.0048
    rates = [4.8 * learning_rate_factor(fit, step, 10, 100) for step in (0, 10, 20, 60, 100)]
    assert rates == pytest.approx([0.3, 2.55, 4.8, (4.8 + 0.0048) / 2, 0.0048])


def test_importing_it_does_not_import_torch():
    code = "import sys, mc_core.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weight_decay_follows_half_a_cosine_to_its_end():
    fit = Fit(weight_decay=0.04, weight_decay_end=0.4, warmup_epochs=10)
    for step in range(0, 101, 5):
        expected = 0.4 + 0.5 * (0.04 - 0.4) * (1 + math.cos(math.pi * step / 100))  # DINO's schedule
        assert 0.04 * weight_decay_factor(fit, step, 100) == pytest.approx(expected)
    assert weight_decay_factor(Fit(weight_decay=0.04), 50, 100) == 1.0
    assert weight_decay_factor(Fit(weight_decay=0.04, weight_decay_end=0.0), 100, 100) == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="step 101 of 100"):
        weight_decay_factor(fit, 101, 100)


def test_a_linear_schedule_is_a_straight_line_from_the_end_of_the_warm_up():
    fit = Fit(epochs=10, schedule="linear", warmup_epochs=2, decay_to=0.1)
    rates = [learning_rate_factor(fit, step, 10, 100) for step in (10, 20, 60, 100)]
    assert rates == pytest.approx([0.5, 1.0, 0.55, 0.1])
    without = Fit(epochs=1, schedule="linear")
    assert [learning_rate_factor(without, step, 8, 8) for step in range(9)] == pytest.approx(
        [1 - s / 8 for s in range(9)]
    )
