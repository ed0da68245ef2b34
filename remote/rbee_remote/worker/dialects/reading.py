"""Reading an answer that comes in bits: the text so far, and the pieces that have become certain.

A dialect reads with a script, a generator that goes through the answer from its start to its end as if all of it were
there: whatever waits for text does so by `yield`. So no dialect knows how the text is cut.

Markers that are tokens stand on the tape as one character each, a lone surrogate: decoded text has none, so it cannot
be mistaken for one. Going out they become their text again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Iterable
from typing import Any, TypeVar

from rbee_remote.worker.dialects.flow import SPACE, Flow
from rbee_remote.worker.dialects.interface import (
    CallArguments,
    CallBegin,
    Content,
    Piece,
    Reasoning,
    Tools,
    Vocabulary,
)
from rbee_remote.worker.dialects.json_text import JsonScanner, NotJson

T = TypeVar("T")
#: A script, or a part of one, that comes to a T. What it yields means: more text, please.
Script = Generator[None, None, T]
Say = Callable[[str], None]

_FIRST_SURROGATE = 0xDC00


class NoCall(Exception):
    """What looked like a call is none."""


class Ended(Exception):
    """The answer has ended where more was expected."""


class Reading:
    """One answer. tools: None where no calls are looked for."""

    def __init__(self, markers: Iterable[str], tools: Tools | None, vocabulary: Vocabulary) -> None:
        self.tools = tools
        self.in_reasoning = False
        self.out: list[Piece] = []
        self.content = Flow(self.out, Content, holds=tools is not None, fresh=False)
        self.reasoning = Flow(self.out, Reasoning, holds=True, fresh=True)
        tokens = [marker for marker in markers if marker in vocabulary]
        self._forms = {marker: chr(_FIRST_SURROGATE + number) for number, marker in enumerate(tokens)}
        self._texts = {ord(form): marker for marker, form in self._forms.items()}
        self._tape = ""
        self._at = 0
        self._names = tuple(tools.parameters) if tools else ()
        self._pins: list[int] = []  # where to go back to, should what is being read turn out to be something else
        self._ended = False
        self._has_called = False

    def add(self, text: str, *, marker: bool) -> None:
        keep = self._pins[0] if self._pins else self._at
        self._tape = self._tape[keep:] + (self._forms.get(text, text) if marker else text)
        self._at -= keep
        self._pins = [pin - keep for pin in self._pins]

    def end(self) -> None:
        self._ended = True

    def form(self, marker: str) -> str:
        """How the marker stands on the tape."""
        return self._forms.get(marker, marker)

    def text(self, taken: str) -> str:
        """What the model wrote, of what stands on the tape."""
        return taken.translate(self._texts) if self._texts else taken

    # What scripts take from the tape.

    def more(self) -> Script[None]:
        """Waits for text. Raises Ended if there will be none."""
        if self._ended:
            raise Ended
        yield

    def peek(self) -> Script[str]:
        """The next character, left where it is."""
        while self._at >= len(self._tape):
            yield from self.more()
        return self._tape[self._at]

    def skip(self, chars: str = SPACE) -> Script[None]:
        """Takes these characters as long as they come; the answer may end there."""
        while True:
            while self._at < len(self._tape) and self._tape[self._at] in chars:
                self._at += 1
            if self._at < len(self._tape) or self._ended:
                return
            yield from self.more()

    def next_is(self, *texts: str) -> Script[str]:
        """Takes that one of the texts which comes next, the longest; "" if none does."""
        while True:
            fitting = [text for text in texts if self._tape.startswith(text, self._at)]
            rest = self._tape[self._at : self._at + max(map(len, texts), default=0)]
            longest = max(fitting, key=len, default="")
            open_yet = any(len(text) > len(rest) and text.startswith(rest) for text in texts)
            if self._ended or not open_yet:
                self._at += len(longest)
                return longest
            yield from self.more()

    def expect(self, *texts: str) -> Script[str]:
        """Likewise. Raises NoCall where none comes, Ended where the answer ends within."""
        taken = yield from self.next_is(*texts)
        if not taken:
            rest = self._tape[self._at :]
            raise Ended if self._ended and any(text.startswith(rest) for text in texts) else NoCall
        return taken

    def tool(self) -> Script[str]:
        """Takes the name of a tool. Raises NoCall where it is none: nothing is held back to find out."""
        return (yield from self.expect(*self._names))

    def word(self, pattern: str = r"[A-Za-z0-9_-]*") -> Script[str]:
        """Takes as much as fits the pattern; the answer may end there."""
        while True:
            found = re.compile(pattern).match(self._tape, self._at)
            if found is None or found.end() < len(self._tape) or self._ended:
                taken = found[0] if found else ""
                self._at += len(taken)
                return taken
            yield from self.more()

    def until(self, say: Say, *stops: str) -> Script[str]:
        """Says what comes before the first of the stops, and takes the stop. Raises Ended with everything said, but for
        the beginning of a stop where only calls may stand."""
        pattern = re.compile("|".join(map(re.escape, sorted(stops, key=len, reverse=True))))
        while True:
            found = pattern.search(self._tape, self._at) if stops else None
            calls_alone = bool(self.tools and self.tools.required and say == self.content.say)
            edge = found.start() if found else self._certain_until(stops, cut=calls_alone)
            said, self._at = self._tape[self._at : edge], edge
            if said:
                say(self.text(said))
            if found:
                self._at = found.end()
                return found[0]
            if self._ended and edge < len(self._tape) and not self._has_called and (name := self._only_tool()):
                self.begin(name)
            yield from self.more()

    def _certain_until(self, stops: Iterable[str], *, cut: bool) -> int:
        """Up to where no stop can begin. cut: nor did one when the answer ended."""
        end = len(self._tape)
        if self._ended and not cut:
            return end
        for at in range(max(self._at, end - max(map(len, stops), default=1) + 1), end):
            if any(stop.startswith(self._tape[at:]) for stop in stops):
                return at
        return end

    def collect(self, *stops: str) -> Script[tuple[str, str]]:
        """The text before the first of the stops, and the stop."""
        parts: list[str] = []
        stop = yield from self.until(parts.append, *stops)
        return "".join(parts), stop

    def json(self, say: Say) -> Script[None]:
        """Says one JSON value. Raises NoCall where it stops being one."""
        scanner = JsonScanner()
        while not scanner.done:
            yield from self.peek()
            try:
                self._at, written = scanner.take(self._tape, self._at)
            except NotJson:
                raise NoCall from None
            if written:
                say(self.text(written))

    def json_object(self, name: str, call_id: str = "") -> Script[None]:
        """The arguments of a call of that name, which begins with them. Raises NoCall where there are none."""
        if not self.known(name):
            raise NoCall
        try:
            yield from self.skip()
            if (yield from self.peek()) != "{":
                raise NoCall
        except Ended:
            self.begin(name, call_id)
            raise
        self.begin(name, call_id)
        yield from self.json(self.argue)

    def json_value(self) -> Script[Any]:
        """One JSON value, read. Raises NoCall."""
        parts: list[str] = []
        yield from self.json(parts.append)
        try:
            return json.loads("".join(parts))
        except (ValueError, RecursionError):
            raise NoCall from None

    # Calls.

    def _only_tool(self) -> str:
        """The tool that is called if a call is required and there is one alone: even one that is cut off before its
        name is told."""
        return self._names[0] if self.tools and self.tools.required and len(self._names) == 1 else ""

    def known(self, name: Any) -> bool:
        return name in self._names

    def begin(self, name: str, call_id: str = "") -> None:
        """From here on it is a call. Raises NoCall for a tool that there is not."""
        if not self.known(name):
            raise NoCall
        self.in_reasoning = False
        self.content.pause()
        self._has_called = True
        self._pins.clear()
        self.out.append(CallBegin(name, call_id))

    def argue(self, text: str) -> None:
        self.out.append(CallArguments(text))

    def attempt(self, call: Script[None], marker: str = "", flow: Flow | None = None) -> Script[bool]:
        """Reads a call whose marker has just been taken. Where it turns out to be none, the marker belongs to the flow,
        content as a rule, and the tape stands behind it again; where that turns out after the call has begun, the rest
        is left on the tape."""
        self._pins.append(self._at - len(marker))
        try:
            yield from call
        except (NoCall, Ended) as error:
            if self._pins and isinstance(error, Ended) and (name := self._only_tool()):
                self.begin(name)
            if self._pins:
                self._at = self._pins.pop() + len(marker)
                if marker:
                    (flow or self.content).say(self.text(marker))
                return False
            if isinstance(error, Ended):
                raise
        self._pins.clear()
        return True

    def ahead(self, chars: str) -> Script[bool]:
        """Whether these characters come next, with any space between them. They are left where they are."""
        self._pins.append(self._at)
        try:
            for char in chars:
                yield from self.skip()
                yield from self.expect(char)
        except (NoCall, Ended):
            return False
        finally:
            self._at = self._pins.pop()
        return True

    def follows(self, marker: str) -> Script[bool]:
        """Takes the marker, and the space before it, if it comes next; else the tape stays as it is."""
        return (yield from self.optional(self._after_space(marker))) is not None

    def _after_space(self, marker: str) -> Script[str]:
        yield from self.skip()
        return (yield from self.expect(marker))

    def optional(self, part: Script[T]) -> Script[T | None]:
        """What the part comes to; None, with the tape as before, where it is not there."""
        self._pins.append(self._at)
        try:
            found = yield from part
        except (NoCall, Ended):
            self._at = self._pins.pop()
            return None
        self._pins.pop()
        return found


class ScriptReader:
    """The reader that follows a script; what follows the script's end is content."""

    def __init__(self, reading: Reading, script: Script[None]) -> None:
        self._reading = reading
        self._script = self._whole(script)
        next(self._script, None)

    @property
    def in_reasoning(self) -> bool:
        return self._reading.in_reasoning

    def feed(self, text: str, *, marker: bool = False) -> list[Piece]:
        if not text:
            return []
        self._reading.add(text, marker=marker)
        next(self._script, None)
        return self._pieces()

    def finish(self) -> list[Piece]:
        self._reading.end()
        next(self._script, None)
        self._reading.content.end()
        return self._pieces()

    def _whole(self, script: Script[None]) -> Script[None]:
        reading = self._reading
        try:
            yield from script
            yield from reading.until(reading.content.say)
        except Ended:
            yield

    def _pieces(self) -> list[Piece]:
        pieces = list(self._reading.out)
        self._reading.out.clear()
        return pieces
