"""The examples in the docstrings of training on code run as they stand."""

import doctest
from importlib import import_module

import pytest

NAMES = (
    "code_recipe",
    "code_training",
    "data.code_data",
    "data.code_text",
    "data.code_tokens",
    "methods.cocosoda.config",
    "methods.cocosoda.loss",
    "soft_augment",
    "type_tokens",
)


@pytest.mark.parametrize("name", NAMES)
def test_examples(name):
    found = doctest.testmod(import_module(f"mc_text_code.{name}"))
    assert found.attempted > 0
    assert not found.failed
