"""A worker's stream of events, cut into what its client gets and what the worker says of it for whoever goes on. Pure.

Rules
- The client gets whole events, never half a line: what it has can be counted, and the next worker begins where it ends.
- A line is counted when it is given out, once, for the choice that the comment before it names.
- An event of a token costs no JSON but that of its comment.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass, field
from typing import Any

from rbee_remote.protocol import (
    NO_CHOICE,
    RESUME_FIELD,
    TRACK_COMMENT,
    ErrorCode,
    ProtocolError,
    Resume,
    Sent,
    Tracked,
    TrackedUsage,
    decode,
    encode,
    parse_json,
)

#: Bytes of one event at most: more than any worker sends, whose longest ends a whole answer.
MAX_EVENT = 8 * 2**20
_END = b"\n\n"
_COMMENT = TRACK_COMMENT.encode()
#: What a worker says in its stream when it cannot go on and another could; the last two are Anthropic's.
_DYING = frozenset(
    {
        ErrorCode.WORKER_GONE.value,
        ErrorCode.WORKER_CRASHED.value,
        ErrorCode.INTERNAL.value,
        "api_error",
        "overloaded_error",
    }
)


class LostCountError(ValueError):
    """The stream is not what a worker of ours sends; the text is a clause."""


@dataclass(slots=True)
class _Choice:
    """tokens: told. lines: given out."""

    tokens: array[int] = field(default_factory=lambda: array("q"))
    lines: int = 0


@dataclass(slots=True)
class Progress:
    """How far an answer has come, over all workers that it had.

    lines: data lines that were given out. has_tokens: whether a token was told. usage: None until it was told. failure:
    what the worker itself said it ends with, "" while it has not, or where the client is told: nothing is given out
    after it. error: the code of an error that the client was told, "" for none.
    """

    lines: int = 0
    has_tokens: bool = False
    usage: TrackedUsage | None = None
    failure: str = ""
    error: str = ""
    _state: dict[str, Any] | None = None
    _choices: dict[int, _Choice] = field(default_factory=dict)
    _rest: bytes = b""
    _choice: _Choice | None = None
    _announced: int = 0
    _unseen: int = 0
    _is_counted: bool = True

    @property
    def can_resume(self) -> bool:
        """Whether another worker can be told what the client has."""
        return self._state is not None and self._is_counted

    @property
    def told(self) -> int:
        """Tokens and lines so far: more than ever before where the answer has got on."""
        return self.lines + sum(len(choice.tokens) for choice in self._choices.values())

    def resume(self) -> dict[str, Any]:
        """The field to be added to the request's body. `can_resume` must hold.

        Tokens of which the client has no line, though they gave some, are left to the next worker: what their lines say
        beside their text, such as probabilities, comes of choosing them.
        """
        assert self._state is not None
        if self._unseen and self._choice is not None:
            del self._choice.tokens[-self._unseen :]
            self._unseen = 0
        choices = {str(number): Sent(tuple(each.tokens), each.lines) for number, each in self._choices.items()}
        return {RESUME_FIELD: encode(Resume(self._state, choices))}

    def begin_stream(self) -> None:
        """Another worker's stream follows: what the one before left unfinished never was."""
        self._rest, self._choice, self._announced, self._unseen, self.failure = b"", None, 0, 0, ""

    def feed(self, piece: bytes) -> bytes:
        """What is to be given to the client now, "" for nothing yet. Raises LostCountError."""
        data = self._rest + piece if self._rest else piece
        if data.endswith(_END):
            self._rest = b""
        else:
            end = data.rfind(_END)
            if end < 0:
                return self._keep(data)
            self._keep(data[end + 2 :])
            data = data[: end + 2]
        return self._take(data)

    def finish(self) -> bytes:
        """What is left at the stream's clean end: an event without its empty line."""
        rest, self._rest = self._rest, b""
        return rest if not rest.startswith(_COMMENT) else b""

    def _keep(self, rest: bytes) -> bytes:
        if len(rest) > MAX_EVENT:
            raise LostCountError(f"an event of more than {MAX_EVENT} bytes")
        self._rest = rest
        return b""

    def _take(self, data: bytes) -> bytes:
        """data: whole events."""
        events = data[:-2].split(_END)
        given = []
        for event in events:
            if event.startswith(_COMMENT):
                self._note(event)
                continue
            if lines := event.count(b"\ndata:") + event.startswith(b"data:"):
                if (self._announced < lines or self._choice is self._last) and self._is_failure(event):
                    break
                self._count(lines)
            given.append(event)
        if len(given) == len(events):
            return data
        return _END.join([*given, b""]) if given else b""

    def _count(self, lines: int) -> None:
        self.lines += lines
        if self._announced < lines or self._choice is None:
            self._is_counted = False  # nobody knows whose they are
            return
        self._announced -= lines
        self._choice.lines += lines
        self._unseen = 0

    def _note(self, comment: bytes) -> None:
        """Take a tracking comment in. Checked by hand: `decode` would take longer than all the rest."""
        if self._announced:
            raise LostCountError("fewer lines came than were announced")
        try:
            told = json.loads(comment[len(_COMMENT) :].decode())
            number, lines = told["choice"], told["lines"]
            if type(number) is not int or type(lines) is not int or lines < 0:
                raise ValueError("choice and lines must be numbers")
            choice = self._choices.get(number)
            if choice is None:
                choice = self._choices[number] = _Choice()
            choice.tokens.extend(told["tokens"])
            self.has_tokens = self.has_tokens or bool(told["tokens"])
            if told.get("state") is not None or told.get("usage") is not None:  # twice in a stream
                self._note_rare(decode(Tracked, {**told, "tokens": []}))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise LostCountError(f"a tracking comment that is none: {error}"[:200]) from error
        self._choice, self._announced = choice, lines
        self._unseen = len(told["tokens"]) if lines else 0

    @property
    def _last(self) -> _Choice | None:
        """Of the lines that belong to none, the last ones: an error is one of them."""
        return self._choices.get(NO_CHOICE)

    def _note_rare(self, told: Tracked) -> None:
        if told.state is not None:
            self._state = told.state
        if told.usage is not None:
            self.usage = told.usage

    def _is_failure(self, event: bytes) -> bool:
        """Whether a line is the worker's own end, which the client need not hear of where another one can go on."""
        if b'"error"' not in event:
            return False
        word = error_word(event.partition(b"data:")[2])
        if word in _DYING and (self.can_resume or not self.lines):
            self.failure = word
            return True
        self.error = word
        return False


def error_word(body: bytes) -> str:
    """The code, or type, of an error in OpenAI's or Anthropic's form, or of a response that failed; "" for what is
    none."""
    try:
        said = parse_json(body)
    except ProtocolError:
        return ""
    if isinstance(said, dict) and isinstance(said.get("response"), dict):
        said = said["response"]
    error = said.get("error") if isinstance(said, dict) else None
    if not isinstance(error, dict):
        return ""
    words = [word for word in (error.get("code"), error.get("type")) if isinstance(word, str) and word]
    return words[0] if words else "error"
