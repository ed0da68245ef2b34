"""What a chat needs of the world: somewhere to keep sessions, and a screen. `store` and `screen` are these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rbee.base.errors import RbeeError
from rbee.base.events import Event
from rbee.chat.asked import Asked
from rbee.chat.conversation import Conversation, Turn


@dataclass(frozen=True, slots=True)
class Session:
    """A chat as it is kept. id: 8 hex digits, "" for one that was never kept. revision: grows with each time that it is
    kept, so that of two who go on with one session at once none overwrites the other."""

    id: str = ""
    name: str = ""
    conversation: Conversation = Conversation()  # noqa: RUF009 - it is frozen
    asked: Asked = Asked()  # noqa: RUF009 - likewise
    revision: int = 0


@dataclass(frozen=True, slots=True)
class Listed:
    """A session in a list. title: its name, else its first question. changed_at: ISO 8601, UTC. excerpt: of what was
    found in it, "" where nothing was looked for."""

    id: str
    title: str
    model: str
    turns: int
    changed_at: str
    excerpt: str = ""


class Store(Protocol):
    """Sessions, and what was typed. Every method raises ConfigError."""

    def keep(self, session: Session) -> Session:
        """As it is kept now: with an id, and under another one where somebody else went on with it meanwhile."""

    def find(self, which: str) -> Session:
        """By its id, the beginning of it, or its name; "" is the last one. Raises UsageError for none."""

    def listed(self, words: str = "", most: int = 20) -> list[Listed]:
        """The last sessions first; of those with all of `words`, the best first."""

    def add_typed(self, text: str) -> None:
        """Something was typed, and is found again with the arrow keys."""

    def typed(self, most: int) -> list[str]:
        """What was typed, the last first."""


class View(Protocol):
    """The screen, or what is read by a program."""

    def __call__(self, event: Event) -> None:
        """Something of an answer, or on the way to it."""

    def begin(self) -> None:
        """An answer is asked for."""

    def end(self) -> None:
        """It has come, or nothing more will; what moves ends."""

    def notice(self, text: str) -> None:
        """A line for the user."""

    def error(self, error: RbeeError) -> None: ...

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None: ...

    def turn(self, turn: Turn) -> None:
        """One that was said before, as of a session that is gone on with."""

    def fold(self, *, is_folded: bool) -> None:
        """Whether reasoning is shown as a line that counts, from now on."""

    def text(self, text: str) -> None:
        """A longer text that was asked for."""

    def copy(self, text: str) -> str:
        """Put into the clipboard; how, in words. Raises UsageError where there is none."""

    async def edit(self, text: str) -> str:
        """The text as the user's editor left it. Raises UsageError where there is none."""
