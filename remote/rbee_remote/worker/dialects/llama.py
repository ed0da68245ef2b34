"""Llama 3 and 4: an answer that is a call and nothing else.

{"name": "NAME", "parameters": {…}}; {"name": …}             also after <|python_tag|>
<function=NAME>{…}</function>
<|python_tag|>NAME.call(key="value")                          for tools that Llama 3.1 knows from its training
[NAME(key="value"), NAME(…)]                                 where the template asks Llama 4 for it
"""

from __future__ import annotations

from rbee_remote.worker.dialects.calls import Keys, call_rule, read_calls
from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark
from rbee_remote.worker.dialects.pythonic import list_rule, read_list, read_one
from rbee_remote.worker.dialects.reading import Reading, Script

_TAG, _START, _END = "<|python_tag|>", "<|python_start|>", "<|python_end|>"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_KEYS = Keys(arguments=("parameters", "arguments"))


class Llama(Family):
    name = "llama"
    call_markers = (_TAG, _START, _END)

    def writes_calls(self, template: str) -> bool:
        marked = _TAG in template or _START in template or f"{_FUNCTION}example_function_name" in template
        return marked or '"parameters": dictionary of argument name' in template

    def answer(self, reading: Reading) -> Script[None]:
        if not reading.tools:
            return
        yield from reading.attempt(self.call(reading))
        begins = reading.form(_TAG), reading.form(_START), _FUNCTION
        while True:
            marker = yield from reading.until(reading.content.say, *begins)
            call = self._function(reading) if marker == _FUNCTION else self.call(reading)
            yield from reading.attempt(call, marker)

    def call(self, reading: Reading) -> Script[None]:
        yield from reading.skip()
        char = yield from reading.peek()
        if char == "{":
            yield from read_calls(reading, _KEYS, bare=True)
        elif char == "[":
            yield from (
                read_calls(reading, _KEYS, bare=True) if (yield from reading.ahead("[{")) else read_list(reading)
            )
        elif char == "<":
            yield from reading.expect(_FUNCTION)
            yield from self._function(reading)
        else:
            yield from read_one(reading, ".call")
        yield from reading.follows(reading.form(_END))

    def _function(self, reading: Reading) -> Script[None]:
        name = yield from reading.tool()
        yield from reading.expect(">")
        yield from reading.json_object(name)
        yield from reading.follows(_FUNCTION_END)

    def text_rule(self, lark: Lark, tools: Tools | None, content: str | None) -> str:
        if tools:
            lark.forbid(r"/[{\[]/")
        return Family.text_rule(self, lark, tools, content)

    def first_rule(self, lark: Lark, *, free: bool) -> str:  # noqa: ARG002 - there is no text before a call
        return " ".join(f"({lark.mark(marker)})?" for marker in (_TAG,) if lark.has(marker))

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        call = lark.rule(call_rule(lark, tools, _KEYS), "call")
        return f"{first} {call}{lark.again(f'{chr(34)}; {chr(34)} {call}', tools)}"


class LlamaPythonic(Llama):
    """What is read is the same."""

    def writes_calls(self, template: str) -> bool:
        return "[func_name1(" in template

    def first_rule(self, lark: Lark, *, free: bool) -> str:  # noqa: ARG002 - there is no text before a call
        return f"({lark.mark(_START)})?" if lark.has(_START) else ""

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        return f"{first} {list_rule(lark, tools)}"
