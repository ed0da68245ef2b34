"""Tables, blocks and messages in the width of a terminal: no word is broken that need not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.render.cells import width
from rbee.render.tables import GAP, blocks, widths, wrapped

TITLES = ("NODE", "ID", "STATE", "NOTE")
ROW = ("gpu1", "3f9a12bc", "idle", "idle for 1:20 min, kept for 38:39 min")


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (200, [4, 8, 5, 37]),
        (60, [4, 8, 5, 37]),
        (59, [4, 8, 5, 36]),
        (40, [4, 8, 5, 17]),
        (29, [4, 8, 5, 6]),
        (28, [4, 8, 5, 5]),
        (27, None),
    ],
)
def test_the_last_to_give_way_is_a_word(cells: int, expected: list[int] | None) -> None:
    assert widths(TITLES, [ROW], cells) == expected


def test_several_columns_share_what_is_left() -> None:
    found = widths(("A", "B"), [("a b " * 20, "c d " * 20)], 42)
    assert found == [20, 20]


def test_a_digest_may_be_broken_and_a_name_may_not() -> None:
    assert widths(("A", "B"), [("x" * 64, "y")], 40) == [37, 1]
    assert widths(("A", "B"), [("x" * 64, "y")], 12) == [9, 1]


def test_a_block_has_a_line_for_each_cell_that_says_something() -> None:
    found = blocks(TITLES, [ROW, ("gpu2", "-", "", "x")], 30)
    assert found[0] == [
        ("", "gpu1"),
        ("  ID     ", "3f9a12bc"),
        ("  STATE  ", "idle"),
        ("  NOTE   ", "idle for 1:20 min,"),
        ("         ", "kept for 38:39 min"),
    ]
    assert found[1] == [("", "gpu2"), ("  NOTE   ", "x")]


def test_what_a_node_says_is_one_line_in_blocks() -> None:
    ((_, (_, text)),) = blocks(("A", "B"), [("a", "x\x1b[2J\ny")], 40)
    assert text == "x\\x1b[2J y"


@pytest.mark.parametrize(
    ("line", "cells", "expected"),
    [
        ("error: short", 40, "error: short"),
        ("error: a b c d", 12, "error: a b c\n  d"),
        ("hint: use `rbee nodes list` now", 24, "hint: use\n  `rbee nodes list` now"),
        ("  path: /a/very/long/path/that/does/not/fit", 20, "  path:\n    /a/very/long/path/that/does/not/fit"),
        ("one two-three", 9, "one\n  two-three"),
    ],
)
def test_a_message_is_broken_between_words(line: str, cells: int, expected: str) -> None:
    assert wrapped(line, cells) == expected


CELL = st.text(st.sampled_from("ab -漢"), max_size=25)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4), st.integers(24, 120))
def test_whatever_stands_there_fits(rows: list[tuple[str, str, str]], cells: int) -> None:
    titles = ("ONE", "TWO", "THREE")
    found = widths(titles, rows, cells)
    if found is not None:
        assert sum(found) + GAP * 2 <= cells
        assert all(each >= len(title) for each, title in zip(found, titles, strict=True))
    for block in blocks(titles, rows, cells):
        assert all(width(label) + len(text) <= cells for label, text in block)
