"""Rows that fit a terminal."""

from __future__ import annotations

from rbee.render.fitting import fitted

ROWS = [("/set [NAME VALUE]", "sampling, such as temperature 0.2"), ("/exit", "leave"), ("", "")]


def test_what_fits_stands_in_columns() -> None:
    assert fitted(("WORD", "HELP"), ROWS, 80) == [
        "WORD               HELP",
        "/set [NAME VALUE]  sampling, such as temperature 0.2",
        "/exit              leave",
        "",
    ]


def test_the_last_column_is_wrapped() -> None:
    assert fitted((), ROWS, 40) == [
        "/set [NAME VALUE]  sampling, such as",
        "                   temperature 0.2",
        "/exit              leave",
        "",
    ]


def test_where_nothing_is_left_for_it_it_stands_below() -> None:
    assert fitted((), ROWS[:1], 30) == ["/set [NAME VALUE]", "  sampling, such as", "  temperature 0.2"]


def test_what_a_node_says_stays_on_its_line() -> None:
    assert fitted((), [("a\nb\x1b[31m", "c")], 40) == ["a b\\x1b[31m  c"]
    assert fitted((), [], 40) == []
