"""`--json`: one JSON object a line on stdout, nothing on stderr.

    {"event": "phase", "phase": 2, "name": "node", "text": …}        a phase begins, or begins again
    {"event": "phase_done", "phase": 2, "name": "node", "text": …, "seconds": …}
    {"event": "progress" | "notice" | "retry" | "token" | "reasoning" | "tool_call" | "finished", … its fields}
    {"error": {"code": …, "message": …, "details": {…}, "hint": …}}

Lists are one JSON array, single things one object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rbee.base.errors import RbeeError
from rbee.base.events import Event, Finished, PhaseDone, PhaseStarted, Reasoning, Token, ToolCall
from rbee.render import Output, Renderer, Table
from rbee.render.text import error_data, json_line

_NAMES = {"PhaseStarted": "phase", "PhaseDone": "phase_done", "ToolCall": "tool_call", "BatchProgress": "batch"}


class JsonRenderer(Renderer):
    """stream: False keeps the answer back; `finished` then carries its `text`, `reasoning` and `tool_calls`.

    Of an answer that did not become whole, the events before the error have all there is, text and reasoning one each.
    """

    def __init__(self, out: Output, *, stream: bool = True) -> None:
        self._out = out
        self._stream = stream
        self._held: list[Token | Reasoning | ToolCall] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token | Reasoning | ToolCall) and not self._stream:
            self._held.append(event)
            return
        data: dict[str, Any] = {"event": _NAMES.get(type(event).__name__, type(event).__name__.lower())}
        if isinstance(event, PhaseStarted | PhaseDone):
            data |= {"phase": event.phase.value, "name": event.phase.name.lower(), "text": event.text}
            if isinstance(event, PhaseDone):
                data["seconds"] = round(event.seconds, 6)
        else:
            data |= asdict(event)
        if isinstance(event, Finished) and not self._stream:
            data |= self._take_held()
        self._print(data)

    def error(self, error: RbeeError) -> None:
        tokens = max((event.tokens for event in self._held if not isinstance(event, ToolCall)), default=0)
        held = self._take_held()
        for event, text in (("reasoning", held["reasoning"]), ("token", held["text"])):
            if text:
                self._print({"event": event, "text": text, "tokens": tokens})
        for call in held["tool_calls"]:
            self._print({"event": "tool_call", **call})
        self._print({"error": error_data(error)})

    def table(self, table: Table) -> None:
        self._print(list(table.data))

    def record(self, data: Mapping[str, Any]) -> None:
        self._print(data)

    def done(self, text: str, data: Mapping[str, Any]) -> None:
        del text  # for people
        self._print(data)

    def write(self, text: str) -> None:
        """A log goes out line by line, each as a JSON string."""
        for line in text.removesuffix("\n").split("\n"):  # splitlines() would also split at what is inside a line
            self._print({"line": line})

    def close(self) -> None:
        """Nothing moves."""

    def _take_held(self) -> dict[str, Any]:
        held, self._held = self._held, []
        return {
            "text": "".join(event.text for event in held if isinstance(event, Token)),
            "reasoning": "".join(event.text for event in held if isinstance(event, Reasoning)),
            "tool_calls": [asdict(event) for event in held if isinstance(event, ToolCall)],
        }

    def _print(self, data: Any) -> None:
        self._out.write(json_line(data, is_terminal=self._out.is_terminal))
