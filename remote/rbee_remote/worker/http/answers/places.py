"""Where the protocol's fields stand in the body that a request was made of, so that errors name what the client sent.
Pure."""

from __future__ import annotations

from collections.abc import Mapping

from rbee_remote.protocol import RemoteError


def renamed(error: RemoteError, places: Mapping[str, str]) -> RemoteError:
    """An error that names its field as the body has it. places: a name there for one of the protocol, and for all that
    is in it."""
    field = error.details.get("field")
    if not isinstance(field, str) or (here := _found(field, places)) is None:
        return error
    message = here + error.message.removeprefix(field) if error.message.startswith(field) else error.message
    return RemoteError(error.code, message, hint=error.hint, details={**error.details, "field": here})


def renamed_line(line: str, places: Mapping[str, str]) -> str:
    """A warning that begins with its field, likewise."""
    field, colon, rest = line.partition(": ")
    here = _found(field, places)
    return line if here is None else f"{here}{colon}{rest}"


def _found(field: str, places: Mapping[str, str]) -> str | None:
    """By the longest name that the field begins with; None where there is none."""
    names = [name for name in places if field == name or field.startswith((f"{name}.", f"{name}["))]
    if not names:
        return None
    longest = max(names, key=len)
    return places[longest] + field.removeprefix(longest)
