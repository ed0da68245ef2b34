"""How an answer that was streamed in part goes on, on another worker that has the same model file.

A gateway passes a client's request on as it is, whatever API it belongs to. It asks with HEADER_TRACK for comments
between the answer's lines (`Tracked`), which it keeps and does not pass on. When the worker is lost it sends the same
body to another one, with RESUME_FIELD added (`Resume`): that one takes the tokens as generated, so that sampler,
constraint and everything that reads the answer are where they were, and sends the lines that are still missing.
"""

from __future__ import annotations

import dataclasses
from typing import Any

#: "1": the answer is to be tracked. Of a stream by comments, of a whole answer by HEADER_USAGE.
HEADER_TRACK = "X-Rbee-Track"
#: A word of 1 to 64 letters, digits, "-" and "_" that names the HTTP request in the worker's log.
HEADER_REQUEST = "X-Rbee-Request"
#: `TrackedUsage` of a whole answer, as JSON.
HEADER_USAGE = "X-Rbee-Usage"
#: What a tracking comment begins with; JSON follows, `encode(Tracked)`, and an empty line.
TRACK_COMMENT = ": rbee "
#: The field of a JSON body that holds a `Resume`.
RESUME_FIELD = "rbee_resume"
#: The choice of lines that belong to none: a stream's last ones.
NO_CHOICE = -1


@dataclasses.dataclass(frozen=True, slots=True)
class TrackedUsage:
    """Tokens of a request. cached: of the prompt's, those that were computed already."""

    prompt: int
    cached: int
    completion: int


@dataclasses.dataclass(frozen=True, slots=True)
class Tracked:
    """What a tracking comment says of the `lines` data lines that follow it at once, which all belong to `choice`.

    tokens: the ids of the tokens that gave them, the one that ended the text included. state: with the first comment of
    an answer, what has to come back in `Resume.state`, whose content is the worker's alone. usage: with the last one.
    A comment may have no line: its tokens gave no text yet.
    """

    choice: int
    tokens: tuple[int, ...] = ()
    lines: int = 0
    state: dict[str, Any] | None = None
    usage: TrackedUsage | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Sent:
    """What was sent of a choice: the tokens that were told, and how many of its data lines the client has."""

    tokens: tuple[int, ...] = ()
    lines: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Resume:
    """choices: by number, as text; NO_CHOICE too where lines of it were sent."""

    state: dict[str, Any]
    choices: dict[str, Sent]
