"""What somebody wrote stays text, whatever it looks like. Pure.

A message that says `<|im_end|>` must not end a turn. So before a template is rendered, a *seam*, one character that
stands nowhere in the request, is put behind the first character of each text that the tokenizer would take for a
special token; where the rendered prompt has a seam, it is tokenized in pieces. The words stay, and what the template
itself writes is whole. Looked for:

- control tokens, and tokens of user-defined text by which the template sets something apart, such as `<tool_call>`
  (others, such as the tags of HTML in Gemma's vocabulary, are how the model reads text);
- their beginnings at the end of a text, and their ends at the beginning of one: a template may put two texts together,
  or brackets around one;
- what is one of them once a switch such as /no_think is taken out, as some templates do.

A text without them costs one search.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

#: The sixty-four hexagrams of the Book of Changes: symbols that Python's and JSON's ways of writing a text leave as
#: they are, and that no text with its wits about it holds all of. Then the private use area.
_CANDIDATES = (range(0x4DC0, 0x4E00), range(0xE000, 0xF900))
_SWITCH = re.compile(r"/\w*think")


def unused(said: str) -> Iterator[str]:
    """Characters that `said` does not have."""
    return (chr(code) for code in chain(*_CANDIDATES) if chr(code) not in said)


class Shield:
    """special and user_defined: as in `LoadedModel`. template: the source."""

    def __init__(self, special: Iterable[str], user_defined: frozenset[str], template: str) -> None:
        self._markers = frozenset(
            text for text in special if len(text) > 1 and (text not in user_defined or _sets_apart(text, template))
        )
        # Vocabularies have thousands that differ in a number, such as <unused99>. To take more for one is harmless.
        forms = sorted({re.sub(r"\d+", r"\\d+", re.escape(text)) for text in self._markers}, key=len, reverse=True)
        pattern = "|".join(forms) or "(?!)"
        self._any = re.compile(pattern)
        self._each = re.compile(f"(?=({pattern}))(.)", re.DOTALL)
        self._first = _one_of(text[0] for text in self._markers)
        self._last = _one_of(text[-1] for text in self._markers)
        self._longest = max(map(len, self._markers), default=0)

    def needed(self, value: Any) -> bool:
        """Whether a text of it has to be kept apart. value: JSON's."""
        return any(self._is_suspect(text) for text in _texts(value))

    def shielded(self, value: Any, seam: str) -> Any:
        """The same with seams."""
        if isinstance(value, str):
            return self._shielded(value, seam) if self._is_suspect(value) else value
        if isinstance(value, dict):
            return {self.shielded(key, seam): self.shielded(item, seam) for key, item in value.items()}
        if isinstance(value, list):
            return [self.shielded(item, seam) for item in value]
        return value

    def _is_suspect(self, text: str) -> bool:
        return bool(
            self._any.search(text)
            or self._begun(text)
            or self._ended(text)
            or ("think" in text and self._any.search(_SWITCH.sub("", text)))
        )

    def _shielded(self, text: str, seam: str) -> str:
        if "think" in text and self._any.search(_SWITCH.sub("", text)):
            made = self._first.sub(lambda found: found[0] + seam, text)
        else:
            begun = len(text.rstrip()) - self._begun(text) + 1
            if begun <= len(text.rstrip()):
                text = text[:begun] + seam + text[begun:]
            made = self._each.sub(lambda found: found[2] + seam, text)
        start = len(text) - len(text.lstrip())
        return made[:start] + seam + made[start:] if self._ended(text) else made

    def _begun(self, text: str) -> int:
        """Characters at the end of a text with which a marker begins; 0 for none."""
        end = text[-self._longest - 16 :].rstrip()[-self._longest :]
        if not self._first.search(end):
            return 0
        return next((length for length in range(len(end), 1, -1) if end[-length:] in self._beginnings), 0)

    def _ended(self, text: str) -> bool:
        """Whether a marker ends with the beginning of a text."""
        start = text[: self._longest + 16].lstrip()[: self._longest]
        if not self._last.search(start):
            return False
        return any(start[:length] in self._endings for length in range(2, len(start) + 1))

    @functools.cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(text[:end] for text in self._markers for end in range(2, len(text)))

    @functools.cached_property
    def _endings(self) -> frozenset[str]:
        return frozenset(text[start:] for text in self._markers for start in range(1, len(text) - 1))


def _one_of(letters: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(sorted({re.escape(letter) for letter in letters})) or "(?!)")


def _sets_apart(text: str, template: str) -> bool:
    return text in template and not (text[0].isalnum() or text[-1].isalnum() or text.strip(" \t\n\r▁") != text)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
