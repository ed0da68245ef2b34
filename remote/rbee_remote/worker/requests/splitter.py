"""Where an answer is split: into its content, the model's reasoning and its calls of tools.

Rules
- A dialect's reader says what is what; nothing after this looks at an answer's text again.
- A control token that the dialect knows reaches the reader as a marker; all other text comes in whole characters.
- Stop strings act on content alone.
- Everything here runs on the engine's thread, as the rest of a `Generation` does.
"""

from __future__ import annotations

import codecs
import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from rbee_remote.protocol import CallDelta, ErrorCode, RemoteError
from rbee_remote.worker.dialects.interface import CallArguments, CallBegin, Content, Piece, Reader, Reasoning
from rbee_remote.worker.requests.stream import TextStream

_log = logging.getLogger("rbee.worker")


class Parts(NamedTuple):
    """What has become certain of an answer."""

    text: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadBy:
    """How an answer is read, by one reader, which is fresh.

    markers: token ids to the texts of the dialect's markers. reasoning_end: tokens that end a block of reasoning, none
    where nothing may. think_budget: tokens of reasoning after which that happens, None for no limit. most_calls: calls
    at most, None for any number.
    """

    reader: Reader
    markers: Mapping[int, str] = field(default_factory=dict)
    reasoning_end: tuple[int, ...] = ()
    think_budget: int | None = None
    most_calls: int | None = None


class Splitter:
    """content: takes what is content, and finds the stop strings in it. name: what the ids of calls are made of, where
    the model gives none; "" for any.

    forced: tokens that come next, whatever the model would choose. calls: how many of the answer are kept. over: the
    next call would be one too many.
    """

    def __init__(self, by: ReadBy, content: TextStream, name: str = "") -> None:
        self.forced: deque[int] = deque()
        self.calls = 0
        self.over = False
        self._by = by
        self._content = content
        self._name = name or secrets.token_hex(8)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._thought = 0  # tokens of reasoning
        self._may_force = bool(by.reasoning_end)
        self._watch_budget()

    def feed(self, token: int, piece: bytes) -> Parts:
        """Take the next token. Raises RemoteError INTERNAL where the reader fails on it."""
        reader, thinking = self._by.reader, self._by.reader.in_reasoning
        marker = self._by.markers.get(token)
        if marker is None:
            text = self._decoder.decode(piece)
            pieces = _of(lambda: reader.feed(text)) if text else []
        else:
            before = self._decoder.decode(b"", final=True)
            pieces = _of(lambda: reader.feed(before)) if before else []
            pieces = [*pieces, *_of(lambda: reader.feed(marker, marker=True))]
        if thinking:
            self._thought += 1
        self._watch_budget()
        return self._parts(pieces)

    def finish(self) -> Parts:
        """The rest, once no token follows. Raises as `feed` does."""
        reader, rest = self._by.reader, self._decoder.decode(b"", final=True)
        pieces = _of(lambda: reader.feed(rest)) if rest else []
        text, reasoning, calls = self._parts([*pieces, *_of(reader.finish)])
        return Parts(text + self._content.finish(), reasoning, calls)

    def _watch_budget(self) -> None:
        """A block that the forced tokens do not end is left alone."""
        if self._by.think_budget is None or self.forced:
            return
        if not self._by.reader.in_reasoning:
            self._may_force = bool(self._by.reasoning_end)
        elif self._may_force and self._thought >= self._by.think_budget:
            self._may_force = False
            self.forced.extend(self._by.reasoning_end)

    def _parts(self, pieces: list[Piece]) -> Parts:
        text, reasoning, calls = "", "", []
        for piece in pieces:
            if isinstance(piece, Content):
                text += self._content.add(piece.text)
            elif isinstance(piece, Reasoning):
                reasoning += piece.text
            elif isinstance(piece, CallBegin):
                self.over = self.over or self.calls == self._by.most_calls
                if not self.over:
                    self.calls += 1
                    calls.append(CallDelta(self.calls - 1, piece.id or self._new_id(), piece.name))
            elif isinstance(piece, CallArguments) and not self.over:
                calls.append(CallDelta(self.calls - 1, arguments=piece.text))
        return Parts(text, reasoning, tuple(calls))

    def _new_id(self) -> str:
        """Of the call that is the last one. Nine letters and digits, because Mistral's templates take no other."""
        return hashlib.blake2b(f"{self._name}:{self.calls}".encode(), digest_size=5).hexdigest()[:9]


def _of(read: Callable[[], list[Piece]]) -> list[Piece]:
    """A reader meets whatever a model writes: a mistake in one is to end that answer, and not the worker."""
    try:
        return read()
    except Exception as error:
        _log.exception("an answer cannot be read")
        raise RemoteError(
            ErrorCode.INTERNAL,
            f"the answer cannot be read: {type(error).__name__}: {error}",
            hint="see the worker's log",
        ) from error
