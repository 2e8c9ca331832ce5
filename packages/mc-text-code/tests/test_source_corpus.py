"""The whole standard library as units and tokens, and the same work by several processes."""

from __future__ import annotations

import operator
import os
from functools import partial

import numpy as np
import pytest

from mc_core.errors import RunError
from mc_core.pool import map_items
from mc_text_code.source.files import SourceFile
from mc_text_code.source.parsing import leaves
from mc_text_code.source.reading import SourceText, read_source
from mc_text_code.source.standard_library import standard_library_files
from mc_text_code.source.units import units_of

_SPACE = np.isin(np.arange(256), list(b" \t\n\r\f\v\0"))
_LETTER = np.array([n < 128 and chr(n).isalnum() for n in range(256)])


def problems(file: SourceFile) -> list[str]:
    text = read_source(file)
    if not isinstance(text, SourceText):
        return []
    data = np.frombuffer(text.source, dtype=np.uint8)
    found = leaves(text.source, "python")
    times = np.zeros(len(data) + 1, dtype=np.int64)
    np.add.at(times, found.starts, 1)
    np.add.at(times, found.ends, -1)
    covered = np.cumsum(times)[:-1]
    wrong = [] if (covered[~_SPACE[data]] == 1).all() and (covered <= 1).all() else [f"{file.path}: leaves"]
    inside = np.zeros(len(data), dtype=bool)
    for unit in units_of(text.source, file.path):
        inside[unit.start_byte : unit.end_byte] = True
    return wrong + ([] if inside[_LETTER[data]].all() else [f"{file.path}: units"])


def test_the_standard_library_is_parsed_without_loss():
    files = standard_library_files().files
    assert len(files) > 400
    assert [one for found in map(problems, files) for one in found] == []


def test_processes_give_the_same_in_the_same_order():
    listed = [file for file in standard_library_files().files if file.path.startswith(("json/", "email/", "asyncio/"))]
    sources = [text.source for text in map(read_source, listed) if isinstance(text, SourceText)]
    count = partial(units_of, path="a.py")
    here = list(map_items(count, sources, processes=1))
    assert len(here) > 40
    assert list(map_items(count, sources, processes=2, chunk=7)) == here
    assert list(map_items(count, iter(sources[:5]), processes=0)) == here[:5]


def test_a_process_that_ends_is_one_line():
    with pytest.raises(RunError, match="a process ended while it worked"):
        list(map_items(os._exit, [3], processes=2))


def test_errors_of_a_process_come_through():
    with pytest.raises(ZeroDivisionError):
        list(map_items(partial(operator.truediv, 1), [1, 0], processes=2))


def test_no_more_is_read_than_is_worked_on():
    read = []

    def items():
        for number in range(10_000):
            read.append(number)
            yield -number

    found = map_items(abs, items(), processes=2, chunk=4)
    assert [next(found) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(read) < 100
    found.close()
