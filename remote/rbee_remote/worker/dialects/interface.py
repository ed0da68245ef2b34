"""What a dialect is: how one family of models writes reasoning and tool calls.

Words: a marker is text by which the chat template sets something apart, such as `<think>` or `[TOOL_CALLS]`. In most
vocabularies a marker is a token of its own, a control token as a rule; `Vocabulary` says which. A marker that has a
token counts only where the model wrote that token: the same characters in prose are prose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

#: Markers that are tokens in this model's vocabulary, with their ids.
Vocabulary = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer itself."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A call of the tool of that name begins. id: the model's own for the call, "" where it gives none."""

    name: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class CallArguments:
    """The next characters of the arguments, a JSON object, of the call that began last."""

    text: str


Piece = Content | Reasoning | CallBegin | CallArguments


@dataclass(frozen=True, slots=True)
class Tools:
    """What may be called. parameters: of each function, by name, a JSON schema. required: the answer is nothing but
    calls. parallel: whether there may be several."""

    parameters: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    required: bool = False
    parallel: bool = True


class Reader(Protocol):
    """Reads one answer as it comes, whatever way it is cut into tokens. No text is lost: what turns out to be no call
    comes back as content."""

    @property
    def in_reasoning(self) -> bool:
        """Whether what comes next belongs to an open block of reasoning."""

    def feed(self, text: str, *, marker: bool = False) -> list[Piece]:
        """What has become certain. marker: `text` is one of the vocabulary's markers, written as its token."""

    def finish(self) -> list[Piece]:
        """The rest, once no text follows: an answer can be cut off anywhere."""


class Dialect(Protocol):
    """One family's way. All methods are pure."""

    @property
    def name(self) -> str:
        """As the docs call it."""

    @property
    def markers(self) -> tuple[str, ...]:
        """All markers that the reader looks for."""

    @property
    def reasoning_end(self) -> str:
        """What ends an open block of reasoning; "" for a dialect without reasoning."""

    def recognises(self, template: str) -> bool:
        """Whether a chat template, Jinja, is of this dialect."""

    def reader(self, tools: Tools | None, vocabulary: Vocabulary, prompt: str) -> Reader:
        """For one answer. tools: None where none may be called. prompt: its end decides whether the template has opened
        a block of reasoning already."""

    def grammar(self, tools: Tools | None, content: str | None, vocabulary: Vocabulary, prompt: str) -> str:
        """llguidance's Lark for a whole answer: reasoning where the model may reason, then what is asked for.

        content: the body of a Lark rule for an answer that is no call, None for any text."""
