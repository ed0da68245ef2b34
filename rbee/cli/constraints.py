"""--schema and --grammar of `rbee infer`: what form the answer has to have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rbee.base.errors import UsageError

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


def read_constraints(schema: SchemaOption = None, grammar: GrammarOption = None) -> dict[str, Any]:
    """Fields of `Sampling`. Raises UsageError for both, a file that cannot be read, and what is no JSON object."""
    if schema is not None and grammar is not None:
        raise UsageError("--schema and --grammar were given", hint="leave out one of them")
    if grammar is not None:
        text = read_text(grammar)
        if not text.strip():
            raise UsageError(f"the grammar {grammar} is empty")
        return {"grammar": text}
    return {} if schema is None else {"json_schema": _read_schema(schema)}


def read_text(path: Path) -> str:
    """Raises UsageError."""
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def decode_text(content: bytes, name: str) -> str:
    """name: of the file, for the UsageError where it is no text."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})") from error


def _read_schema(given: str) -> dict[str, Any]:
    import json

    if not given.strip():
        raise UsageError("--schema is empty", hint="give a file with a JSON schema, or the schema itself")
    is_json = given.lstrip().startswith(("{", "[", '"'))
    name = "the value of --schema" if is_json else given
    try:
        schema = json.loads(given if is_json else read_text(Path(given)))
    except RecursionError as error:
        raise UsageError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise UsageError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{name} is not a JSON schema", hint='a schema is a JSON object, such as {"type": "object"}')
    return schema
