"""Mean ± sd over seeds, and paired differences, against NumPy."""

import math

import numpy as np
import pytest

from mc_core.errors import DataError
from mc_core.seeds import Spread, differences_over_seeds, over_seeds


def test_mean_and_deviation_are_those_of_numpy():
    values = np.random.default_rng(0).normal(size=7)
    found = Spread.of(values)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.sd == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert found.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(7), abs=1e-12)
    assert found.to_dict() == {"mean": found.mean, "sd": found.sd, "values": values.tolist()}


def test_one_seed_has_no_deviation():
    found = Spread.of([0.5])
    assert (found.mean, found.sd, found.standard_error, str(found)) == (0.5, None, None, "0.50")
    with pytest.raises(DataError, match="no runs"):
        Spread.of([])


def test_a_value_that_is_not_defined_shows():
    assert math.isnan(Spread.of([1.0, math.nan]).mean)


def test_rows_and_columns_keep_their_order_and_may_be_missing():
    runs = [{"b": {"y": 1.0, "x": 2.0}}, {"b": {"y": 3.0}, "a": {"x": 5.0}}]
    found = over_seeds(runs)
    assert list(found) == ["b", "a"]
    assert list(found["b"]) == ["y", "x"]
    assert found["b"]["y"].values == (1.0, 3.0)
    assert found["b"]["x"].values == (2.0,)
    assert over_seeds([]) == {}


def test_differences_are_taken_seed_by_seed():
    seeds = np.random.default_rng(1).normal(scale=5, size=4)
    runs = [{"plain": {"x": s}, "ours": {"x": s + 0.1 * i}} for i, s in enumerate(seeds)]
    found = differences_over_seeds(runs, "plain")
    assert list(found) == ["ours"]
    assert found["ours"]["x"].values == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert found["ours"]["x"].sd < 0.2 < over_seeds(runs)["ours"]["x"].sd


def test_a_run_without_the_baseline_takes_no_part():
    runs = [{"plain": {"x": 1.0}, "ours": {"x": 2.0, "y": 9.0}}, {"ours": {"x": 100.0}}]
    assert differences_over_seeds(runs, "plain")["ours"]["x"].values == (1.0,)
    assert "y" not in differences_over_seeds(runs, "plain")["ours"]
    with pytest.raises(DataError, match="no run has the row 'SimCSE' to compare with, only plain, ours"):
        differences_over_seeds(runs, "SimCSE")
