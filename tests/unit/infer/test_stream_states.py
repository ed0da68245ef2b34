"""The table of the answer's stream, and the picture of it in the docs."""

from __future__ import annotations

from rbee.infer.stream import TRANSITIONS, StreamEvent, StreamState
from tests.pictures import in_docs, mermaid


def test_the_picture_in_the_docs_is_the_table() -> None:
    assert in_docs("States of the answer's stream") == mermaid(TRANSITIONS)


def test_the_table_is_whole() -> None:
    """Each state says what each event does; only an outage can last too long, and what is lost stays so."""
    assert set(TRANSITIONS) == set(StreamState)
    assert TRANSITIONS[StreamState.LOST] == {}
    assert set(TRANSITIONS[StreamState.CONNECTED]) == set(StreamEvent) - {StreamEvent.EXPIRED}
    for state in (StreamState.SUSPECT, StreamState.RECONNECTING):
        assert set(TRANSITIONS[state]) == set(StreamEvent)


def test_whatever_is_heard_ends_an_outage() -> None:
    heard = {row[StreamEvent.HEARD] for row in TRANSITIONS.values() if row}
    assert heard == {StreamState.CONNECTED}
