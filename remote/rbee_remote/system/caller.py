"""Who asks: what a request's headers say of its keeper. Nobody is kept out by it, a socket's mode does that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote

from rbee_remote.protocol import HEADER_BACKGROUND, HEADER_KEEPER, HEADER_WHO
from rbee_remote.system.sanitize import sanitize

_MAX_KEEPER, _MAX_WHO = 64, 128


@dataclass(frozen=True, slots=True)
class Caller:
    """keeper: its id, "" for clients that do not say. who: `user@host`, as it says. Both printable and bounded.
    background: whether its request gives way to others."""

    keeper: str = ""
    who: str = ""
    background: bool = False


#: A client that does not say, such as one of OpenAI's API.
ANYBODY = Caller()


def caller_of(headers: Mapping[str, str]) -> Caller:
    """headers: with names in any case, as starlette has them."""
    who = unquote(headers.get(HEADER_WHO, "")[: 4 * _MAX_WHO], errors="replace")
    keeper = sanitize(headers.get(HEADER_KEEPER, ""), _MAX_KEEPER)
    return Caller(keeper, sanitize(who, _MAX_WHO), headers.get(HEADER_BACKGROUND, "") == "1")
