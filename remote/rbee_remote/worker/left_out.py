"""Whether what was said gets into a prompt. A template that leaves it out has the model answer something else. Pure.

Templates may strip white space, write JSON, put the system's message before the user's, or take a switch such as
/no_think out of a text. They may not drop what a user says, what the system says or what a tool has answered:

- **user**: MODEL_INVALID. Such a template is of no use for a chat.
- **system**, **tool**: USAGE, as where a template refuses them in words. The chat works without them, and whoever wrote
  one has to know that the model would not have seen it.
- **assistant** is not looked at: good templates drop the reasoning of earlier turns, or the text beside a call.

A message counts as shown when the prompt has it word for word and it is long enough to be no coincidence; else when
half of its words stand there, and the mark that a probe puts in its place does too. What a template does on purpose,
such as saying the opposite right after it, no look at the prompt can tell.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rbee_remote.protocol import ErrorCode, RemoteError

_LOOKED_AT = ("system", "user", "tool")
#: Characters from which on a text that stands in a prompt is the message, and not a part of the template.
_NO_COINCIDENCE = 16
#: Words of a message that are looked for, each of them in the whole prompt.
_WORDS = 1000

Turn = dict[str, Any]


def find(turns: Sequence[Turn], prompt: str, shown: Callable[[], frozenset[int] | None]) -> int | None:
    """The first message that `prompt` leaves out; None for none. shown: the messages that a probe shows, None where
    that failed; called where the prompt alone does not tell."""
    for index, turn in enumerate(turns):
        content = turn["content"].strip()
        if turn["role"] not in _LOOKED_AT or not content:
            continue
        if len(content) >= _NO_COINCIDENCE and content in prompt:
            continue
        seen = shown()
        if (seen is not None and index not in seen) or not _mostly_in(content, prompt):
            return index
    return None


def shape_of(turns: Sequence[Turn], *, tools: bool) -> str:
    """Conversations of one shape are alike to a template, but for what is said."""
    return json.dumps([tools, [[turn["role"], bool(turn["content"].strip()), sorted(turn)] for turn in turns]])


def marked(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation with a mark for what each one says."""
    return [{**turn, "content": _mark(index)} if turn["content"].strip() else turn for index, turn in enumerate(turns)]


def marks_in(prompt: str, count: int) -> frozenset[int]:
    """The messages, of `count`, whose mark is there."""
    prompt = prompt.lower()
    return frozenset(index for index in range(count) if _mark(index) in prompt)


def error(turns: Sequence[Turn], index: int) -> RemoteError:
    role = turns[index]["role"]
    which = f"message {index + 1} of {len(turns)}, which is the {role}'s"
    details = {"field": f"messages[{index}].content"}
    if role == "user":
        return RemoteError(
            ErrorCode.MODEL_INVALID,
            f"the model's chat template leaves out {which}",
            hint="use --raw to send the prompt without the model's chat template",
            details=details,
        )
    hint = "say it in the user's message" if role == "system" else "load a model that was trained to call tools"
    return RemoteError(
        ErrorCode.USAGE,
        f"the model's chat template leaves out {which}: the model would not see it",
        hint=hint,
        details=details,
    )


def _mark(index: int) -> str:
    """Letters and digits alone, so that no way of writing changes it; none is the beginning of another."""
    return f"rbee{index}mark"


def _mostly_in(content: str, prompt: str) -> bool:
    """Whether half of the words stand in the prompt, in their order, or all of it as JSON writes it."""
    words = (re.findall(r"\w+", content) or list("".join(content.split())))[:_WORDS]
    found, at = 0, 0
    for word in words:
        here = prompt.find(word, at)
        if here >= 0:
            found, at = found + 1, here + len(word)
    return 2 * found >= len(words) or any(
        json.dumps(content, ensure_ascii=ascii_only)[1:-1] in prompt for ascii_only in (False, True)
    )
