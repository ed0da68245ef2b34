"""Which events a worker can have sent: those of reasoning and tool calls."""

from __future__ import annotations

import pytest

from rbee.infer.validation import TEXT_PER_TOKEN, EventCheck
from rbee.node.socket_http import NonsenseError
from rbee_remote.protocol import CallDelta, Started, TokenEvent


def take(*events: TokenEvent) -> None:
    check = EventCheck(100)
    all_events: list[Started | TokenEvent] = [Started(1, 100, 0), *events]
    for number, event in enumerate(all_events, start=1):
        check.take(number, event)


def calls(*pieces: CallDelta) -> TokenEvent:
    return TokenEvent("", 1, calls=pieces)


def test_calls_in_pieces_one_after_the_other() -> None:
    first = CallDelta(0, "id", "f", '{"a"')
    take(
        calls(first), calls(CallDelta(0, arguments=": 1}"), CallDelta(1, "", "g")), calls(CallDelta(1, arguments="{}"))
    )


@pytest.mark.parametrize(
    "pieces",
    [
        (CallDelta(0, arguments="{}"),),
        (CallDelta(1, name="f"),),
        (CallDelta(0, name="f"), CallDelta(0, name="f")),
        (CallDelta(0, name="f"), CallDelta(2, name="g")),
        (CallDelta(0, name="f"), CallDelta(1, name="g"), CallDelta(0, arguments="{}")),
        (CallDelta(0, name="f"), CallDelta(0, id="later")),
        (CallDelta(-1, name="f"),),
    ],
    ids=["no name", "a gap before", "the name twice", "a gap", "back to the first", "its id later", "below zero"],
)
def test_pieces_that_belong_to_no_call(pieces: tuple[CallDelta, ...]) -> None:
    with pytest.raises(NonsenseError, match="a piece of call"):
        take(calls(*pieces))


@pytest.mark.parametrize(
    "event",
    [
        TokenEvent("", 1, reasoning="x" * 20 * TEXT_PER_TOKEN),
        TokenEvent("", 1, calls=(CallDelta(0, name="f", arguments="x" * 20 * TEXT_PER_TOKEN),)),
        TokenEvent("", 1, calls=(CallDelta(0, name="f" * 20 * TEXT_PER_TOKEN),)),
    ],
    ids=["reasoning", "arguments", "a name"],
)
def test_more_text_than_there_can_be_wherever_it_stands(event: TokenEvent) -> None:
    with pytest.raises(NonsenseError, match="more text than"):
        take(event)
