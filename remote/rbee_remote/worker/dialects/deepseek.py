"""DeepSeek R1, V3 and V3.1: a section of calls, each with its name and its arguments.

    <think>…</think> text <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME
    ```json
    {…}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

V3.1 writes NAME<｜tool▁sep｜>{…} within each call.
"""  # noqa: RUF002 - the bars are DeepSeek's

from __future__ import annotations

from rbee_remote.worker.dialects.family import Sectioned
from rbee_remote.worker.dialects.flow import SPACE
from rbee_remote.worker.dialects.interface import Tools
from rbee_remote.worker.dialects.lark import Lark, quoted
from rbee_remote.worker.dialects.reading import Reading, Script

_FENCE, _FENCE_END = "\n```json\n", "\n```"


def _marker(words: str) -> str:
    """DeepSeek's markers have their own bars, and their own spaces."""
    return f"<\uff5c{words.replace(' ', chr(0x2581))}\uff5c>"


class DeepSeek(Sectioned):
    name = "deepseek"
    call_markers = (
        _marker("tool calls begin"),
        _marker("tool calls end"),
        _marker("tool call begin"),
        _marker("tool call end"),
        _marker("tool sep"),
    )

    def writes_calls(self, template: str) -> bool:
        return self.call_markers[0] in template and "```json" in template

    def one_call(self, reading: Reading) -> Script[None]:
        *_, end, separator = map(reading.form, self.call_markers)
        name, _ = yield from reading.collect(separator)
        if name.strip(SPACE) == "function" and not reading.known("function"):
            name, _ = yield from reading.collect("```json")
        yield from reading.json_object(name.strip(SPACE))
        yield from reading.follows("```")
        yield from reading.follows(end)

    def calls_rule(self, lark: Lark, tools: Tools, first: str) -> str:
        _, section_end, begin, end, _ = map(lark.mark, self.call_markers)
        call = lark.any_of([self._call_rule(lark, name, tools) for name in tools.parameters])
        again = lark.again(f"{lark.space} {begin} {call} {end}", tools)
        return f"{first} {begin} {call} {end}{again} {section_end}"

    def _call_rule(self, lark: Lark, name: str, tools: Tools) -> str:
        arguments = lark.arguments(tools.parameters[name])
        separator = lark.mark(self.call_markers[4])
        return f'"function" {separator} {quoted(name + _FENCE)} {arguments} {quoted(_FENCE_END)}'


class DeepSeekBrief(DeepSeek):
    """V3.1. What is read is the same."""

    def writes_calls(self, template: str) -> bool:
        return self.call_markers[0] in template

    def _call_rule(self, lark: Lark, name: str, tools: Tools) -> str:
        return f"{quoted(name)} {lark.mark(self.call_markers[4])} {lark.arguments(tools.parameters[name])}"
