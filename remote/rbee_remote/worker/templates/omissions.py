"""Whether what was said gets into a prompt. A template that leaves it out has the model answer something else. Pure.

Templates may strip white space, write JSON, put the system's message before the user's, or take a switch such as
/no_think out of a text. They may not drop what a user says, what the system says or what a tool has answered:

- **user**: MODEL_INVALID. Such a template is of no use for a chat.
- **system**, **tool**: USAGE, as where a template refuses them in words. The chat works without them, and whoever wrote
  one has to know that the model would not have seen it.
  The system's may be gone once a tool has answered, if it was there when the user had asked: Mistral's models were
  trained so.
- **assistant** is not looked at: good templates drop the reasoning of earlier turns, or the text beside a call.

A message counts as shown when the prompt has it word for word and it is long enough to be no coincidence; else when
half of its words stand there, and the placeholder that a probe puts in its place does too. What a template does on
purpose, such as saying the opposite right after it, no look at the prompt can tell.

All of it takes time in proportion to the prompt, however many messages there are and wherever they stand.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from rbee_remote.protocol import ErrorCode, RemoteError

_LOOKED_AT = ("system", "user", "tool")
#: Characters from which on a text that stands in a prompt is the message, and not a part of the template.
_NO_COINCIDENCE = 16
#: Words of a message that are looked for.
_WORDS = 1000
#: Characters that are read to find messages that are not in their place, a fifth of a second's work; and how often
#: the whole prompt is read on top of that. After that the probe alone tells.
_MOST_READ = 2**27
_MOST_TIMES = 16
#: What templates take out of a text, such as /no_think; it can be all of it.
_SWITCH = re.compile(r"(?<!\S)/\w+(?!\S)")
_PLACEHOLDER = re.compile(r"rbee([0-9]{1,9})mark")

Turn = dict[str, Any]


def find(turns: Sequence[Turn], prompt: str, shown: Callable[[], frozenset[int] | None]) -> list[int]:
    """The messages that `prompt` leaves out. shown: those that a probe shows, None where that failed; called once at
    most, and only where the prompt alone does not tell."""
    shown = functools.cache(shown)
    search, missing = _Search(prompt), []
    for index, turn in enumerate(turns):
        content = turn["content"].strip()
        if turn["role"] not in _LOOKED_AT or not content:
            continue
        if len(content) >= _NO_COINCIDENCE and search.has(content):
            continue
        seen = shown()
        if (seen is not None and index not in seen) or not search.has_most_of(content):
            missing.append(index)
    return missing


def until_asked(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation as it was when the user had said their last."""
    last = max((index for index, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    return list(turns[: last + 1])


def with_placeholders(turns: Sequence[Turn]) -> list[Turn]:
    """The conversation with a placeholder for what each one says: letters and digits alone, so that no way of writing
    changes it, and nothing else in it can be mistaken for it."""
    return [
        {**turn, "content": f"rbee{index}mark"} if turn["content"].strip() else turn for index, turn in enumerate(turns)
    ]


def placeholders_in(prompt: str) -> frozenset[int]:
    """The messages whose placeholder is there."""
    return frozenset(int(index) for index in _PLACEHOLDER.findall(prompt.lower()))


def error(turns: Sequence[Turn], index: int) -> RemoteError:
    role = turns[index]["role"]
    which = f"message {index + 1} of {len(turns)}, which is the {role}'s"
    details = {"field": f"messages[{index}].content"}
    if role == "user":
        return RemoteError(
            ErrorCode.MODEL_INVALID,
            f"the model's chat template leaves out {which}",
            details=details,
        )
    hint = "load a model that was trained to call tools"
    if role == "system":
        first_alone = index == 0 and [turn["role"] for turn in turns].count("system") == 1
        hint = "say it in the user's message" + ("" if first_alone else ", or in one system message at the beginning")
    return RemoteError(
        ErrorCode.USAGE,
        f"the model's chat template leaves out {which}: the model would not see it",
        hint=hint,
        details=details,
    )


class _Search:
    """For messages in a prompt. They mostly stand there in their order, so each is looked for behind the one before
    it, and then everywhere, as long as there is time for that."""

    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._at = 0
        self._left = _MOST_READ + _MOST_TIMES * len(prompt)

    def has(self, content: str) -> bool:
        return self._has([content], least=1)

    def has_most_of(self, content: str) -> bool:
        """Half of the words in their order, or all of it as JSON writes it. Yes where there is no time left."""
        said = _SWITCH.sub("", content)
        words = (re.findall(r"\w+", said) or list("".join(said.split())))[:_WORDS]
        return (
            self._has(words, least=(len(words) + 1) // 2)
            or any(self.has(json.dumps(content, ensure_ascii=ascii_only)[1:-1]) for ascii_only in (False, True))
            or self._left < 0
        )

    def _has(self, pieces: Sequence[str], *, least: int) -> bool:
        for start in sorted({self._at, 0}, reverse=True):
            found, at = 0, start
            for piece in pieces:
                here = self._find(piece, at)
                if here >= 0:
                    found, at = found + 1, here + len(piece)
            if found >= least:
                self._at = at
                return True
        return False

    def _find(self, piece: str, start: int) -> int:
        if self._left < 0:
            return -1
        here = self._prompt.find(piece, start)
        self._left -= (here if here >= 0 else len(self._prompt)) - start
        return here
