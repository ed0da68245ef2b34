"""What all dialects have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from rbee_remote.worker.dialects.calls import read_calls
from rbee_remote.worker.dialects.interface import Dialect, Reader, Tools, Vocabulary
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import NoCall, Reading, Script, ScriptReader
from rbee_remote.worker.dialects.think import Call, Think


@dataclass(frozen=True, slots=True)
class Family(Dialect, ABC):
    """A dialect with reasoning in a block of its own, if `think` says which, and calls and text after it."""

    think: Think | None = None

    name: ClassVar[str]
    #: Markers of calls. The first begins one.
    call_markers: ClassVar[tuple[str, ...]]
    #: Which characters begin JSON that is a call without its marker, at the very start: small models forget it.
    bare: ClassVar[str] = ""
    #: Whether the model may end its reasoning with a call, without the end of the block.
    ends_reasoning: ClassVar[bool] = False

    @property
    def markers(self) -> tuple[str, ...]:
        return (*(self.think.markers if self.think else ()), *self.call_markers)

    @property
    def reasoning_end(self) -> str:
        return self.think.end if self.think else ""

    def recognises(self, template: str) -> bool:
        return self.writes_calls(template) and (self.think is None or self.think.is_in(template))

    @abstractmethod
    def writes_calls(self, template: str) -> bool:
        """Whether calls in this template look as this family's do."""

    def reader(self, tools: Tools | None, vocabulary: Vocabulary, prompt: str) -> Reader:
        reading = Reading(self.markers, tools, vocabulary)
        return ScriptReader(reading, self.script(reading, prompt))

    def script(self, reading: Reading, prompt: str) -> Script[None]:
        if self.think:
            call = Call(self.call_markers[0], self.call) if self.ends_reasoning else None
            yield from self.think.read(reading, prompt, call)
        yield from self.answer(reading)

    def answer(self, reading: Reading) -> Script[None]:
        """Reads what follows the reasoning: text, and calls behind the first of the call markers."""
        if reading.tools is None:
            return
        begin = reading.form(self.call_markers[0])
        yield from reading.attempt(self.bare_call(reading))
        while True:
            yield from reading.until(reading.content.say, begin)
            yield from reading.attempt(self.call(reading), begin)

    def bare_call(self, reading: Reading) -> Script[None]:
        """A call without its marker, at the very start."""
        yield from reading.skip()
        if (yield from reading.peek()) not in self.bare:
            raise NoCall
        yield from read_calls(reading, bare=True)

    @abstractmethod
    def call(self, reading: Reading) -> Script[None]:
        """Reads what follows the marker that begins a call, up to its end."""

    def grammar(self, tools: Tools | None, content: str | None, vocabulary: Vocabulary, prompt: str) -> str:
        lark = Lark({marker: vocabulary[marker] for marker in self.markers if marker in vocabulary})
        beside = self.call_markers[0] if self.ends_reasoning else ""
        thought = self.think.rule(lark, prompt, beside) if self.think else ""
        said = [] if tools and tools.required else [self.text_rule(lark, tools, content)]
        if tools and tools.parameters:
            first = self.first_rule(lark, free=content is None and not tools.required)
            said.append(self.calls_rule(lark, tools, first))
        return lark.text(f"{thought}{lark.any_of(said)}")

    def text_rule(self, lark: Lark, tools: Tools | None, content: str | None) -> str:  # noqa: ARG002 - for others
        """The rule for an answer that is no call."""
        return lark.rule(content, "content") if content else lark.free()

    def first_rule(self, lark: Lark, *, free: bool) -> str:
        """What is written before the first call, its marker included. free: there may be text."""
        begin = self.call_markers[0]
        return lark.until_first(begin) if free else lark.mark(begin)

    @abstractmethod
    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        """The rule for all calls. first: from `first_rule`."""


class Sectioned(Family, ABC):
    """Calls stand in a section. The first three of the call markers begin the section, end it, and begin one call."""

    def call(self, reading: Reading) -> Script[None]:
        _, section_end, begin, *_ = map(reading.form, self.call_markers)
        yield from reading.skip()
        yield from reading.expect(begin)
        yield from self.one_call(reading)
        while (yield from reading.follows(begin)):
            if not (yield from reading.attempt(self.one_call(reading), begin)):
                return
        yield from reading.follows(section_end)

    @abstractmethod
    def one_call(self, reading: Reading) -> Script[None]:
        """Reads what follows the marker that begins one call, up to its end."""
