"""A worker's stream, cut anywhere: the client's bytes and what is counted of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.gateway.requests.tracking import MAX_EVENT, LostCountError, Progress, error_word
from rbee_remote.protocol import NO_CHOICE, RESUME_FIELD, Resume, Sent, decode
from tests.doubles.gateway import STATE, USAGE, Step, chat_script, plain, rendered

WORDS = ["one ", "two ", "three ", "four ", "five "]
SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=30)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    found: list[bytes] = []
    at = 0
    while at < len(data):
        size = sizes[len(found) % len(sizes)]
        found.append(data[at : at + size])
        at += size
    return found


def counted(progress: Progress) -> dict[str, Sent]:
    return decode(Resume, progress.resume()[RESUME_FIELD]).choices


@given(SIZES, st.integers(1, 3))
def test_comments_are_taken_out_and_nothing_else(sizes: list[int], choices: int) -> None:
    steps, progress = chat_script(WORDS, choices), Progress()
    given_out = [progress.feed(piece) for piece in pieces(rendered(steps), sizes)]
    assert b"".join(given_out) + progress.finish() == plain(steps)
    assert all(not piece or piece.endswith(b"\n\n") for piece in given_out)
    assert progress.can_resume
    assert progress.usage == USAGE
    assert progress.lines == sum(len(step.lines) for step in steps)
    for choice in range(choices):
        own = [step for step in steps if step.choice == choice]
        tokens = tuple(token for step in own for token in step.tokens)
        assert counted(progress)[str(choice)] == Sent(tokens, sum(len(step.lines) for step in own))
    assert counted(progress)[str(NO_CHOICE)] == Sent((), 2)


def test_the_opening_of_an_answer_is_no_token() -> None:
    """What a chat begins with comes before its prompt is computed: the time to it is not the time to a first token."""
    opening, *others = chat_script(WORDS)
    progress = Progress()
    progress.feed(rendered([opening]))
    assert (progress.lines, progress.has_tokens) == (len(opening.lines), False)
    progress.feed(rendered(others))
    assert progress.has_tokens


@given(SIZES, st.integers(0, 4000))
def test_what_was_given_out_is_what_is_counted_wherever_it_ends(sizes: list[int], end: int) -> None:
    """And what is missing is what a worker sends that is told so."""
    steps, progress = chat_script(WORDS), Progress()
    begun = b"".join(progress.feed(piece) for piece in pieces(rendered(steps)[:end], sizes))
    assert begun.count(b"data:") == progress.lines
    if not progress.can_resume:
        return
    resume = decode(Resume, json.loads(json.dumps(progress.resume()))[RESUME_FIELD])
    assert resume.state == STATE
    progress.begin_stream()
    rest = b"".join(progress.feed(piece) for piece in pieces(rendered(steps, resume), sizes))
    assert begun + rest == plain(steps)
    assert counted(progress)["0"].tokens == (0, 1, 2, 3, 4)


@given(SIZES)
def test_a_stream_of_no_tracking_passes_as_it_is(sizes: list[int]) -> None:
    stream = b": waiting\n\nevent: a\ndata: 1\n\ndata: 2\ndata: 3\n\n: waiting\n\ndata: unfinished"
    progress = Progress()
    given_out = b"".join(progress.feed(piece) for piece in pieces(stream, sizes))
    assert given_out + progress.finish() == stream
    assert progress.lines == 3
    assert not progress.can_resume


def test_heartbeats_pass_and_count_for_nothing() -> None:
    progress = Progress()
    assert progress.feed(b": waiting\n\n") == b": waiting\n\n"
    assert progress.lines == 0


def test_whole_pieces_without_comments_are_not_copied() -> None:
    piece = b"data: 1\n\n"
    assert Progress().feed(piece) is piece


@pytest.mark.parametrize(
    "told",
    [
        b": rbee {",
        b": rbee []",
        b": rbee null",
        b': rbee {"choice": 0}',
        b': rbee {"choice": true, "tokens": [], "lines": 0}',
        b': rbee {"choice": 0, "tokens": ["x"], "lines": 0}',
        b': rbee {"choice": 0, "tokens": [99999999999999999999], "lines": 0}',
        b': rbee {"choice": 0, "tokens": [], "lines": -1}',
        b': rbee {"choice": 0, "tokens": [], "lines": 0, "state": 1}',
        b': rbee {"choice": 0, "tokens": [], "lines": 2}\n\ndata: 1\n\n: rbee {"choice": 0, "tokens": [], "lines": 0}',
        b': rbee {"choice": ' + b"[" * 100_000,
    ],
)
def test_a_comment_that_is_none_is_an_error(told: bytes) -> None:
    with pytest.raises(LostCountError):
        Progress().feed(told + b"\n\n")


def test_an_event_without_an_end_is_bounded() -> None:
    progress = Progress()
    progress.feed(b"data: " + b"x" * (MAX_EVENT - 6))
    with pytest.raises(LostCountError):
        progress.feed(b"x")


def test_a_line_that_nobody_announced_ends_what_can_be_resumed() -> None:
    progress = Progress()
    progress.feed(rendered([Step(0, (1,), ("a",))]))
    assert progress.can_resume
    assert progress.feed(b"data: stray\n\n") == b"data: stray\n\n"
    assert not progress.can_resume


ERROR = {"message": "the worker is ending", "type": "server_error", "param": None, "code": "WORKER_GONE"}


def test_the_workers_own_end_is_not_given_out_where_another_can_go_on() -> None:
    progress = Progress()
    end = b"data: " + json.dumps({"error": ERROR}).encode() + b"\n\n"
    assert progress.feed(rendered([Step(0, (1,), ("a",))]) + end) == b"data: a\n\n"
    assert progress.failure == "WORKER_GONE"
    untracked = Progress()
    assert untracked.feed(b"data: a\n\n" + end) == b"data: a\n\n" + end
    assert untracked.failure == ""


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (ERROR, "WORKER_GONE"),
        ({"code": "WORKER_CRASHED"}, "WORKER_CRASHED"),
        ({"code": None, "type": "invalid_request_error"}, "invalid_request_error"),
        ({"type": "overloaded_error"}, "overloaded_error"),
        ({"code": []}, "error"),
        (3, ""),
    ],
)
def test_an_error_is_known_by_its_code_or_type(error: Any, word: str) -> None:
    assert error_word(json.dumps({"error": error}).encode()) == word


def test_an_error_of_the_request_is_told_to_the_client() -> None:
    """Announced among the lines of no choice, as a worker does."""
    progress, told = Progress(), json.dumps({"error": {"code": "DEADLINE_EXCEEDED", "message": "late"}})
    line = b"data: " + told.encode() + b"\n\n"
    stream = rendered([Step(0, (1,), ("a",)), Step(NO_CHOICE, (), (told,), USAGE)])
    assert progress.feed(stream) == b"data: a\n\n" + line
    assert (progress.error, progress.failure, progress.usage) == ("DEADLINE_EXCEEDED", "", USAGE)


def test_a_token_of_which_the_client_has_no_line_is_left_to_the_next_worker() -> None:
    progress = Progress()
    progress.feed(rendered([Step(0, (1,), ("a",)), Step(0, (2, 3), ("b", "c"))])[:-19])
    assert counted(progress)["0"] == Sent((1,), 1)
    progress = Progress()
    progress.feed(rendered([Step(0, (1,), ("a",)), Step(0, (2, 3), ("b", "c"))])[:-3])
    assert counted(progress)["0"] == Sent((1, 2, 3), 2)


@given(st.binary(max_size=40))
def test_any_line_may_be_asked(line: bytes) -> None:
    assert error_word(line) == ""
