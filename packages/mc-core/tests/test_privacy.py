"""Salted hashes of ids, as texts and as numbers. Redaction and shifted dates are tested where they are used."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from mc_core import privacy
from mc_core.errors import DataError
from mc_core.privacy import Salt, salt_path


def test_examples():
    assert doctest.testmod(privacy).failed == 0


def test_numbers_are_keys_that_fit_int64():
    salt, other = Salt(b"0123456789abcdef"), Salt(b"0123456789abcdeg")
    numbers = np.array([salt.number("patient", n) for n in range(2000)], dtype=np.int64)
    assert numbers.min() >= 0
    assert len(np.unique(numbers)) == 2000
    assert numbers[7] == int(salt.key("patient", "7"), 16) >> 1
    assert salt.number("patient", 7.0) == salt.number("patient", " 7 ") == numbers[7]
    assert salt.number("study", 7) != numbers[7] != other.number("patient", 7)
    assert 0.45 < (numbers > (1 << 62)).mean() < 0.55


def test_a_salt_lies_beside_a_run_and_must_be_whole(tmp_path):
    run = tmp_path / "run"
    first = Salt.beside(run, create=True)
    assert salt_path(run).stat().st_mode & 0o077 == 0
    assert Salt.beside(run).number("patient", "a") == first.number("patient", "a")
    salt_path(run).write_text("abcd")
    with pytest.raises(DataError, match="holds 2 bytes, a salt has at least 16"):
        Salt.beside(run)
    with pytest.raises(DataError, match=r"other.salt is missing"):
        Salt.beside(tmp_path / "other")
