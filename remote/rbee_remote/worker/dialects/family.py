"""What all dialects have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from rbee_remote.worker.dialects.interface import Dialect, Reader, Tools, Vocabulary
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.reading import Reading, Script, ScriptReader
from rbee_remote.worker.dialects.think import Think


@dataclass(frozen=True, slots=True)
class Family(Dialect, ABC):
    """A dialect with reasoning in a block of its own, if `think` says which, and calls and text after it."""

    think: Think | None = None

    name: ClassVar[str]
    #: Markers of calls. The first begins one.
    call_markers: ClassVar[tuple[str, ...]]

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
        return ScriptReader(reading, self._script(reading, prompt))

    def _script(self, reading: Reading, prompt: str) -> Script[None]:
        if self.think:
            yield from self.think.read(reading, prompt)
        if reading.tools is not None:
            yield from self.answer(reading)

    def answer(self, reading: Reading) -> Script[None]:
        """Reads what follows the reasoning: text, and calls behind the first of the call markers."""
        begin = reading.form(self.call_markers[0])
        while True:
            yield from reading.until(reading.content.say, begin)
            yield from reading.attempt(self.call(reading), begin)

    @abstractmethod
    def call(self, reading: Reading) -> Script[None]:
        """Reads what follows the marker that begins a call, up to its end."""

    def grammar(self, tools: Tools | None, content: str | None, vocabulary: Vocabulary, prompt: str) -> str:
        lark = Lark(vocabulary)
        thought = self.think.rule(lark, prompt) if self.think else ""
        said = [] if tools and tools.required else [lark.rule(content, "content") if content else lark.free()]
        if tools and tools.parameters:
            free = content is None and not tools.required
            begin = self.call_markers[0]
            said.append(self.calls_rule(lark, tools, lark.until_first(begin) if free else lark.mark(begin)))
        return lark.text(f"{thought}{lark.any_of(said)}")

    @abstractmethod
    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        """The rule for all calls. first: what is written before the first, the marker at its end included."""
