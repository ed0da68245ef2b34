"""Regular expressions of JSON schemas as llguidance reads them, and formats as regular expressions."""

from __future__ import annotations

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


def portable(pattern: str) -> str:
    """An ECMAScript pattern for Rust's regular expressions: inside a class these have nested classes and set
    operators, where `[`, `&&`, `--` and `~~` are characters in ECMAScript."""
    found, inside, escape = [], False, False
    for index, read in enumerate(pattern):
        character = read
        doubled = character in "&~-" and pattern[index + 1 : index + 2] == character
        if escape:
            escape = False
        elif character == "\\":
            escape = True
        elif inside and (character == "[" or doubled):
            character = f"\\{character}"
        elif inside and character == "]":
            inside = False
        elif character == "[":
            inside = True
        found.append(character)
    return "".join(found)
