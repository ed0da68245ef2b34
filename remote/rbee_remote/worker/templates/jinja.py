"""Jinja as chat templates know it: transformers' sandbox, filters and functions."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Characters of an error's text that are passed on: a template can raise one of any length.
_MOST_WORDS = 500


class Refused(Exception):
    """A template called raise_exception."""


def environment(unescaped: Callable[[str], str]) -> jinja2.Environment:
    """unescaped: takes JSON with escapes for all but ASCII, and takes back those that must not be there."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now

    def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
        """Without Jinja's own escapes for HTML, which no prompt wants."""
        written = json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=options.get("separators"),
            sort_keys=bool(options.get("sort_keys", False)),
        )
        return unescaped(written) if ensure_ascii else written

    made.filters["tojson"] = tojson
    return made


def dates() -> dict[str, str]:
    """The day in the variables by which templates ask for it, in llama.cpp's forms: Llama 3's, and Firefunction's. A
    template that gets none takes a day of its own."""
    now = datetime.datetime.now().astimezone()
    return {"date_string": now.strftime("%d %b %Y"), "datetime": now.strftime("%b %d %Y")}


def words(error: Exception) -> str:
    """One line of what went wrong; Python says nothing of some errors."""
    text = str(error)[:_MOST_WORDS] or type(error).__name__
    return " ".join(text.split())


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


def _raise_exception(message: object) -> NoReturn:
    raise Refused(str(message)[:_MOST_WORDS])


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(form)
