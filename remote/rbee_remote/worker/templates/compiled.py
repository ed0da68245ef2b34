"""One template: its code, and what it makes of tools, calls and reasoning, as far as somebody asks."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import meta

from rbee_remote.protocol import ErrorCode, RemoteError
from rbee_remote.worker.templates import jinja, probes
from rbee_remote.worker.templates.reasoning import Traits
from rbee_remote.worker.templates.shapes import Tool, Turn

#: Names by which templates read the tools beside `tools`: SmolLM 3, Llama 3 and MiniMax; and Firefunction, which wants
#: them as JSON, of the functions alone.
_TOOLS = ("xml_tools", "custom_tools", "functions")
_MARKER = re.compile(r"\s*(<[^<>\s]+>|\[[^\[\]\s]+\])")


#: What is not there, as templates want to be told of it: as in transformers; not at all; as Firefunction does.
_NONES: tuple[dict[str, Any], ...] = ({"tools": None, "documents": None}, {}, {"functions": ""})


class TooLong(Exception):
    """A template writes more than it may."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a template is given. opening: whether the prompt ends where the assistant's answer begins. names: the
    variables in which it gets the tools. written: as JSON, of the functions alone."""

    turns: Sequence[Turn]
    tools: Sequence[Tool] = ()
    variables: dict[str, Any] = field(default_factory=dict)
    opening: bool = True
    names: tuple[str, ...] = ("tools",)
    written: bool = False


class CompiledTemplate:
    """seams: characters that are never written as an escape; they may change from one rendering to the next.

    Raises RemoteError MODEL_INVALID when the source is not Jinja. MemoryError goes through, here and in all methods.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        self.source = source
        self.seams = ""
        self._nones = _NONES[0]
        self._constants = {"bos_token": bos, "eos_token": eos}
        self._environment = jinja.environment(self._unescaped)
        try:
            self._template = self._environment.from_string(source)
        except MemoryError:
            raise
        except Exception as error:  # jinja2's own errors, and Python's over the code that it makes
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template cannot be read: {jinja.words(error)}"
            ) from error

    def render(self, chat: Chat, most: int) -> str:
        """most: characters. Raises TooLong, jinja.Refused, and anything that a program can raise.

        Tools and documents that there are none of are None, as in transformers; templates that were written for others
        fail on that, and get what they do not fail on from then on."""
        try:
            return self._render(chat, most)
        except (MemoryError, TooLong):
            raise
        except Exception:
            if chat.tools or self._nones is not _NONES[0]:
                raise
            for self._nones in _NONES[1:]:
                if (text := self._tried(chat, most)) is not None:
                    return text
            self._nones = _NONES[0]
            raise

    def _tried(self, chat: Chat, most: int) -> str | None:
        """None where it fails."""
        try:
            return self._render(chat, most)
        except (MemoryError, TooLong):
            raise
        except Exception:  # a template is a program that came with the model: it can fail in any way
            return None

    def _render(self, chat: Chat, most: int) -> str:
        variables = {
            **self._constants,
            **jinja.dates(),
            **self._nones,
            **chat.variables,
            **(dict.fromkeys(chat.names, _given(chat)) if chat.tools else {}),
            "messages": list(chat.turns),
            "add_generation_prompt": chat.opening,
        }
        return _joined(self._template.generate(variables), most)

    def attempt(self, chat: Chat, most: int = 2**20) -> str:
        """What the template makes of it; nothing where it fails."""
        try:
            return self.render(chat, most)
        except MemoryError:
            raise
        except Exception:  # a template is a program that came with the model: it can fail in any way
            return ""

    @functools.cached_property
    def traits(self) -> Traits:
        return Traits.of(self.source)

    @functools.cached_property
    def read(self) -> frozenset[str]:
        """The variables that the template reads, and some that it makes itself."""
        return frozenset(meta.find_undeclared_variables(self._environment.parse(self.source)))

    @functools.cached_property
    def takes_tools(self) -> tuple[tuple[str, ...], bool]:
        """The variables in which the template takes tools, none where it knows nothing of them; and whether it wants
        them as JSON."""
        others = [("tools", name) for name in _TOOLS if name in self.read]
        tried = [(names, False) for names in (("tools",), *others)]
        tried += [(names[1:], True) for names in others]
        for names, written in tried:
            probe = Chat([probes.ASKED], [probes.TOOL], names=names, written=written)
            if probes.TOOL_NAME in self.attempt(probe):
                return names, written
        return (), False

    @functools.cached_property
    def shows_calls(self) -> bool:
        shown = [self.attempt(Chat(probes.called(form))) for form in probes.ARGUMENTS]
        return any(word in text for text in shown for word in (probes.CALL_NAME, probes.ARGUMENT))

    @functools.cached_property
    def shows_results(self) -> bool:
        return any(probes.RESULT in self.attempt(Chat(probes.called(form))) for form in probes.ARGUMENTS)

    @functools.cached_property
    def takes_objects(self) -> bool:
        """Whether the template knows what to do with arguments that are an object, as most do: where it takes them for
        text, it fails on them, or writes them as Python would."""
        as_object, as_text = (self.attempt(Chat(probes.called(form), [probes.TOOL])) for form in probes.ARGUMENTS)
        return probes.PYTHON not in as_object if as_object else not as_text

    @functools.cached_property
    def end_of_turn(self) -> str:
        """The marker behind what the assistant says; "" where there is none."""
        _, _, behind = self.attempt(Chat(probes.ANSWERED, opening=False)).partition(probes.RESULT)
        marker = _MARKER.match(behind)
        return marker[1] if marker else ""

    def _unescaped(self, written: str) -> str:
        for letter in self.seams:
            written = written.replace(json.dumps(letter)[1:-1], letter)
        return written


def _given(chat: Chat) -> Any:
    """Its tools."""
    if not chat.written:
        return list(chat.tools)
    return json.dumps([tool["function"] for tool in chat.tools], ensure_ascii=False, indent=4)


def _joined(chunks: Iterable[str], most: int) -> str:
    """Raises TooLong."""
    parts, length = [], 0
    for chunk in chunks:
        length += len(chunk)
        if length > most:
            raise TooLong
        parts.append(chunk)
    return "".join(parts)
