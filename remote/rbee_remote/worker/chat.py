"""The model's own chat template, rendered in Jinja's sandbox as transformers does it."""

from __future__ import annotations

import datetime
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

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, ending where the assistant's answer begins.

        Raises RemoteError: USAGE with the template's own words where it refuses the messages, MODEL_INVALID where it
        breaks on them.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=turns,
                add_generation_prompt=True,
                raise_exception=_raise_exception,
                strftime_now=_strftime_now,
                **self._special,
            )
        except _Refused as error:
            raise RemoteError(
                ErrorCode.USAGE, f"the model's chat template refuses the messages: {error}", hint=_HINT
            ) from error
        except Exception as error:  # a template is a program that came with the model: it can fail in any way
            raise RemoteError(
                ErrorCode.MODEL_INVALID, f"the model's chat template fails: {error}", hint=_HINT
            ) from error


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
