"""Writing grammars in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rbee_remote.worker.dialects.interface import Tools, Vocabulary

Schema = Mapping[str, Any]

_ANY = "/(?s:.*)/"


class Lark:
    """A grammar that grows rule by rule."""

    #: Any white space, or none, where a dialect does not care. Bounded, else a model may never stop to write some.
    space = r"/[ \t\r\n]{0,8}/"

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._rules: dict[str, str] = {}
        self._lazy: dict[str, str] = {}
        self._free = _ANY

    def mark(self, marker: str) -> str:
        """The marker: as its token where it has one, else as its text."""
        token = self._vocabulary.get(marker)
        return quoted(marker) if token is None else f"<[{token}]>"

    def rule(self, body: str, name: str = "rule") -> str:
        """Adds a rule and returns its name; the same body gives the same rule."""
        return self._rules.setdefault(body, f"{name}_{len(self._rules)}")

    def any_of(self, bodies: list[str]) -> str:
        return self.rule(" | ".join(bodies), "choice")

    def free(self) -> str:
        """Any text of an answer."""
        return self._terminal(self._free)

    def forbid(self, start: str) -> None:
        """An answer's free text cannot begin with this, a terminal, behind any space."""
        self._free += rf" & ~(/[ \t\r\n]*/ {start} {_ANY})"

    def has(self, marker: str) -> bool:
        """Whether the marker is a token."""
        return marker in self._vocabulary

    def until(self, marker: str, without: str = "") -> str:
        """Any text without that marker, and the marker at its end, which stands nowhere before."""
        if marker in self._vocabulary:
            return f"{self._terminal(self._text(without))} {self.mark(marker)}"
        return self._lazily(f"({self._text(without)}) {self.mark(marker)}")

    def _text(self, without: str) -> str:
        """Text never holds a marker that is a token."""
        if not without or without in self._vocabulary:
            return _ANY
        return f"{_ANY} & ~({_ANY} {self.mark(without)} {_ANY})"

    def until_first(self, marker: str) -> str:
        """Any text of an answer, and the marker at its end, which stands nowhere before."""
        if marker in self._vocabulary:
            return f"{self.free()} {self.mark(marker)}"
        return self._lazily(f"({self._free}) & ({_ANY} {self.mark(marker)})")

    def block(self, begin: str, end: str, without: str = "") -> str:
        """Text between two markers. An answer's free text cannot begin with the first of them from now on."""
        if begin in self._vocabulary:
            return f"{self.mark(begin)} {self.until(end, without)}"
        self.forbid(self.mark(begin))
        text = f"{self.mark(begin)} ({self._text(without)})"
        if end in self._vocabulary:
            return f"{self._terminal(text)} {self.mark(end)}"
        return self._lazily(f"{text} {self.mark(end)}")

    def _lazily(self, body: str) -> str:
        return self._lazy.setdefault(body, f"until_{len(self._lazy)}")

    def _terminal(self, body: str) -> str:
        return self.rule(body, "TEXT")

    def json(self, schema: Schema | bool) -> str:
        return self.rule(f"%json {json.dumps(schema, ensure_ascii=False)}", "json")

    def arguments(self, schema: Schema) -> str:
        """Arguments as JSON: an object, whatever else the schema says."""
        return self.json(schema if "type" in schema else {"type": "object", **schema})

    def again(self, body: str, tools: Tools) -> str:
        """What may be written any number of times, where there may be several calls."""
        return f" ({body})*" if tools.parallel else ""

    def text(self, start: str) -> str:
        rules = [f"{name}: {body}" for body, name in self._rules.items()]
        lazy = [f"{name}[lazy]: {name.upper()}\n{name.upper()}: {body}" for body, name in self._lazy.items()]
        return "\n".join([f"start: {start}", *rules, *lazy, ""])


def quoted(text: str) -> str:
    """The text as a Lark literal."""
    return json.dumps(text, ensure_ascii=False)


def inside(text: str) -> str:
    """The text as it stands between the quotes of a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
