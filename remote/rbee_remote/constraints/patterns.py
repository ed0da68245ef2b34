"""Regular expressions of JSON schemas as llguidance reads them, and formats as regular expressions."""

from __future__ import annotations

import re

#: Formats that llguidance enforces by itself.
LIBRARY_FORMATS = ("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][48]|[13579][26]|[2468]0)00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)"
    f"|{_LEAP}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"

#: Formats as patterns. llguidance's own dates know no leap years, and take a second 60 at any time of the day.
FORMATS = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "time": f"^{_TIME}$",
    "json-pointer": "^(?:/(?:[^~/]|~[01])*)*$",
}


#: Characters that can only be written as `\u....`, which an answer may not have: see `rules`.
_UNWRITABLE = r"\x00-\x07\x0b\x0e-\x1f\x7f"
_UNWRITABLE_TEXT = re.compile(f"[{_UNWRITABLE}]")
_PART = re.compile(r"\\(?:x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|.)|.", re.DOTALL)


def is_writable(text: str) -> bool:
    """Whether JSON can have it without `\\u`."""
    return not _UNWRITABLE_TEXT.search(text)


def portable(pattern: str) -> str:
    """An ECMAScript pattern for Rust's regular expressions: inside a class these have nested classes and set
    operators, where `[`, `&&`, `--` and `~~` are characters in ECMAScript. Classes lose what cannot be written, because
    llguidance takes one with all control characters for one with `"` and `\\`, and leaves out a single one."""
    found, inside = [], False
    parts = _PART.findall(pattern)
    for part, following in zip(parts, [*parts[1:], ""], strict=False):
        if not inside and part == "[":
            inside = True
            found.append(r"[[\v" if following == "]" else "[[")  # `[]` is nothing, and `[^]` everything
        elif inside and part == "^" and following == "]" and found[-1] == "[[":
            found.append(r"^\v")
        elif inside and part == "]":
            inside = False
            found.append(f"]--[{_UNWRITABLE}]]")
        elif inside and (part == "[" or (part in "&~-" and following == part)):
            found.append(f"\\{part}")
        elif not inside and (part == r"\v" or not is_writable(_character(part))):
            found.append(rf"[\v--[{_UNWRITABLE}]]")
        else:
            found.append(part)
    return "".join(found)


def _character(part: str) -> str:
    return bytes(part, "ascii").decode("unicode_escape") if len(part) > 2 else part
