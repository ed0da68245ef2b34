"""GLM 4.5 to 4.7, Spark, Ling 3 and Laguna: a name, and pairs of tags for each argument.

<think>…</think> text <tool_call>NAME
<arg_key>KEY</arg_key>
<arg_value>value</arg_value>
</tool_call>
"""

from __future__ import annotations

from rbee_remote.worker.dialects.family import Family
from rbee_remote.worker.dialects.flow import SPACE
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Ended, NoCall, Reading, Script
from rbee_remote.worker.dialects.tagged import Arguments, arguments_rule

_BEGIN, _END = "<tool_call>", "</tool_call>"
_KEY, _KEY_END, _VALUE, _VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"


class Glm(Family):
    name = "glm"
    call_markers = (_BEGIN, _END, _KEY, _KEY_END, _VALUE, _VALUE_END)

    def writes_calls(self, template: str) -> bool:
        return _BEGIN in template and _KEY in template

    def call(self, reading: Reading) -> Script[None]:
        end, key, key_end, value, value_end = map(reading.form, self.call_markers[1:])
        name = yield from _name(reading, end, key)
        reading.begin(name)
        arguments = Arguments(reading, name)
        while (yield from reading.follows(key)):
            written, _ = yield from reading.collect(key_end)
            yield from reading.skip()
            yield from reading.expect(value)
            yield from arguments.read(written.strip(SPACE), value_end)
        arguments.end()
        yield from reading.follows(end)

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        begin, end, key_begin, key_end, value_begin, _ = map(lark.mark, self.call_markers)

        def pair(key: str, value: str) -> str:
            return f'"\\n" {key_begin} {key} {key_end} "\\n" {value_begin} {value}'

        bodies = [
            f"{quoted(name)} {arguments_rule(lark, schema, pair, _VALUE_END)}"
            for name, schema in tools.parameters.items()
        ]
        block = lark.rule(f'{lark.any_of(bodies)} "\\n" {end}', "block")
        return first + " " + block + lark.again(f'"\\n" {begin} {block}', tools)


def _name(reading: Reading, *ends: str) -> Script[str]:
    """Up to a line's end, or to what follows on the same line. It is left there."""
    yield from reading.skip()
    name = yield from reading.tool()
    try:
        if (yield from reading.peek()) not in (*SPACE, *(end[0] for end in ends)):
            raise NoCall
    except Ended:
        reading.begin(name)
        raise
    return name
