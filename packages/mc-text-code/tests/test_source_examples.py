"""The examples in the documentation of source code, pairs and their evaluation run as they stand."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = """
source.documentation source.files source.finding source.ignore source.languages source.parsing source.reading
source.splitting source.standard_library source.token_classes source.units source.words data.code_files data.code_mining
data.code_pairs data.code_records data.code_rules data.code_search_sets data.licences data.near_duplicates
evaluation.code_lexical evaluation.code_search evaluation.ranks kept_rows
"""


@pytest.mark.parametrize("name", MODULES.split())
def test_examples(name):
    module = importlib.import_module(f"mc_text_code.{name}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
