"""What was said in a chat, as values: turns are added, answered, taken back and left out. Pure.

Rules
- Messages go to the worker in the same form each time, so that it finds what it has computed already.
- An answer that broke off is an answer: what came of it stays.
- A question without any answer is asked again by /retry; the next question takes its place, because templates want
  user and assistant in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee_remote.protocol import Message


@dataclass(frozen=True, slots=True)
class Turn:
    """question: as it is sent, files included; typed: what of it was typed. answer: as far as it came.

    finish: why the answer ended (stop, length), "" for one that was stopped or lost. prompt_tokens, answer_tokens: as
    the worker counted them, 0 where it did not come to that.
    """

    question: str
    typed: str = ""
    answer: str = ""
    reasoning: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def is_answered(self) -> bool:
        return bool(self.answer or self.finish)


@dataclass(frozen=True, slots=True)
class Conversation:
    """first: the first turn that is still sent; those before it are left out, for want of room."""

    turns: tuple[Turn, ...] = ()
    first: int = 0

    @property
    def last(self) -> Turn | None:
        return self.turns[-1] if self.turns else None

    @property
    def sent(self) -> tuple[Turn, ...]:
        """The turns that are not left out."""
        return self.turns[self.first :]

    def asked(self, question: str, typed: str = "") -> Conversation:
        """One turn more, in the place of one that got no answer."""
        kept = self.without_unanswered()
        return replace(kept, turns=(*kept.turns, Turn(question, typed or question)))

    def without_unanswered(self) -> Conversation:
        return self if self.last is None or self.last.is_answered else self.undone()

    def answered(self, turn: Turn) -> Conversation:
        """The last turn, with what came of its answer."""
        return replace(self, turns=(*self.turns[:-1], turn))

    def undone(self) -> Conversation:
        """Without the last turn. One that was left out for its sake is sent again."""
        turns = self.turns[:-1]
        return Conversation(turns, self.first if self.first < len(turns) else 0)

    def again(self) -> Conversation:
        """The last question without its answer."""
        assert self.last is not None
        return self.answered(Turn(self.last.question, self.last.typed))

    def messages(self, system: str = "") -> tuple[Message, ...]:
        """What is sent: the system message, then the turns that are not left out."""
        return messages(self.sent, system)


def messages(turns: Sequence[Turn], system: str = "") -> tuple[Message, ...]:
    said = [Message("system", system)] if system else []
    for turn in turns:
        said.append(Message("user", turn.question))
        if turn.is_answered:
            said.append(Message("assistant", turn.answer, reasoning=turn.reasoning))
    return tuple(said)
