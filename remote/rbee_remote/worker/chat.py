"""The model's own chat template, rendered in Jinja's sandbox as transformers does it."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rbee_remote.protocol import ErrorCode, Message, RemoteError
from rbee_remote.worker.interface import ModelInfo

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

_HINT = "use --raw to send the prompt without the model's chat template"


class ChatTemplate:
    """A model's template, compiled once. Raises RemoteError MODEL_INVALID when the model's is not Jinja."""

    def __init__(self, info: ModelInfo) -> None:
        self._special = {"bos_token": info.bos, "eos_token": info.eos}
        try:
            self._template = _environment().from_string(info.chat_template or CHATML)
        except jinja2.TemplateError as error:
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template cannot be read: {error}", hint=_HINT
            ) from error

    def render(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The prompt, ending where the assistant's answer begins. tools: what it may call, in OpenAI's form.

        Raises RemoteError: USAGE with the template's own words where it refuses the messages, and where it knows
        nothing of tools; MODEL_INVALID where it breaks on them.
        """
        if tools and not self._takes_tools:
            raise RemoteError(
                ErrorCode.USAGE,
                "tools: the model's chat template knows nothing of tools",
                hint="load a model that was trained to call them",
                details={"field": "tools"},
            )
        try:
            return self._render([self._turn(message) for message in messages], tools)
        except _Refused as error:
            raise RemoteError(
                ErrorCode.USAGE, f"the model's chat template refuses the messages: {error}", hint=_HINT
            ) from error
        except Exception as error:  # a template is a program that came with the model: it can fail in any way
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template fails: {error}", hint=_HINT
            ) from error

    def _render(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> str:
        return self._template.render(
            messages=turns,
            add_generation_prompt=True,
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            **({"tools": list(tools)} if tools else {}),
            **self._special,
        )

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

    def _try(self, turns: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> str:
        """What the template makes of it; nothing where it fails."""
        try:
            return self._render(turns, tools)
        except Exception:  # a template is a program that came with the model: it can fail in any way
            return ""


def _called(arguments: Any) -> list[dict[str, Any]]:
    """A chat in which a tool was called and has answered."""
    call = {"id": "call00001", "type": "function", "function": {"name": _PROBE, "arguments": arguments}}
    answer = {"role": "tool", "content": "1", "tool_call_id": "call00001", "name": _PROBE}
    return [_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}, answer]


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


def _raise_exception(message: str) -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
