"""The pictures of terminals in the docs show what rbee shows now, as far as that is the same each time."""

from __future__ import annotations

import pytest

from rbee.render.cells import fitted, width
from rbee.top import columns, layout
from rbee.top.columns import Glyphs
from rbee.top.model import Fleet
from rbee.top.view import Screen, View
from tools.terminal_pictures import DOCS, PICTURES, Picture, placed, shown

AGAIN = "run .venv/bin/python -m tools.terminal_pictures"


def on_page(picture: Picture) -> list[str]:
    found = shown((DOCS / picture.page).read_text(encoding="utf-8"), picture)
    assert found, f"{picture.page} lacks the picture {picture.name}: {AGAIN}"
    return found


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_is_as_large_as_its_terminal(picture: Picture) -> None:
    found = on_page(picture)
    assert len(found) <= picture.lines
    assert max(map(width, found)) <= picture.cells


@pytest.mark.parametrize(
    "picture", [each for each in PICTURES if each.command == "rbee top"], ids=lambda each: each.name
)
def test_a_picture_of_top_has_the_columns_and_keys_of_now(picture: Picture) -> None:
    found = on_page(picture)
    view = View(screen=Screen.DETAILS if picture.keys else Screen.LIST)
    foot = "".join(text for text, _ in layout.footer(view, [], picture.cells, Glyphs()))
    assert found[-1] == foot, AGAIN
    assert found[0].startswith("rbee top  1 node")
    if view.screen is Screen.LIST:
        there = columns.chosen(picture.cells)
        titles = " ".join(fitted(each.title, each.width, right=each.right) for each in there).rstrip()
        head = len(layout.header(Fleet(()), picture.cells, Glyphs()))
        assert titles in found[head:], AGAIN


def test_a_picture_is_placed_between_its_marks() -> None:
    picture = PICTURES[0]
    page = f"before\n<!-- picture: {picture.name} -->\nold\n<!-- end of picture -->\nafter\n"
    made = placed(page, picture, ["a  ", "", "b", ""])
    assert shown(made, picture) == ["a", "", "b"]
    assert (made.startswith("before\n"), made.endswith("\nafter\n")) == (True, True)
    assert placed(made, picture, ["a", "", "b"]) == made
