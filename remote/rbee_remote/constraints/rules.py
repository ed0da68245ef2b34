"""A request's constraint as a rule of llguidance's Lark, checked.

`content_rule` is for what a request asks of its answer, `json_rule` for a schema from elsewhere, a tool's parameters.
Both raise RemoteError USAGE, whose message begins with the field, and NODE_UNSUPPORTED where llguidance is missing and
needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rbee_remote.constraints import blame, gbnf, library
from rbee_remote.constraints.library import GrammarError
from rbee_remote.constraints.places import SchemaError, shown
from rbee_remote.constraints.schema import Normaliser, normalise
from rbee_remote.protocol import ErrorCode, RemoteError, Sampling

#: Characters of a grammar or a regular expression; and of a schema, as JSON.
MAX_GRAMMAR = 64 * 1024
MAX_SCHEMA = 1024 * 1024
#: Where JSON may have white space, a blank, or a line break and an indentation: with all that JSON allows, a small
#: model writes line breaks until it has no tokens left. `u` is left out of the escapes because the library takes a name
#: that is spelled with one for another name.
_LAYOUT = {"whitespace_pattern": r" |\n[ \t]{0,20}", "json_allowed_escapes": 'nrbtf\\"'}
FIELDS = ("grammar", "regex", "json_schema", "lark")


@dataclass(frozen=True, slots=True)
class Rule:
    """lark: the body of a rule. warnings: what of a schema is not enforced, a line each. schema: the one that `lark`
    holds, where it is JSON."""

    lark: str
    warnings: tuple[str, ...] = ()
    schema: dict[str, Any] | None = None

    @property
    def grammar(self) -> str:
        """A whole grammar, for an answer that is this and nothing else."""
        return f"start: {self.lark}"


def given(sampling: Sampling) -> str:
    """The one field of `FIELDS` that a request has, "" for none. Raises RemoteError USAGE for two, or one too long."""
    found = [name for name in FIELDS if getattr(sampling, name) not in ("", None)]
    if len(found) > 1:
        raise _usage(found[1], f"cannot be given together with {found[0]}")
    for name in found:
        text = getattr(sampling, name)
        if isinstance(text, str) and len(text) > MAX_GRAMMAR:
            raise _usage(name, f"must have at most {MAX_GRAMMAR} characters, got {len(text)}")
    return found[0] if found else ""


def content_rule(sampling: Sampling) -> Rule | None:
    """None where a request asks for no form."""
    field = given(sampling)
    if not field:
        return None
    library.require()
    if field == "json_schema":
        return json_rule(sampling.json_schema, strict=sampling.strict, where=field)
    try:
        rule = Rule(_body(field, getattr(sampling, field)))
        library.check(rule.grammar)
    except GrammarError as error:
        reason = str(error).rpartition("(in regex): ")[2] if field == "regex" else str(error)
        raise _usage(field, f"cannot be used: {reason}") from error
    return rule


def json_rule(schema: Any, *, strict: bool, where: str) -> Rule:
    """For JSON that fits a schema. strict: whether what cannot be enforced is an error, or a warning. where: the field
    that the schema came in, for errors."""
    try:
        written, normaliser = normalise(schema, strict=strict)
        written_out = {**written, "x-guidance": _LAYOUT}
        text = _dumped(written_out)
        if library.is_available():
            _check(text, written, normaliser)
    except SchemaError as error:
        raise _usage(where, f"cannot be used: {error}") from error
    return Rule(f"%json {text}", tuple(f"{where}: {warning}" for warning in normaliser.warnings), written_out)


def _dumped(schema: dict[str, Any]) -> str:
    """Raises SchemaError."""
    try:
        text = json.dumps(schema, allow_nan=False)
        json.dumps(schema, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise SchemaError("the schema has half of a surrogate pair, which is no text") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"the schema is not JSON: {error}") from error
    if len(text) > MAX_SCHEMA:
        raise SchemaError(
            f"a schema may have at most {MAX_SCHEMA} characters, with its references this one has {len(text)}"
        )
    return text


def _check(text: str, written: dict[str, Any], normaliser: Normaliser) -> None:
    """Raises SchemaError, with the innermost place that is to blame, where llguidance does not take a schema."""
    try:
        library.check(f"start: %json {text}")
    except GrammarError as error:
        place, found = blame.find(written, normaliser, error)
        if "nsatisfiable" in str(found) or str(found) == "no text fits":
            raise SchemaError(f"{shown(place)}: no value fits") from error
        reason = str(found).rpartition("compile JSON schema: ")[2]
        raise SchemaError(f"{shown(place)}: {reason}") from error


def _body(field: str, text: str) -> str:
    if field == "regex":
        from llguidance import regex_to_lark

        if (len(text) - len(text.rstrip("\\"))) % 2:  # the library drops it
            raise GrammarError("it ends with a backslash that escapes nothing")
        return f"/{regex_to_lark(text)}/"
    return f"%lark {{{gbnf.to_lark(text) if field == 'grammar' else text}\n}}"


def _usage(field: str, what: str) -> RemoteError:
    return RemoteError(ErrorCode.USAGE, f"{field} {what}", details={"field": field})
