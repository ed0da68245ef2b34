"""What is left of an answer that did not become whole, and the calls of one that comes in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from rbee.base.events import Notice, ToolCall
from rbee.infer.partial import PartialAnswer
from rbee_remote.protocol import CallDelta, TokenEvent


def partial_of(folder: Path, *events: TokenEvent, begins_with: str = "") -> PartialAnswer:
    partial = PartialAnswer(folder / "answer.txt", begins_with, max_tokens=20)
    partial.begin()
    for event in events:
        partial.add(event)
    return partial


def piece(index: int, arguments: str, name: str = "", call_id: str = "") -> TokenEvent:
    return TokenEvent("", 1, calls=(CallDelta(index, call_id, name, arguments),))


def test_a_call_is_told_once_when_the_next_begins_or_nothing_follows(tmp_path: Path) -> None:
    partial = partial_of(tmp_path, piece(0, '{"a": ', "f", "c1"), piece(0, "1}"))
    assert partial.finished_calls() == []
    partial.add(piece(1, "", "g"))
    assert partial.finished_calls() == [ToolCall("f", {"a": 1}, "c1")]
    assert partial.finished_calls() == []
    assert partial.finished_calls("tool_calls") == [ToolCall("g", {}, "")]
    assert partial.finished_calls("tool_calls") == []


@pytest.mark.parametrize("arguments", ['{"city": "Par', "[1]", '"Paris"', "{" * 100_000])
def test_arguments_that_are_no_object_are_told_as_they_are(arguments: str, tmp_path: Path) -> None:
    partial = partial_of(tmp_path, piece(0, arguments, "f"))
    assert partial.finished_calls("tool_calls") == [Notice(f"the call of f is not whole: {arguments}")]


def test_text_calls_and_reasoning_are_saved(tmp_path: Path) -> None:
    partial = partial_of(
        tmp_path, TokenEvent("", 1, reasoning="hm"), TokenEvent(" bees", 2), piece(0, '{"a', "f"), begins_with="Two"
    )
    reasoning = tmp_path / "answer.reasoning.txt"
    assert partial.save() == {
        "generated": "1 of 20 tokens",
        "saved": str(partial.path),
        "reasoning saved": str(reasoning),
    }
    assert partial.path.read_text() == 'Two bees\n{"name": "f", "arguments": "{\\"a"}'
    assert reasoning.read_text() == "hm"
    assert {path.stat().st_mode & 0o777 for path in (partial.path, reasoning)} == {0o600}


def test_no_file_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    partial = PartialAnswer.of(tmp_path, "0" * 32, is_saved=False)
    partial.max_tokens = 20
    partial.begin()
    partial.add(TokenEvent(" bees", 1))
    assert partial.save() == {"generated": "1 of 20 tokens"}
    assert list(tmp_path.iterdir()) == []


def test_what_the_cleanup_removes_later_has_these_names(tmp_path: Path) -> None:
    path = PartialAnswer.of(tmp_path, "0" * 32).path
    assert path.match("answer-*.txt")
    assert path.with_suffix(".reasoning.txt").match("answer-*.txt")


def test_a_call_that_was_cut_off_before_its_arguments_is_not_told_as_one_without(tmp_path: Path) -> None:
    partial = partial_of(tmp_path, piece(0, "", "f"), piece(1, "", "g"))
    assert partial.finished_calls("length") == [
        ToolCall("f", {}, ""),
        Notice("the call of g is not whole: it has no arguments yet"),
    ]
