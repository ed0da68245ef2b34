"""Reasoning on stderr, the answer alone on stdout, and calls as lines of JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from rbee.base.events import Event, Notice, Reasoning, Token, ToolCall
from rbee.render import make_renderer
from tests.unit.render.test_render import ERROR, FINISHED, play, terminals

CALL = ToolCall("get_weather", {"city": "Paris\x1b[2J"}, "c1")
LINE = '{"name": "get_weather", "arguments": {"city": "Paris\\u001b[2J"}}\n'
THOUGHT: list[Event] = [
    Reasoning("first", 1),
    Reasoning(" this\x1b[2J\n", 2),
    Reasoning("then", 3),
    Token("42", 4),
    FINISHED,
]


def shown_on_one_terminal(monkeypatch: pytest.MonkeyPatch, events: list[Event], **options: Any) -> str:
    with terminals(monkeypatch, 1) as (both,):
        with make_renderer(stdout=both.stream, stderr=both.stream, **options) as renderer:
            for event in events:
                renderer(event)
        return both.close()


def test_a_pipe_gets_reasoning_only_where_that_was_asked_for() -> None:
    assert play(THOUGHT) == ("42", "")
    assert play(THOUGHT, reasoning=True) == ("42", "first this\x1b[2J\nthen\n")
    assert play(THOUGHT, reasoning=True, stream=False) == ("42", "first this\x1b[2J\nthen\n")
    assert play(THOUGHT, reasoning=True, quiet=True) == ("42", "")


def test_on_a_terminal_it_is_dim_and_the_answer_begins_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    dim = "\x1b[2mfirst\x1b[0m\x1b[2m this\\x1b[2J\x1b[0m\n\x1b[2mthen\x1b[0m\n"
    assert shown_on_one_terminal(monkeypatch, THOUGHT) == f"{dim}42\n"
    assert shown_on_one_terminal(monkeypatch, THOUGHT, stream=False) == f"{dim}42\n"
    assert shown_on_one_terminal(monkeypatch, THOUGHT, color=False) == "first this\\x1b[2J\nthen\n42\n"


@pytest.mark.parametrize("options", [{"reasoning": False}, {"quiet": True}, {"quiet": True, "reasoning": True}])
def test_on_a_terminal_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]) -> None:
    assert shown_on_one_terminal(monkeypatch, THOUGHT, **options) == "42\n"


def test_reasoning_and_notices_do_not_run_into_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = [
        Token("so", 1),
        Reasoning("hm", 2),
        Notice("reconnected"),
        Reasoning("well", 3),
        Token("!", 4),
    ]
    assert shown_on_one_terminal(monkeypatch, events, color=False) == "so\nhm\nreconnected\nwell\n!\n"


def test_an_error_in_mid_thought_begins_a_line() -> None:
    out, err = io.StringIO(), io.StringIO()
    renderer = make_renderer(stdout=out, stderr=err, reasoning=True, stream=False)
    for event in (Token("4", 1), Reasoning("hm", 2)):
        renderer(event)
    renderer.error(ERROR)
    assert out.getvalue() == "4"
    assert err.getvalue().startswith("hm\nerror: i.toml: bad\n")


@pytest.mark.parametrize("stream", [True, False])
def test_a_call_is_a_line_of_its_own(stream: bool) -> None:
    assert play([CALL, CALL, FINISHED], stream=stream)[0] == LINE * 2
    assert play([Token("Let me look.", 1), CALL, FINISHED], stream=stream)[0] == f"Let me look.\n{LINE}"
    assert play([Token("", 1), CALL], stream=stream)[0] == LINE


def test_a_call_steers_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    call = ToolCall("f", {"a": "\x9b\u202e\x7f"}, "")
    assert shown_on_one_terminal(monkeypatch, [call]) == '{"name": "f", "arguments": {"a": "\\u009b\\u202e\\u007f"}}\n'


def test_json_has_events_of_their_own() -> None:
    lines = [json.loads(line) for line in play([Reasoning("hm", 1), CALL], json=True)[0].splitlines()]
    assert lines == [
        {"event": "reasoning", "text": "hm", "tokens": 1},
        {"event": "tool_call", "name": "get_weather", "arguments": {"city": "Paris\x1b[2J"}, "id": "c1"},
    ]


def test_json_without_streaming_has_all_at_the_end() -> None:
    out = play([*THOUGHT[:-1], CALL, FINISHED], json=True, stream=False)[0]
    (finished,) = (json.loads(line) for line in out.splitlines())
    assert finished["text"] == "42"
    assert finished["reasoning"] == "first this\x1b[2J\nthen"
    assert finished["tool_calls"] == [{"name": "get_weather", "arguments": {"city": "Paris\x1b[2J"}, "id": "c1"}]


def test_json_without_streaming_keeps_what_came_before_an_error() -> None:
    out = io.StringIO()
    renderer = make_renderer(stdout=out, stderr=io.StringIO(), json=True, stream=False)
    for event in (*THOUGHT[:-1], CALL):
        renderer(event)
    renderer.error(ERROR)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line.get("event") for line in lines] == ["reasoning", "token", "tool_call", None]
    assert (lines[0]["tokens"], lines[1]["text"], lines[1]["tokens"]) == (4, "42", 4)
