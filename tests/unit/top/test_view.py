"""What keys do: tables of (before, key, after), and what stays true whatever is pressed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.top.order import Row, RowKey, Sort, rows
from rbee.top.view import Action, FollowLog, LeaveLog, Quit, Screen, Stop, View, follow, pressed
from tests.unit.top.samples import FLEET, node, worker

ROWS = rows(FLEET.nodes, Sort.INVENTORY, "")
GPU1, WORKER, OTHER, LOCAL, LOST = (
    RowKey("gpu1"), RowKey("gpu1", "a" * 16), RowKey("gpu1", "b" * 16), RowKey("local"), RowKey("bastion2"),
)  # fmt: skip
AT_WORKER = View(selected=WORKER)


def press(view: View, *keys: str, of: list[Row] | None = None, page: int = 10, lines: int = 0) -> tuple[View, Action]:
    action: Action = None
    for key in keys:
        view, action = pressed(view, key, ROWS if of is None else of, page, lines)
    return view, action


@pytest.mark.parametrize(
    ("keys", "selected"),
    [
        (["down"], WORKER), (["j", "j"], OTHER), (["down", "up"], GPU1), (["up"], GPU1), (["end"], LOST),
        (["end", "down"], LOST), (["end", "home"], GPU1), (["pagedown"], LOST), (["end", "pageup"], GPU1),
        (["end", "k"], LOCAL),
    ],
)  # fmt: skip
def test_a_row_is_chosen(keys: list[str], selected: RowKey) -> None:
    assert press(View(selected=GPU1), *keys)[0].selected == selected


def test_what_is_chosen_stays_in_sight() -> None:
    view, _ = press(View(selected=GPU1), "end", page=2)
    assert view.first == 3
    assert press(view, "home", page=2)[0].first == 0
    assert press(View(selected=GPU1), "down", "down", page=2)[0].first == 1


def test_a_worker_is_stopped_after_a_yes() -> None:
    asking, action = press(AT_WORKER, "s")
    assert (asking.asking, action) == (WORKER, None)
    assert press(asking, "y") == (AT_WORKER, Stop(WORKER))
    assert press(asking, "Y")[1] == Stop(WORKER)
    for other in ("n", "enter", "escape", "q", "s", "down"):
        assert press(asking, other) == (AT_WORKER, None)


def test_a_node_is_not_stopped_and_says_what_to_do() -> None:
    view, action = press(View(selected=GPU1), "s")
    assert (view.asking, action) == (None, None)
    assert "one of its workers" in view.message
    assert press(view, "down")[0].message == ""


@pytest.mark.parametrize("row", [GPU1, WORKER, LOCAL])
def test_a_log_is_followed_until_it_is_left(row: RowKey) -> None:
    view, action = press(View(selected=row), "l")
    assert (view.screen, action) == (Screen.LOG, FollowLog(row))
    for key in ("q", "escape"):
        assert press(view, key) == (View(selected=row), LeaveLog())


def test_a_lost_node_has_no_log() -> None:
    view, action = press(View(selected=LOST), "l")
    assert (view.screen, action) == (Screen.LIST, None)
    assert "cannot be reached" in view.message


def test_details_and_what_can_be_done_from_there() -> None:
    view, _ = press(AT_WORKER, "enter")
    assert view.screen is Screen.DETAILS
    assert press(view, "q") == (AT_WORKER, None)
    assert press(view, "s", "y")[1] == Stop(WORKER)
    assert press(view, "l")[1] == FollowLog(WORKER)


def test_a_filter_is_typed() -> None:
    view, _ = press(View(), "/", "g", "p", "backspace", "q", " ", "s")
    assert (view.filter, view.typing) == ("gq s", True)
    kept, _ = press(view, "enter")
    assert (kept.filter, kept.typing) == ("gq s", False)
    assert press(view, "escape")[0] == View()
    assert press(kept, "escape")[0].filter == ""


def test_help_sort_and_the_end() -> None:
    assert press(View(), "?")[0].screen is Screen.HELP
    assert press(View(), "?", "escape")[0] == View(selected=GPU1)
    assert press(View(), "o")[0].sort is Sort.RATE
    assert press(View(), "q") == (View(), Quit())


def test_a_text_is_scrolled_and_a_log_stays_at_its_end() -> None:
    log, _ = press(AT_WORKER, "l")
    up, _ = press(log, "up", page=5, lines=20)
    assert (up.first, up.at_end) == (14, False)
    assert press(up, "end", page=5, lines=20)[0].at_end
    assert press(up, "pageup", page=5, lines=20)[0].first == 10
    assert press(up, "home", page=5, lines=20)[0].first == 0


def test_a_chosen_worker_that_is_gone_gives_way_to_its_node_and_a_node_to_its_place() -> None:
    assert follow(View(selected=RowKey("local", "f" * 16)), ROWS, 5).selected == LOCAL
    assert follow(View(selected=RowKey("gone"), first=3), ROWS, 5).selected == LOCAL
    assert follow(View(selected=GPU1, first=2), [], 5).first == 0


def test_without_rows_nothing_breaks() -> None:
    for key in ("down", "end", "enter", "s", "l", "o", "/"):
        assert press(View(), key, of=[])[1] is None


KEYS = st.lists(
    st.sampled_from([
        "up", "down", "pageup", "pagedown", "home", "end", "enter", "escape", "s", "y", "n", "l", "o", "/", "?", "g",
        "backspace", "é", " ",
    ])
)  # fmt: skip


@given(keys=KEYS, page=st.integers(1, 6), counts=st.lists(st.integers(0, 6), min_size=1, max_size=5))
def test_whatever_is_pressed_what_is_shown_is_there(keys: list[str], page: int, counts: list[int]) -> None:
    """Between two keys nodes and workers come and go."""
    view = View()
    for number, key in enumerate(keys):
        count = counts[number % len(counts)]
        shown = rows([node(f"n{each}", worker(f"n{each}")) for each in range(count)], view.sort, view.filter)
        view = follow(view, shown, page)
        view, _ = pressed(view, key, shown, page, lines=7)
        view = follow(view, shown, page)
        assert view.first >= 0
        if view.screen is Screen.LIST and shown:
            assert view.selected in [RowKey(f"n{each}", worker) for each in range(count) for worker in ("", "a" * 16)]
            assert view.first <= max(0, len(shown) - 1)
        assert replace(view) == view
