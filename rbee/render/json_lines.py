"""`--json`: one JSON object a line on stdout, nothing on stderr.

    {"event": "phase", "phase": 2, "name": "node", "text": …}        a phase begins, or begins again
    {"event": "phase_done", "phase": 2, "name": "node", "text": …, "seconds": …}
    {"event": "progress" | "notice" | "retry" | "token" | "finished", … the fields of that event}
    {"error": {"code": …, "message": …, "details": {…}, "hint": …}}

Lists are one JSON array, single things one object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rbee.base.errors import RbeeError
from rbee.base.events import Event, Finished, PhaseDone, PhaseStarted, Token
from rbee.render import Output, Renderer, Table
from rbee.render.text import error_data

_NAMES = {"PhaseStarted": "phase", "PhaseDone": "phase_done"}


class JsonRenderer(Renderer):
    """stream: False keeps the tokens back; `finished` then carries the answer's `text`.

    Of an answer that did not become whole, one `token` event before the error has all the text there is.
    """

    def __init__(self, out: Output, *, stream: bool = True) -> None:
        self._out = out
        self._stream = stream
        self._held: list[Token] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, Token) and not self._stream:
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
            data["text"] = self._take_held()
        self._print(data)

    def error(self, error: RbeeError) -> None:
        if self._held:
            tokens = self._held[-1].tokens
            self._print({"event": "token", "text": self._take_held(), "tokens": tokens})
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

    def _take_held(self) -> str:
        held, self._held = self._held, []
        return "".join(token.text for token in held)

    def _print(self, data: Any) -> None:
        text = json.dumps(data, ensure_ascii=self._out.is_terminal, default=str)
        self._out.write((text.replace("\x7f", "\\u007f") if self._out.is_terminal else text) + "\n")
