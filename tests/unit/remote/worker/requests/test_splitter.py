"""An answer is split where its reader says so, however tokens cut it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from rbee_remote.protocol import CallDelta, ErrorCode, GenerateRequest, RemoteError, TokenEvent
from rbee_remote.worker.dialects.interface import CallArguments, CallBegin, Content, Piece, Reasoning
from rbee_remote.worker.engine.interface import Sampled
from rbee_remote.worker.requests.generation import Generation
from rbee_remote.worker.requests.journal import Journal
from rbee_remote.worker.requests.prompt import Prompt
from rbee_remote.worker.requests.shaping import Shape
from rbee_remote.worker.requests.splitter import Parts, ReadBy, Splitter
from rbee_remote.worker.requests.stream import TextStream

#: Token 1000 is the marker; others are bytes.
MARKS = {1000: "</think>"}


class Scripted:
    """Reads pieces from a table: what is fed, to what it means. Closes its block at a marker."""

    def __init__(self, meaning: dict[str, list[Piece]], *, thinks: bool = False, closes: bool = True) -> None:
        self._meaning = meaning
        self.in_reasoning = thinks
        self._closes = closes
        self.fed: list[tuple[str, bool]] = []

    def feed(self, text: str, *, marker: bool = False) -> list[Piece]:
        self.fed.append((text, marker))
        if marker and self._closes:
            self.in_reasoning = False
        if marker:
            return []
        kind = Reasoning if self.in_reasoning else Content
        return self._meaning.get(text, [kind(text)])

    def finish(self) -> list[Piece]:
        return self._meaning.get("", [])


def splitter(
    reader: Scripted, *, stop: tuple[str, ...] = (), budget: int | None = None, most: int | None = None
) -> Splitter:
    by = ReadBy(reader, MARKS, (1000,), think_budget=budget, most_calls=most)
    return Splitter(by, TextStream(stop))


def test_characters_are_whole_before_the_reader_sees_them() -> None:
    reader = Scripted({})
    split = splitter(reader)
    parts = [split.feed(byte, bytes([byte])) for byte in "é!".encode()]
    assert reader.fed == [("é", False), ("!", False)]
    assert [part.text for part in parts] == ["", "é", "!"]


def test_a_marker_is_one_only_as_its_token() -> None:
    reader = Scripted({}, thinks=True)
    split = splitter(reader)
    as_text = [split.feed(byte, bytes([byte])) for byte in b"</think>"]
    assert "".join(part.reasoning for part in as_text) == "</think>"
    split.feed(1000, b"")
    assert split.feed(97, b"a") == Parts("a")


def test_half_a_character_before_a_marker_stays_in_its_place() -> None:
    reader = Scripted({}, thinks=True)
    split = splitter(reader)
    split.feed(0xC3, b"\xc3")
    assert split.feed(1000, b"") == Parts("", "\ufffd")
    assert reader.fed == [("\ufffd", False), ("</think>", True)]


def test_calls_get_an_index_and_an_id_of_their_own_where_the_model_gives_none() -> None:
    reader = Scripted(
        {
            "a": [CallBegin("f", "call_7"), CallArguments("{")],
            "b": [CallArguments("}"), CallBegin("g")],
            "": [CallArguments("{}")],
        }
    )
    split = splitter(reader)
    first, second = split.feed(97, b"a").calls, split.feed(98, b"b").calls
    last = split.finish().calls
    assert [(call.index, call.name, call.arguments) for call in (*first, *second, *last)] == [
        (0, "f", ""),
        (0, "", "{"),
        (0, "", "}"),
        (1, "g", ""),
        (1, "", "{}"),
    ]
    assert first[0].id == "call_7"
    assert len(second[1].id) == 9
    assert second[1].id.isalnum()


def test_one_call_too_many_is_where_the_answer_ends() -> None:
    reader = Scripted({"a": [CallBegin("f")], "b": [CallArguments("{}")]})
    split = splitter(reader, most=1)
    assert [len(split.feed(ord(letter), letter.encode()).calls) for letter in "ab"] == [1, 1]
    assert not split.over
    assert split.feed(97, b"a").calls == ()
    assert split.over
    assert split.feed(98, b"b").calls == ()
    assert split.calls == 1


def test_stop_strings_are_looked_for_in_content_alone() -> None:
    reader = Scripted({}, thinks=True)
    stream = TextStream(("b",))
    split = Splitter(ReadBy(reader, MARKS), stream)
    assert split.feed(98, b"b") == Parts("", "b")
    split.feed(1000, b"")
    assert not stream.stopped
    assert split.feed(98, b"b") == Parts()
    assert stream.stopped


@pytest.mark.parametrize(("budget", "thought"), [(0, 0), (1, 1), (3, 3)])
def test_a_budget_forces_the_end_once_it_is_used_up(budget: int, thought: int) -> None:
    split = splitter(Scripted({}, thinks=True), budget=budget)
    fed = 0
    while not split.forced:
        split.feed(97, b"a")
        fed += 1
    assert (fed, list(split.forced)) == (thought, [1000])


def test_an_end_that_ends_nothing_is_not_forced_again() -> None:
    split = splitter(Scripted({}, thinks=True, closes=False), budget=0)
    assert split.forced.popleft() == 1000
    for token in (1000, 97, 98):
        split.feed(token, b"")
        assert not split.forced


def test_without_a_budget_nothing_is_forced() -> None:
    split = splitter(Scripted({}, thinks=True))
    for _ in range(100):
        split.feed(97, b"a")
    assert not split.forced


class Broken(Scripted):
    def feed(self, text: str, *, marker: bool = False) -> list[Piece]:
        raise RecursionError("too deep")

    def finish(self) -> list[Piece]:
        raise ValueError("no end")


def generation(reader: Scripted, most: int | None = None) -> Generation:
    request = GenerateRequest("0" * 32, prompt="x")
    made = Generation(request, Journal(), Prompt((1,), 10, shape=Shape(read_by=ReadBy(reader, MARKS, most_calls=most))))
    made.begin(0)
    return made


def test_a_reader_that_fails_ends_its_own_answer_alone() -> None:
    broken = generation(Broken({}))
    with pytest.raises(RemoteError, match="too deep") as caught:
        broken.advance(Sampled(97), b"a", is_end=False)
    (ending,) = broken.finish("canceled")
    assert isinstance(ending, RemoteError)
    assert caught.value.code is ending.code is ErrorCode.INTERNAL


@pytest.mark.parametrize(
    ("reason", "meaning", "expected"),
    [
        ("stop", {"": [CallBegin("f")]}, "tool_calls"),
        ("stop", {}, "stop"),
        ("length", {"": [CallBegin("f")]}, "length"),
        ("canceled", {"": [CallBegin("f")]}, "canceled"),
    ],
)
def test_why_an_answer_with_calls_has_ended(reason: str, meaning: dict[str, list[Piece]], expected: str) -> None:
    ended = generation(Scripted(meaning))
    assert ended.finish(reason)[-1].finish_reason == expected  # type: ignore[union-attr]


def test_nothing_is_generated_where_nothing_was_asked_for() -> None:
    made = Generation(GenerateRequest("0" * 32, prompt="x", max_tokens=0), Journal(), Prompt((1,), 0))
    made.begin(0)
    assert made.advance(Sampled(97), b"a", is_end=False) is None
    assert (made.finish_reason, made.tokens) == ("length", 0)


async def test_what_a_journal_has_of_a_token() -> None:
    """Fields that say nothing are left off: there is such a record for every token."""
    journal = Journal()
    journal.append(TokenEvent("a", 1))
    plain = journal.weight
    journal.append(TokenEvent("", 2, None, "w" * 100, (CallDelta(0, "id", "f"), CallDelta(0, arguments="{" * 50))))
    assert journal.weight - plain > 2 * plain + 4 * 150
    records = [record async for record in _some(journal, 2)]
    assert records == [
        {"text": "a", "tokens": 1, "logprobs": None},
        {
            "text": "",
            "tokens": 2,
            "logprobs": None,
            "reasoning": "w" * 100,
            "calls": [
                {"index": 0, "id": "id", "name": "f", "arguments": ""},
                {"index": 0, "id": "", "name": "", "arguments": "{" * 50},
            ],
        },
    ]


async def _some(journal: Journal, count: int) -> AsyncIterator[dict[str, Any]]:
    async for record in journal.follow(1.0):
        assert record is not None
        yield record.data
        if record.id == count:
            return
