"""Whether the events of an answer can be those of a worker. Pure.

What bounds an answer is what the worker itself said at its start, and that has a bound as well: otherwise a node could
talk without end, and the keeper, which keeps the text to save it, would run out of memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from rbee.node.socket_http import NonsenseError
from rbee_remote.protocol import CallDelta, Done, Started, TokenEvent

#: Tokens of one answer; ten times the largest context that any model has been trained for.
MOST_TOKENS = 2**24
#: Characters of one answer, its reasoning and calls included, and of what a token may add to it on average: the longest
#: tokens are runs of spaces.
MOST_TEXT = 64 * 2**20
TEXT_PER_TOKEN = 1024
#: Events without a token: the start, the text that was held back at the end, the end.
MORE_EVENTS = 16


class EventCheck:
    """Listens to one answer, event by event. asked: the most tokens that were asked for, None for any number."""

    def __init__(self, asked: int | None) -> None:
        self._most = MOST_TOKENS if asked is None else asked
        self._started = False
        self._events = 0
        self._tokens = 0
        self._text = 0
        self._calls = 0

    def take(self, number: int, event: Started | TokenEvent | Done) -> None:
        """Take in the next event. Raises NonsenseError for one that no worker sends at this point."""
        self._events += 1
        if number != self._events:
            raise NonsenseError(f"event {number} after event {self._events - 1}")
        if isinstance(event, Started):
            self._check_start(event)
        elif isinstance(event, TokenEvent):
            self._check_token(event)
        elif not (0 <= event.usage.completion_tokens <= self._most and 0 <= event.usage.prompt_tokens <= MOST_TOKENS):
            raise NonsenseError("an answer that took an impossible number of tokens")

    def _check_start(self, event: Started) -> None:
        if self._started:
            raise NonsenseError("an answer with two starts")
        if not (0 <= event.max_tokens <= self._most and 0 <= event.prompt_tokens <= MOST_TOKENS):
            raise NonsenseError("an answer of more tokens than were asked for")
        self._started = True
        self._most = event.max_tokens

    def _check_token(self, event: TokenEvent) -> None:
        if not self._started:  # `Done` alone can come without: a request may end while it waits for a slot
            raise NonsenseError("an answer without a start")
        if not self._tokens <= event.tokens <= self._most:
            raise NonsenseError(f"{event.tokens} tokens after {self._tokens}, of {self._most}")
        self._tokens = event.tokens
        self._text += len(event.text) + len(event.reasoning)
        if event.calls:
            self._check_calls(event.calls)
        longest = min(MOST_TEXT, TEXT_PER_TOKEN * (event.tokens + MORE_EVENTS))
        if self._text > longest or self._events > 2 * self._most + MORE_EVENTS:
            raise NonsenseError(f"more text than {event.tokens} tokens can have")

    def _check_calls(self, pieces: Sequence[CallDelta]) -> None:
        """Calls come one after the other; each has its name in its first piece, and there alone."""
        for piece in pieces:
            if piece.name:
                self._calls += 1
            if piece.index != self._calls - 1 or (piece.id and not piece.name):
                raise NonsenseError(f"a piece of call {piece.index} after {self._calls} calls")
            self._text += len(piece.name) + len(piece.id) + len(piece.arguments)
