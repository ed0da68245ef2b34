"""The model's own chat template, rendered in Jinja's sandbox as transformers does it.

Only `render` imports this: a template can take any time and memory, so it runs in a process of its own.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rbee_remote.protocol import ErrorCode, Message, RemoteError
from rbee_remote.worker.templates import omissions

#: For models that come without a template. ChatML is the most common format among them.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

#: What is looked for in a prompt, to see what a template makes of tools and calls.
_PROBE = "probe_of_rbee"
_PROBE_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": _PROBE,
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"p": {"type": "string", "description": "d"}},
            "required": ["p"],
        },
    },
}
_ASKED: dict[str, Any] = {"role": "user", "content": "u"}

HINT = "use --raw to send the prompt without the model's chat template"

#: Characters of an error's text that are passed on: a template can raise one of any length.
_MOST_WORDS = 500


class TooLong(Exception):
    """A template writes more than it may."""


class ChatTemplate:
    """A model's template, compiled once. source: None for a model without one. bos and eos: their text.

    Raises RemoteError MODEL_INVALID when the source is not Jinja. Here and in `render` MemoryError goes through.
    """

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = _environment().from_string(source or CHATML)
        except MemoryError:
            raise
        except Exception as error:  # jinja2's own errors, and Python's over the code that it makes
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template cannot be read: {_words(error)}", hint=HINT
            ) from error

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, most: int = 2**24) -> str:
        """`render`, and nothing that was said is left out. Raises RemoteError as that and `omissions.error` do."""
        text = self.render(messages, tools, most=most)
        turns = [self._turn(message) for message in messages]
        missing = self._missing(turns, tools, text, most)
        if missing:
            raise omissions.error(turns, missing[0])
        return text

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), *, most: int = 2**24) -> str:
        """The prompt, ending where the assistant's answer begins. tools: what it may call, in OpenAI's form.

        most: characters. Raises TooLong; RemoteError: USAGE with the template's own words where it refuses the
        messages, and where it knows nothing of tools; MODEL_INVALID where it breaks on them.
        """
        if tools and not self._takes_tools:
            raise RemoteError(
                ErrorCode.USAGE,
                "tools: the model's chat template does not support tools",
                hint="load a model that was trained to call them",
                details={"field": "tools"},
            )
        try:
            return self._render([self._turn(message) for message in messages], tools, most)
        except (MemoryError, TooLong):
            raise
        except _Refused as error:
            raise RemoteError(
                ErrorCode.USAGE, f"the model's chat template refuses the messages: {_words(error)}", hint=HINT
            ) from error
        except Exception as error:  # a template is a program that came with the model: it can fail in any way
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template fails: {_words(error)}", hint=HINT
            ) from error

    def _render(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]], most: int) -> str:
        chunks = self._template.generate(
            messages=turns,
            add_generation_prompt=True,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            **({"tools": list(tools)} if tools else {}),
            **self._special,
        )
        return _joined(chunks, most)

    def _missing(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]], text: str, most: int) -> list[int]:
        """As `_not_in`, but for a system's message that would be there if nobody had spoken after the user."""
        missing = self._not_in(text, turns, tools, most)
        asked = omissions.until_asked(turns)
        if not any(turns[index]["role"] == "system" for index in missing) or not 0 < len(asked) < len(turns):
            return missing
        then = self._not_in(self._try(asked, tools, most), asked, tools, most)
        return [index for index in missing if turns[index]["role"] != "system" or index >= len(asked) or index in then]

    def _not_in(self, text: str, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]], most: int) -> list[int]:
        """The messages that are left out of `text`, their prompt."""

        def shown() -> frozenset[int] | None:
            """None where the template fails on the probe."""
            probe = self._try(omissions.with_placeholders(turns), tools, most)
            return omissions.placeholders_in(probe) if probe else None

        return omissions.find(turns, text, shown)

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as templates know it. Keys that say nothing are left out: many ask only whether they are there."""
        turn: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            turn["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.tool_call_id:
            turn["tool_call_id"] = message.tool_call_id
        if message.name:
            turn["name"] = message.name
        return turn

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        """With its arguments as an object where the template writes JSON of them."""
        function = call["function"]
        if not self._takes_objects:
            return call
        try:
            arguments = json.loads(function["arguments"])
        except (ValueError, RecursionError):
            return call  # what a model wrote need not be JSON; the template gets it as it is
        return {**call, "function": {**function, "arguments": arguments}}

    @functools.cached_property
    def _takes_tools(self) -> bool:
        """Whether a tool's name gets into the prompt."""
        return _PROBE in self._try([_ASKED], [_PROBE_TOOL])

    @functools.cached_property
    def _takes_objects(self) -> bool:
        """Whether the template knows what to do with arguments that are an object, as most do: where it takes them for
        text, it fails on them, or writes them as Python would."""
        shown = self._try(_called({_PROBE: 1}), [_PROBE_TOOL])
        if shown:
            return f"{{'{_PROBE}'" not in shown
        return not self._try(_called(json.dumps({_PROBE: 1})), [_PROBE_TOOL])

    def _try(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]], most: int = 2**20) -> str:
        """What the template makes of it; nothing where it fails."""
        try:
            return self._render(turns, tools, most)
        except MemoryError:
            raise
        except Exception:  # a template is a program that came with the model: it can fail in any way
            return ""


def _called(arguments: Any) -> list[dict[str, Any]]:
    """A chat in which a tool was called and has answered."""
    call = {"id": "call00001", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
    answer = {"role": "tool", "content": "1", "tool_call_id": "call00001", "name": _PROBE}
    return [_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]


def _joined(chunks: Iterable[str], most: int) -> str:
    """Raises TooLong."""
    parts, length = [], 0
    for chunk in chunks:
        length += len(chunk)
        if length > most:
            raise TooLong
        parts.append(chunk)
    return "".join(parts)


def _words(error: Exception) -> str:
    """One line of what went wrong; Python says nothing of some errors."""
    text = str(error)[:_MOST_WORDS] or type(error).__name__
    return " ".join(text.split())


class _Refused(Exception):
    """A template called raise_exception."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it without ClassVar

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    @staticmethod
    def _content(caller: Any) -> str:
        return str(caller())


def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.filters["tojson"] = _tojson
    return environment


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Jinja's own escapes for HTML, which no prompt wants."""
    separators = options.get("separators")
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=bool(options.get("sort_keys", False)),
    )


def _raise_exception(message: object) -> NoReturn:
    raise _Refused(str(message)[:_MOST_WORDS])


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
