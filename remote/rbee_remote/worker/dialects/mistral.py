"""Mistral: a marker, then calls as a list, or each as its name and its arguments.

    [TOOL_CALLS][{"name": "NAME", "arguments": {…}, "id": "…"}, …]      Nemo, Small 3, Mixtral
    [TOOL_CALLS]NAME[ARGS]{…}[TOOL_CALLS]NAME[ARGS]{…}                    Devstral, Ministral 3, Magistral
    [TOOL_CALLS]NAME[CALL_ID]…[ARGS]{…}                                  Small 3.2

Reasoning, of Magistral and Ministral, is [THINK]…[/THINK].
"""

from __future__ import annotations

from typing import ClassVar

from rbee_remote.worker.dialects.calls import call_rule, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Ended, NoCall, Reading, Script

_BEGIN, _ID, _ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"


class Mistral(Family):
    """Calls as a list. What is read is the same for both."""

    name = "mistral"
    call_markers = (_BEGIN, _ID, _ARGUMENTS)

    def writes_calls(self, template: str) -> bool:
        return _BEGIN in template

    def bare_call(self, reading: Reading) -> Script[None]:
        return self._calls(reading, marked=False)

    def call(self, reading: Reading) -> Script[None]:
        return self._calls(reading, marked=True)

    def _calls(self, reading: Reading, *, marked: bool) -> Script[None]:
        yield from reading.skip()
        if (yield from reading.peek()) in "[{":
            yield from read_calls(reading, bare=not marked)
            return
        yield from self._named(reading, marked=marked)
        while (yield from reading.attempt(self._named(reading, marked=False))):
            pass

    def _named(self, reading: Reading, *, marked: bool) -> Script[None]:
        yield from reading.skip()
        name = yield from reading.tool()
        call_id = ""
        try:
            yield from reading.skip()
            if (yield from reading.next_is(reading.form(_ID))):
                call_id = yield from reading.word()
            yield from reading.skip()
            yield from reading.next_is(reading.form(_ARGUMENTS))
            yield from reading.skip()
            if (yield from reading.peek()) != "{":
                raise NoCall
        except Ended:
            if marked:
                reading.begin(name, call_id)
            raise
        reading.begin(name, call_id)
        yield from reading.json(reading.argue)

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call = lark.rule(call_rule(lark, tools), "call")
        return f'{first} "[" {call}{lark.again(quoted(", ") + " " + call, tools)} "]"'


class MistralNamed(Mistral):
    """Each call with its name."""

    with_id: ClassVar[bool] = False

    def writes_calls(self, template: str) -> bool:
        return _BEGIN in template and _ARGUMENTS in template

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call_id = f"{lark.mark(_ID)} /[a-zA-Z0-9]{{9}}/ " if self.with_id else ""
        bodies = [
            f"{quoted(name)} {call_id}{lark.mark(_ARGUMENTS)} {lark.arguments(schema)}"
            for name, schema in tools.parameters.items()
        ]
        call = lark.any_of(bodies)
        return f"{first} {call}{lark.again(f'{lark.mark(_BEGIN)} {call}', tools)}"


class MistralNumbered(MistralNamed):
    """Each call with its name and an id."""

    with_id = True

    def writes_calls(self, template: str) -> bool:
        return all(marker in template for marker in self.call_markers)
