"""How much of the context a chat takes, and what is left out when it is full. Pure.

Tokens of what was not sent yet are estimated by those that the worker counted in the last turn.

Rules
- Whole turns are left out, the oldest first; never the system message, nor the question.
- When some have to go, so many go that half of the context is free: each time the worker computes the prompt anew, and
  with one turn at a time it would do so for every question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rbee.chat.conversation import Conversation, Turn, messages
from rbee_remote.protocol import Message

#: Tokens that templates put around a message, and that a byte of English has, where nothing was counted yet.
AROUND = 6
TOKENS_PER_BYTE = 0.3
#: So many bytes of English are added to what was counted.
_BYTES_MORE = 200
#: The share of the context that is kept for the answer, and from which on it is said that the context fills.
FOR_THE_ANSWER = 0.25
NEARLY_FULL = 0.6
#: Characters of a question by which the user knows it again.
_LONGEST_NAME = 32


@dataclass(frozen=True, slots=True)
class Use:
    """How full a context is. tokens: of the chat so far. ctx: of the context, 0 while unknown. is_counted: by the
    worker, and not estimated. leaves_out: questions that the next message leaves out, or would when it is longer."""

    tokens: int
    ctx: int
    is_counted: bool
    leaves_out: tuple[str, ...] = ()
    must_leave_out: bool = False

    @property
    def share(self) -> float:
        return self.tokens / self.ctx if self.ctx else 0.0

    @property
    def is_nearly_full(self) -> bool:
        return self.share >= NEARLY_FULL


def fitted(conversation: Conversation, system: str, ctx: int, max_tokens: int | None = None) -> Conversation:
    """The conversation, whose last turn is to be answered, with as many turns left out as have to be."""
    if not ctx or _fits(conversation, system, ctx, max_tokens):
        return conversation
    return with_half_free(conversation, system, ctx)


def with_half_free(conversation: Conversation, system: str, ctx: int, counted: int = 0) -> Conversation:
    """With turns left out until half of the context is free, one at least. counted: tokens that the worker found in the
    whole of it, 0 for an estimate."""
    rate = _rate(conversation, system)
    if counted:
        rate *= max(1.0, counted / _tokens(conversation.messages(system), rate))
    for first in range(conversation.first + 1, len(conversation.turns)):
        shorter = replace(conversation, first=first)
        if _tokens(shorter.messages(system), rate) <= ctx / 2:
            return shorter
    return replace(conversation, first=max(conversation.first, len(conversation.turns) - 1))


def used(conversation: Conversation, system: str, ctx: int, max_tokens: int | None = None) -> Use:
    """What the chat takes before the next question is typed."""
    said = conversation.without_unanswered()
    last = said.last
    is_counted = last is not None and bool(last.prompt_tokens) and not last.reasoning
    if last is not None and is_counted:
        tokens = last.prompt_tokens + last.answer_tokens
    else:
        tokens = _tokens(said.messages(system), _rate(said, system)) if said.turns or system else 0
    use = Use(tokens, ctx, is_counted)
    if not ctx or not use.is_nearly_full:
        return use
    asked = said.asked("")
    must = not _fits(asked, system, ctx, max_tokens)
    shorter = with_half_free(asked, system, ctx)
    return replace(use, leaves_out=names(said.turns[said.first : shorter.first]), must_leave_out=must)


def names(turns: Sequence[Turn]) -> tuple[str, ...]:
    """The questions, as they are told to the user."""
    return tuple(_name(turn.typed or turn.question) for turn in turns)


def _name(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_NAME else f"{line[: _LONGEST_NAME - 1]}…"


def _fits(conversation: Conversation, system: str, ctx: int, max_tokens: int | None) -> bool:
    tokens = _tokens(conversation.messages(system), _rate(conversation, system))
    share = int(ctx * FOR_THE_ANSWER)
    return tokens + min(share, max_tokens or share) <= ctx


def _tokens(said: Sequence[Message], rate: float) -> int:
    return int(_size(said) * rate) + AROUND * len(said)


def _size(said: Sequence[Message]) -> int:
    return sum(len(message.content.encode(errors="replace")) for message in said)


def _rate(conversation: Conversation, system: str) -> float:
    """Tokens per byte, as of the last turn that a worker counted, and of a little English: in a short chat most of the
    tokens are the template's."""
    for end in range(len(conversation.turns), conversation.first, -1):
        turn = conversation.turns[end - 1]
        if not turn.prompt_tokens:
            continue
        counts_answer = bool(turn.answer_tokens) and not turn.reasoning
        before = conversation.turns[conversation.first : end - 1]
        said = messages((*before, turn if counts_answer else Turn(turn.question)), system)
        tokens = turn.prompt_tokens + (turn.answer_tokens if counts_answer else 0) - AROUND * len(said)
        return min(2.0, max(0.05, (tokens + _BYTES_MORE * TOKENS_PER_BYTE) / (_size(said) + _BYTES_MORE)))
    return TOKENS_PER_BYTE
