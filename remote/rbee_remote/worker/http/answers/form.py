"""What an API says of itself, so that its answers can be written by the same code as those of all others.

Rules
- What is given is deterministic: an answer that goes on on another worker is given once more from its beginning, and
  the lines that the client has are left out by their number. Ids and times come from `State`, never from a clock.
- Each line is one event with one data line.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rbee_remote.protocol import GenerateRequest, RemoteError
from rbee_remote.worker.http.answers.summary import Summary, Taken
from rbee_remote.worker.http.answers.tracking import State

#: What becomes one line: an event, or what a choice has to say of it, as its form knows it.
Piece = dict[str, Any]


class Choice(Protocol):
    """One answer, in its API's words. What the first three give is for its form alone to read."""

    def opening(self) -> list[Piece]: ...

    def feed(self, token: dict[str, Any]) -> list[Piece]:
        """token: a `TokenEvent` as it stands in a journal's record."""

    def closing(self, finish_reason: str) -> list[Piece]: ...

    def whole(self) -> dict[str, Any]:
        """All of it, once it is closed."""


@dataclass(frozen=True, slots=True)
class Part:
    """A request with the choice that it fills. counts_prompt: False for all but the first that share a prompt."""

    request: GenerateRequest
    choice: Choice
    counts_prompt: bool = True


class Form(Protocol):
    """How an API writes one answer: its lines, its end, its errors, its whole. Made for one job."""

    def begin(self, state: State) -> None:
        """Before anything else, once: what the answer is called, and when it began."""

    def opening(self, part: Part, warnings: Sequence[str], summary: Summary) -> list[Piece]:
        """warnings: of this part. summary: has its prompt already."""

    def token(self, part: Part, token: dict[str, Any]) -> list[Piece]: ...

    def closing(self, part: Part, done: Mapping[str, Any], taken: Taken) -> list[Piece]:
        """done: a `DoneEvent` as it stands in a journal's record; its finish_reason is length, stop or tool_calls."""

    def line(self, piece: Piece) -> str:
        """One event of the stream."""

    def ending(self, summary: Summary) -> list[str]:
        """The lines of a stream that is complete; none of them belongs to a choice."""

    def error(self, error: RemoteError) -> list[str]:
        """The lines of a stream that ends before its time, the one that says why first."""

    def whole(self, parts: Sequence[Part], summary: Summary) -> Any:
        """The body of an answer that is no stream, as JSON."""


@dataclass(frozen=True, slots=True)
class Job:
    """What one HTTP request asks for.

    warnings: what of it is not honoured as asked, before a worker looks at it. can_resume: whether its stream can go on
    on another worker; not where lines say more of earlier tokens than follows from the tokens alone. tells_tokens:
    whether its choices are given the id of each token. places: the names that fields of a request's functions have in
    the body, by the protocol's.
    """

    id: str
    parts: tuple[Part, ...]
    stream: bool
    form: Form
    warnings: tuple[str, ...] = ()
    can_resume: bool = True
    tells_tokens: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def one_prompt(self) -> bool:
        """Whether all of its parts have the same."""
        return sum(part.counts_prompt for part in self.parts) == 1


def part_ids(count: int) -> list[str]:
    """Ids of requests that belong together: alike but for the number at their end."""
    base = uuid.uuid4().hex[:-4]
    return [f"{base}{number:04x}" for number in range(count)]
