"""Examples in the docstrings of code search run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import mc_text_code.codesearch

MODULES = sorted(
    f"mc_text_code.codesearch.{one.name}" for one in pkgutil.iter_modules(mc_text_code.codesearch.__path__)
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) > 12


def test_public_names_are_there():
    for name in mc_text_code.codesearch.__all__:
        assert getattr(mc_text_code.codesearch, name) is not None
