"""SmolLM 3: Hermes' form, and Python between tags for tools that the template has described as Python's.

    <think>…</think> text <code>
    NAME(key="value")
    </code>

Code that does more than to call tools is content: it is the caller's to run.
"""

from __future__ import annotations

from rbee_remote.worker.dialects.hermes import Hermes
from rbee_remote.worker.dialects.pythonic import read_one
from rbee_remote.worker.dialects.reading import Reading, Script

_CODE, _CODE_END = "<code>", "</code>"


class SmolLm(Hermes):
    name = "smollm"

    def writes_calls(self, template: str) -> bool:
        return "python_tools" in template and _CODE in template

    def answer(self, reading: Reading) -> Script[None]:
        if reading.tools is None:
            return
        begin = reading.form(self.call_markers[0])
        yield from reading.attempt(self.bare_call(reading))
        while True:
            marker = yield from reading.until(reading.content.say, begin, _CODE)
            yield from reading.attempt(self.call(reading) if marker == begin else _code(reading), marker)


def _code(reading: Reading) -> Script[None]:
    yield from read_one(reading)
    while not (yield from reading.follows(_CODE_END)):
        if not (yield from reading.attempt(read_one(reading))):
            return
