"""Where a JSON value ends, and whether it is one, while it is still being written.

By hand, because no library tells it: ijson and json-stream give events and values but not the text that a value takes,
jiter and partial-json-parser read the whole text again with every token.
"""

from __future__ import annotations

import json
import re

_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACE = " \t\r\n"
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_WORDS = ("true", "false", "null")
_HEX = frozenset("0123456789abcdefABCDEF")
_CLOSING = {"{": "}", "[": "]"}


class NotJson(ValueError):
    """The text is no JSON from here on."""


class JsonScanner:
    """One value. `take` says how far into a text it reaches; `done` whether it is complete."""

    def __init__(self) -> None:
        self.done = False
        self._open: list[str] = []
        self._next = self._value
        self._is_key = False
        self._word = ""

    def take(self, text: str, at: int) -> tuple[int, str]:
        """Where the value's part of the text from `at` on ends, and this part as valid JSON: control characters that a
        model wrote into a string are escaped. Raises NotJson where the first character fits in nowhere."""
        out: list[str] = []
        while at < len(text) and not self.done:
            try:
                taken, written = self._next(text, at)
            except NotJson:
                if out:
                    break
                raise
            at += taken
            out.append(written)
        return at, "".join(out)

    def _step(self, text: str, at: int) -> tuple[int, str]:
        return 1, text[at]

    def _value(self, text: str, at: int) -> tuple[int, str]:
        char = text[at]
        if char in "{[":
            self._open.append(char)
            self._next = self._first_key if char == "{" else self._first_item
        elif char == '"':
            self._is_key = False
            self._next = self._string
        elif char in "-0123456789":
            self._word, self._next = char, self._number
        elif char in "tfn":
            self._word, self._next = char, self._literal
        elif char not in _SPACE:
            raise NotJson
        return self._step(text, at)

    def _first_item(self, text: str, at: int) -> tuple[int, str]:
        return self._close(text, at) if text[at] == "]" else self._value(text, at)

    def _first_key(self, text: str, at: int) -> tuple[int, str]:
        return self._close(text, at) if text[at] == "}" else self._key(text, at)

    def _key(self, text: str, at: int) -> tuple[int, str]:
        if text[at] == '"':
            self._is_key = True
            self._next = self._string
        elif text[at] not in _SPACE:
            raise NotJson
        return self._step(text, at)

    def _colon(self, text: str, at: int) -> tuple[int, str]:
        if text[at] == ":":
            self._next = self._value
        elif text[at] not in _SPACE:
            raise NotJson
        return self._step(text, at)

    def _after(self, text: str, at: int) -> tuple[int, str]:
        if text[at] == ",":
            self._next = self._key if self._open[-1] == "{" else self._value
        elif text[at] not in _SPACE:
            return self._close(text, at)
        return self._step(text, at)

    def _close(self, text: str, at: int) -> tuple[int, str]:
        if text[at] != _CLOSING[self._open[-1]]:
            raise NotJson
        self._open.pop()
        self._complete()
        return self._step(text, at)

    def _complete(self) -> None:
        self._next = self._after
        self._word = ""
        self.done = not self._open

    def _string(self, text: str, at: int) -> tuple[int, str]:
        plain = _PLAIN.match(text, at)
        if plain:
            return len(plain[0]), plain[0]
        char = text[at]
        if char == '"':
            if self._is_key:
                self._next = self._colon
            else:
                self._complete()
        elif char == "\\":
            self._next = self._escape
        else:
            return 1, json.dumps(char)[1:-1]
        return 1, char

    def _escape(self, text: str, at: int) -> tuple[int, str]:
        if text[at] == "u":
            self._word, self._next = "", self._unicode
        elif text[at] in '"\\/bfnrt':
            self._next = self._string
        else:
            raise NotJson
        return self._step(text, at)

    def _unicode(self, text: str, at: int) -> tuple[int, str]:
        if text[at] not in _HEX:
            raise NotJson
        self._word += text[at]
        if len(self._word) == 4:
            self._word, self._next = "", self._string
        return self._step(text, at)

    def _number(self, text: str, at: int) -> tuple[int, str]:
        if text[at] in "0123456789+-.eE":
            self._word += text[at]
            return self._step(text, at)
        if not _NUMBER.fullmatch(self._word):
            raise NotJson
        self._complete()
        return 0, ""

    def _literal(self, text: str, at: int) -> tuple[int, str]:
        self._word += text[at]
        if not any(word.startswith(self._word) for word in _WORDS):
            raise NotJson
        if self._word in _WORDS:
            self._complete()
        return self._step(text, at)
