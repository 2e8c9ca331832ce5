"""The examples in the docstrings of the core."""

import doctest
import importlib
import pkgutil

import pytest

import mc_core

MODULES = [module.name for module in pkgutil.walk_packages(mc_core.__path__, "mc_core.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
