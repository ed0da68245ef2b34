"""The screen as lines: what stands where at some sizes, and at every size what always holds."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.render.cells import cut, fitted, width
from rbee.render.screen import STYLES, Line
from rbee.top import columns, layout
from rbee.top.columns import ASCII, Glyphs, sparkline
from rbee.top.model import Fleet, GatewayRow, NodeState, Waiting
from rbee.top.order import RowKey, Sort, rows
from rbee.top.view import Screen, View, follow
from tests.unit.top.samples import FLEET, HISTORY, node, worker

UNICODE = Glyphs()


def shown(
    cells: int, height: int, view: View | None = None, fleet: Fleet = FLEET, glyphs: Glyphs = UNICODE,
    log: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    view = view or View()
    found = rows(fleet.nodes, view.sort, view.filter)
    view = follow(view, found, layout.page(fleet, view, (cells, height), glyphs))
    return texts(layout.lines(fleet, found, view, (cells, height), glyphs, log))


def texts(lines: Sequence[Line]) -> list[str]:
    return ["".join(content for content, _ in line).rstrip() for line in lines]


def test_one_screen_of_80_by_24() -> None:
    found = shown(80, 24)
    assert found[:7] == [
        "rbee top  3 nodes  1 down  2 workers  3/8 slots  2 wait  145.2 tok/s  ▆▇▇▇███▆▇▇",
        "rbee serve  5 running  3 wait  2 of alice for smollm2:135m since 3 s",
        "1 for qwen3:8b since 1 s",
        "NODE / MODEL      STATE    CPU/GPU      MEMORY SLOTS WAIT  TOK/S LAST MIN   TTFT",
        "gpu1              up       GPU 63%      31/86G   3/8    2  145.2 ████████ 213 ms",
        "└ smollm2:135m    busy                    1.2G   3/4    2  145.2 ████████ 213 ms",
        "└ smollm2:135m    idle                    1.2G   0/4             ████████ 213 ms",
    ]
    assert found[7] == "local             no hive              9.1/64G"
    assert found[8] == "bastion2          down     cannot be reached (no answer for 10 s); again in 8 s"
    assert found[9:23] == [""] * 14
    assert found[23] == "q quit  ? help  / filter  o sort  s stop  l log  Enter details"


def test_40_cells_have_what_matters_most() -> None:
    found = shown(40, 24)
    assert "NODE / MODEL  STATE    SLOTS WAIT  TOK/S" in found
    assert "gpu1          up         3/8    2  145.2" in found
    assert "└ smollm2:13… busy       3/4    2  145.2" in found
    assert found[-1] == "q quit  ? help  / filter  o sort  s stop"


def test_200_cells_have_everything() -> None:
    found = shown(200, 50)
    titles = next(line for line in found if line.startswith("NODE"))
    assert titles.split() == [
        "NODE", "/", "MODEL", "ID", "STATE", "CPU/GPU", "MEMORY", "SLOTS", "WAIT", "TOK/S", "LAST", "MIN", "TTFT",
        "CORES", "DEVICE", "NOTE",
    ]  # fmt: skip
    assert any("aaaaaaaa" in line and "NVIDIA H100" in line for line in found)
    assert any("idle for 1:15 min" in line for line in found)
    assert any("@cuda" in line for line in found)


def test_a_question_is_in_the_last_line_and_so_is_what_is_typed() -> None:
    asking = View(selected=RowKey("gpu1", "a" * 16), asking=RowKey("gpu1", "a" * 16))
    assert shown(80, 24, asking)[-1] == "stop aaaaaaaa (smollm2:135m) on gpu1 after its requests? y/N"
    assert shown(80, 24, View(typing=True, filter="gp"))[-1] == "filter: gp_"
    assert shown(80, 24, View(message="stopped it"))[-1] == "stopped it"
    assert shown(80, 24, View(filter="gpu"))[-1].startswith("Esc all, not only 'gpu'  q quit")
    assert "nothing has 'x y z' in it" in shown(80, 24, View(filter="x y z"))


def test_details_of_a_node_and_of_a_worker() -> None:
    found = "\n".join(shown(80, 24, View(screen=Screen.DETAILS, selected=RowKey("gpu1"))))
    for part in ("16, 12% busy", "9.1/64G", "NVIDIA H100 80GB HBM3 31/86G 63% busy", "a" * 16, "last minute"):
        assert part in found
    found = "\n".join(shown(80, 24, View(screen=Screen.DETAILS, selected=RowKey("gpu1", "b" * 16))))
    for part in ("smollm2:135m on gpu1", "0 of 4 taken", "4096 tokens", "1:15 min"):
        assert part in found
    assert "it is gone" in "\n".join(shown(80, 24, View(screen=Screen.DETAILS, selected=RowKey("x"))))


def test_a_log_is_shown_at_its_end() -> None:
    log = [f"line {number}" for number in range(100)]
    found = shown(80, 24, View(screen=Screen.LOG, selected=RowKey("gpu1")), log=log)
    assert found[-2] == "line 99"
    back = shown(80, 24, View(screen=Screen.LOG, selected=RowKey("gpu1"), first=3, at_end=False), log=log)
    assert "line 3" in back
    assert "line 99" not in back


def test_the_help_fits_narrow_screens_by_breaking_between_words() -> None:
    for cells in (40, 80):
        found = texts(layout.text(View(screen=Screen.HELP), [], cells, UNICODE, ()))
        assert all(width(line) <= cells for line in found)
        assert not any(line.endswith("…") for line in found)


def test_nothing_that_a_terminal_obeys_gets_onto_the_screen() -> None:
    evil = "\x1b[2J\x1b]0;x\x07\u202egpu\r\nnext\x9b"
    bad = worker(evil, model=evil, state=evil, device=evil, note=evil)
    fleet = Fleet(
        (
            node(evil, bad, tags=(evil,)),
            node("down", state=NodeState.DOWN, why=evil),
            node("tried", state=NodeState.CONNECTING, why=evil),
        ),
        GatewayRow(1, (Waiting(evil, evil, 1, 0.0),)),
    )
    keys = [RowKey(evil), RowKey(evil, bad.id), RowKey("down")]
    for view in [
        *(View(screen=screen, selected=key) for screen in Screen for key in keys),
        View(asking=RowKey(evil, bad.id), selected=RowKey(evil, bad.id)),
        View(filter=evil),
        View(typing=True, filter=evil),
        View(message=evil),
    ]:
        for size in ((40, 24), (200, 50)):
            for line in shown(*size, view, fleet):
                assert line.isprintable(), line
                assert "\u202e" not in line


@pytest.mark.parametrize(
    ("values", "cells", "drawn"),
    [
        ((), 4, "    "),
        ((0.0, 0.0), 4, "    "),
        ((1.0,) * 60, 4, "████"),
        ((0.0,) * 30 + (8.0,) * 30, 4, "  ██"),
        ((4.0,) * 30 + (8.0,) * 30, 2, "▅█"),
        ((8.0,), 60, " " * 59 + "█"),
        ((8.0,), 70, " " * 69 + "█"),
        ((1.0,), 0, ""),
    ],
)
def test_a_sparkline(values: Sequence[float], cells: int, drawn: str) -> None:
    assert sparkline(values, cells, UNICODE, 60) == drawn


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, ""),
        (0.04, "0.0"),
        (9.96, "10.0"),
        (145.23, "145.2"),
        (9999.9, "9999.9"),
        (12_345.0, "12k"),
        (1e12, "99999k"),
    ],
)
def test_a_rate_has_six_characters_at_most(number: float, text: str) -> None:
    assert columns.rate(number) == text
    assert len(text) <= 6


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, ""),
        (0.0004, "0 ms"),
        (0.2134, "213 ms"),
        (0.9999, "1.0 s"),
        (12.34, "12.3 s"),
        (999.9, "17 m"),
        (1e9, "9999 m"),
    ],
)
def test_seconds_have_six_characters_at_most(number: float, text: str) -> None:
    assert columns.seconds(number) == text
    assert len(text) <= 6


def test_a_cell_that_is_cut_says_so() -> None:
    assert (cut("abcdef", 4), cut("abc", 3), cut("abc", 0), cut("abcdef", 1)) == ("abc…", "abc", "", "…")
    assert (cut("漢字漢字", 5), width("漢字")) == ("漢字…", 4)
    assert (fitted("漢", 3), fitted("ab", 4, right=True)) == ("漢 ", "  ab")


WORDS = st.text(max_size=30)
RATES = st.floats(0, 1e15)


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    made = []
    for number in range(draw(st.integers(0, 4))):
        name = f"{draw(WORDS)}{number}"
        there = [
            worker(name, f"{each:016x}", model=draw(WORDS), device=draw(WORDS), rate=draw(RATES),
                   history=tuple(draw(st.lists(RATES, max_size=5))), first_token_s=draw(RATES),
                   rss_mb=draw(st.integers(0, 2**63)), queued=draw(st.integers(0, 2**63)), note=draw(WORDS),
                   idle_s=draw(st.none() | RATES), state=draw(st.sampled_from(["idle", "busy", "loading", "failed"])))
            for each in range(draw(st.integers(0, 3)))
        ]  # fmt: skip
        made.append(
            node(name, *there, state=draw(st.sampled_from(NodeState)), why=draw(WORDS),
                 cpu=draw(st.none() | st.floats(0, 1)), retry_s=draw(st.none() | RATES),
                 ram_total_mb=draw(st.integers(0, 2**63)))
        )  # fmt: skip
    waiting = tuple(Waiting(draw(WORDS), draw(WORDS), 1, 0.0) for _ in range(draw(st.integers(0, 3))))
    return Fleet(tuple(made), draw(st.none() | st.just(GatewayRow(2, waiting))), draw(st.sampled_from([(), HISTORY])))


@settings(max_examples=60, deadline=None)
@given(
    fleet=fleets(), cells=st.integers(1, 250), height=st.integers(1, 60), screen=st.sampled_from(Screen),
    sort=st.sampled_from(Sort), words=st.sampled_from(["", "a", "up"]), glyphs=st.sampled_from([UNICODE, ASCII]),
    log=st.lists(st.just("a line of a log"), max_size=80),
)  # fmt: skip
def test_every_size_is_filled_and_nothing_is_wider(
    fleet: Fleet, cells: int, height: int, screen: Screen, sort: Sort, words: str, glyphs: Glyphs, log: list[str]
) -> None:
    found = rows(fleet.nodes, sort, words)
    page = layout.page(fleet, View(screen=screen), (cells, height), glyphs)
    view = follow(View(sort=sort, filter=words), found, page)
    view = View(screen, view.selected, view.first, sort, words)
    drawn = layout.lines(fleet, found, view, (cells, height), glyphs, log)
    assert len(drawn) == height
    for line in drawn:
        assert width("".join(content for content, _ in line)) <= cells
        assert all(style in STYLES for _, style in line)


@given(cells=st.integers(12, 300))
def test_columns_fill_their_width_and_never_more(cells: int) -> None:
    there = columns.chosen(cells)
    assert there[0].title == "NODE / MODEL"
    assert sum(each.width for each in there) + len(there) - 1 <= cells
