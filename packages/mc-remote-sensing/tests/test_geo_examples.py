"""The examples in the docstrings of the data modules."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mc_remote_sensing.data as package

MODULES = [f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
