"""Tables on standard output: no figure and no word is cut by being too wide."""

from __future__ import annotations

import pytest

from mc_core.cli import _widths, print_table

WORDS = ["dispersion", "representation", "27.94", "participant-level", "per", "0.31"]


@pytest.mark.parametrize("columns", [2, 6, 12, 24])
def test_outside_a_terminal_every_word_is_whole(columns, capsys):
    heads = [f"{WORDS[i % len(WORDS)]} of the_rows {i}" for i in range(columns)]
    rows = [[f"{WORDS[(i + n) % len(WORDS)]} and {n}.{i}" for i in range(columns)] for n in range(3)]
    print_table("a title", heads, rows)
    out = capsys.readouterr().out
    assert "…" not in out
    said = out.replace("│", " ").replace("┃", " ").split()
    for cell in [*heads, *(cell for row in rows for cell in row)]:
        assert set(cell.replace("_", " ").split()) <= set(said)
    lines = out.splitlines()[1:]
    assert len({len(line) for line in lines}) == 1  # none was wrapped


def test_a_table_that_fits_is_no_wider_than_its_cells(capsys):
    print_table("a title", ["", "MRR"], [["words", "0.372"]])
    assert max(map(len, capsys.readouterr().out.splitlines())) == len("│ words │ 0.372 │")


def test_long_texts_give_way_to_whole_words():
    assert _widths([5, 9, 4], [60, 9, 4], 30) == [None, None, None]  # the longest is narrowed, as always
    widths = _widths([5, 20, 4], [60, 20, 4], 40)
    assert widths == [16, 20, 4]
    assert _widths([20, 20], [20, 20], 30) == [None, None]  # a terminal that is too narrow


def test_square_brackets_in_cells_and_heads_are_shown(capsys):
    print_table("a [title]", ["folder [old]", "n"], [["data [old]", "[x]"]])
    out = capsys.readouterr().out
    assert all(text in out for text in ("a [title]", "folder [old]", "data [old]", "[x]"))
