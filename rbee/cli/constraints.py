"""--schema, --grammar, --regex and --lark of `rbee infer`: what form the answer has to have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rbee.base.errors import UsageError
from rbee.cli.inputs import INPUTS
from rbee.cli.options import check_text

SchemaOption = Annotated[
    str | None,
    typer.Option(
        "--schema", metavar="FILE|JSON", help="Answer in JSON that fits this JSON schema, a file or the JSON itself."
    ),
]
GrammarOption = Annotated[
    Path | None,
    typer.Option("--grammar", metavar="FILE", help="Answer in a form that this grammar allows (llama.cpp's GBNF)."),
]


RegexOption = Annotated[
    str | None,
    typer.Option("--regex", metavar="TEXT", help="Answer in a text that this regular expression matches as a whole."),
]
LarkOption = Annotated[
    Path | None,
    typer.Option("--lark", metavar="FILE", help="Answer in a form that this grammar allows (llguidance's Lark)."),
]
_OPTIONS = {"json_schema": "--schema", "grammar": "--grammar", "regex": "--regex", "lark": "--lark"}


def read_constraints(
    schema: SchemaOption = None, grammar: GrammarOption = None, regex: RegexOption = None, lark: LarkOption = None
) -> dict[str, Any]:
    """Fields of `Sampling`. Raises UsageError for two of them, a file that cannot be read, and what no answer fits or
    what is no schema, grammar or expression."""
    given = {"json_schema": schema, "grammar": grammar, "regex": regex, "lark": lark}
    named = [_OPTIONS[name] for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise UsageError(f"{named[0]} and {named[1]} were given", hint="leave out one of them")
    fields: dict[str, Any] = {}
    if schema is not None:
        fields = {"json_schema": _read_schema(schema)}
    elif regex is not None:
        if not regex:
            raise UsageError("--regex is empty")
        check_text("--regex", regex)
        fields = {"regex": regex}
    for name, path in (("grammar", grammar), ("lark", lark)):
        if path is not None:
            fields = {name: read_text(_OPTIONS[name], path)}
            if not fields[name].strip():
                raise UsageError(f"{_OPTIONS[name]}: {path} is empty")
    if fields:
        _check(fields)
    return fields


def _check(fields: dict[str, Any]) -> None:
    """Before anything is connected, as far as this machine can tell: a grammar needs llguidance for that."""
    from rbee_remote.constraints import library, rules
    from rbee_remote.protocol import RemoteError, Sampling

    (field,) = fields
    try:
        if field == "json_schema":
            rules.json_rule(fields[field], strict=True, where=field)
        elif library.is_available():
            rules.content_rule(Sampling(**fields))
        else:
            rules.given(Sampling(**fields))
    except RemoteError as error:
        raise UsageError(f"{_OPTIONS[field]}{error.message.removeprefix(field)}") from error


def read_text(option: str, path: Path) -> str:
    """Raises UsageError that names the option."""
    try:
        return decode_text(INPUTS.get().file(path), f"{option}: {path}")
    except OSError as error:
        raise UsageError(f"{option}: cannot read {path}: {error.strerror}") from error


def decode_text(content: bytes, name: str) -> str:
    """name: of the file, for the UsageError where it is no text."""
    try:
        return content.decode("utf-8-sig")  # some editors write a byte order mark, which is no part of the text
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from error


def _read_schema(given: str) -> dict[str, Any]:
    import json

    if not given.strip():
        raise UsageError("--schema is empty", hint="give a file with a JSON schema, or the schema itself")
    is_json = given.lstrip().startswith(("{", "[", '"'))
    name = "the value of --schema" if is_json else f"--schema: {given}"
    try:
        schema = json.loads(given if is_json else read_text("--schema", Path(given)))
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{name} is not a JSON schema", hint='a schema is a JSON object, such as {"type": "object"}')
    return schema
