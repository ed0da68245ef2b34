"""What a chat template knows of reasoning, by its source: how it is switched on and off, and how it is written. Pure.

There is no common way. A template reads one variable or another, or none: then a model that is trained to reason always
does, unless its answer begins behind a closed block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: What opens and closes a block of reasoning.
_PAIRS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
#: A template that gets the reasoning of an earlier answer beside its text.
_FIELD = re.compile(r"reasoning_content|\.(?:thinking|reasoning)\b|\[['\"](?:thinking|reasoning)['\"]\]")
#: gpt-oss reasons in a channel of its own, and cannot be kept from it.
_CHANNEL = "<|channel|>analysis"

#: Variables that switch reasoning, with what they are for yes and for no; None where the template's default is to hold.
#: enable_thinking: Qwen 3, GLM, SmolLM 3, Nemotron, Gemma 4; thinking: DeepSeek V3.1, Granite, Kimi K3; reasoning:
#: Command A; thinking_mode: MiniMax M3; thinking_budget: Seed-OSS.
_SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (True, False),
    "thinking": (True, False),
    "reasoning": (True, False),
    "thinking_mode": ("enabled", "disabled"),
    "thinking_budget": (None, 0),
}
#: Variables that say how much.
_EFFORTS = ("reasoning_effort", "thinking_effort", "reasoning_strength")
#: Words for it, from the least. low, medium and high are for every template that says nothing else.
_WORDS = ("minimal", "low", "medium", "high", "xhigh", "max")
_COMMON = frozenset({"low", "medium", "high"})
_WORD = re.compile(rf"(['\"])({'|'.join(_WORDS)})\1")
#: The words for "not at all" that a template may know for those.
_NO_EFFORT = re.compile(r"(['\"])(none|no_think|minimal)\1")


@dataclass(frozen=True, slots=True)
class Traits:
    """pair: what opens and closes its block of reasoning. field: whether it is given the reasoning of earlier answers
    apart from their text. no_effort: its word for no effort at all. channel: whether it is gpt-oss's. efforts: the
    words for how much that stand in it."""

    pair: tuple[str, str] | None
    field: bool
    no_effort: str
    channel: bool
    efforts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, source: str) -> Traits:
        pair = next((pair for pair in _PAIRS if pair[1] in source), None)
        word = _NO_EFFORT.search(source)
        efforts = frozenset(found[2] for found in _WORD.finditer(source))
        return cls(pair, bool(_FIELD.search(source)), word[2] if word else "", _CHANNEL in source, efforts)

    @property
    def reasons(self) -> bool:
        return self.pair is not None or self.field or self.channel

    def known(self, effort: str) -> str:
        """The word for an effort that the template knows, or the nearest that it does: some raise an error for others,
        or write them down as they are."""
        if effort == "medium" and {"low", "high"} <= self.efforts:
            return effort if effort in self.efforts else "high"
        if effort not in _WORDS or effort in self.efforts | _COMMON:
            return effort
        below = [word for word in _WORDS[: _WORDS.index(effort)] if word in self.efforts | _COMMON]
        return below[-1] if below else "low"


@dataclass(frozen=True, slots=True)
class Wish:
    """think: whether the model is to reason, None for the template's default. effort: how much, "" for its default."""

    think: bool | None = None
    effort: str = ""

    @classmethod
    def of(cls, think: bool | None, effort: str, given: Mapping[str, Any]) -> Wish:
        """given: variables for the template, by which many clients say it."""
        effort = effort or next((given[name] for name in _EFFORTS if isinstance(given.get(name), str)), "")
        for name in ("enable_thinking", "thinking"):
            if think is None and isinstance(given.get(name), bool):
                think = given[name]
        if think is None and effort.lower() == "none":
            think = False
        return cls(think, "" if effort.lower() == "none" else effort)

    def variables(self, traits: Traits, read: frozenset[str]) -> dict[str, Any]:
        """What the template is given. read: the variables that it reads, here and below."""
        given: dict[str, Any] = {}
        if self.think is not None:
            values = {name: values[not self.think] for name, values in _SWITCHES.items() if name in read}
            given |= {name: value for name, value in values.items() if value is not None}
        effort = traits.known(self.effort)
        if self.think is False:
            effort = traits.no_effort or ("low" if traits.channel else effort)
        return given | {name: effort for name in _EFFORTS if effort and name in read}

    def warnings(self, traits: Traits, read: frozenset[str]) -> list[str]:
        """What of it the template cannot be told."""
        found = []
        if self.think is False and traits.channel:
            found.append("the model cannot be kept from reasoning; its lowest effort is taken")
        if self.think and not traits.reasons and not read & {*_SWITCHES}:
            found.append("the model's chat template knows nothing of reasoning; the model answers as it always does")
        if self.effort and not read & {*_EFFORTS}:
            found.append("the model's chat template knows no reasoning effort; the model takes its own")
        return found

    def closed(self, prompt: str, traits: Traits, read: frozenset[str]) -> str:
        """A prompt whose answer is not to begin with reasoning: an open block is closed, and where the template reads
        no switch, an empty one put there."""
        if self.think is not False or traits.pair is None:
            return prompt
        begin, end = traits.pair
        if prompt.rstrip().endswith(begin):
            return f"{prompt.rstrip()}\n\n{end}\n\n"
        switched = read & {*_SWITCHES} or (traits.no_effort and read & {*_EFFORTS})
        return prompt if switched or prompt.rstrip().endswith(end) else f"{prompt}{begin}\n\n{end}\n\n"


def split(content: str, pair: tuple[str, str]) -> tuple[str, str] | None:
    """The block of reasoning with which an answer begins, and the rest; None where there is none. The rest of a block
    that is not closed is None."""
    begin, end = pair
    start = content.lstrip()
    if not start.startswith(begin):
        return None
    reasoning, closed, rest = start[len(begin) :].partition(end)
    return (reasoning, rest) if closed else None


def unclosed(content: str, pair: tuple[str, str]) -> str | None:
    """What stands in a block of reasoning that is the whole of `content` and not closed."""
    begin, end = pair
    start = content.lstrip()
    return start[len(begin) :] if start.startswith(begin) and end not in start else None
