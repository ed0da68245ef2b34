"""What an answer is to look like and how it is read: from a request and its prompt to a constraint and a reader.

Rules
- A plain request gets neither, and costs nothing here.
- Everything is decided before the request has a slot, off the event loop and off the engine's lock.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee_remote.constraints.rules import Rule, content_rule, json_rule
from rbee_remote.protocol import GenerateRequest, ToolOptions
from rbee_remote.worker.dialects.find import GENERIC, dialect_of
from rbee_remote.worker.dialects.interface import Dialect, Tools
from rbee_remote.worker.engine.interface import Constraint, Engine
from rbee_remote.worker.requests.splitter import ReadBy
from rbee_remote.worker.requests.tool_use import NO_PARAMETERS, callable_functions

#: Templates whose dialect is remembered: the model's own, and some that requests bring.
_find = functools.lru_cache(maxsize=8)(dialect_of)


@dataclass(frozen=True, slots=True)
class Shape:
    """constraint: what form the answer has to have, None for any. read_by: how it is split, None where all of it is
    content. warnings: what of the request cannot be enforced. Good for one answer."""

    constraint: Constraint | None = None
    read_by: ReadBy | None = None
    warnings: tuple[str, ...] = ()


def shape(request: GenerateRequest, end: str, engine: Engine, *, tools_described: bool) -> Shape | None:
    """None where the answer is plain text.

    end: as in `Prompt`. tools_described: the prompt describes the tools itself, because the template knows nothing of
    them. Raises RemoteError USAGE naming the field.
    """
    content = content_rule(request.sampling)
    if not request.messages:
        return _shape(engine, f"start: {content.lark}", [content]) if content else None
    dialect = GENERIC if tools_described else _find(request.chat.template or engine.info.chat_template)
    functions = callable_functions(request.tools)
    enforced = bool(content or (functions and _is_enforced(request.tools, functions)))
    rules = _rules(request.tools, functions) if enforced else {}
    tools = _tools(request.tools, functions, rules) if functions else None
    read_by = _read_by(request, end, engine, dialect, tools) if tools or dialect.reasoning_end else None
    if not enforced:
        return Shape(read_by=read_by) if read_by else None
    grammar = dialect.grammar(tools, content.lark if content else None, engine.info.special_tokens, end)
    return _shape(engine, grammar, [*([content] if content else []), *rules.values()], read_by)


def _shape(engine: Engine, grammar: str, rules: Sequence[Rule], read_by: ReadBy | None = None) -> Shape:
    warnings = tuple(warning for rule in rules for warning in rule.warnings)
    return Shape(engine.constraint(grammar), read_by, warnings)


def _is_enforced(options: ToolOptions, functions: Mapping[str, Any]) -> bool:
    """Whether calls follow a grammar. Where the model is free to call, it does so as it was trained to."""
    some = len(functions) < len(options.functions)
    return options.choice == "required" or some or any(function.get("strict") for function in functions.values())


def _rules(options: ToolOptions, functions: Mapping[str, dict[str, Any]]) -> dict[str, Rule]:
    """Of the functions' arguments, by name. Raises RemoteError USAGE."""
    places = {tool["function"]["name"]: f"tools[{index}]" for index, tool in enumerate(options.functions)}
    return {
        name: json_rule(
            function.get("parameters") or NO_PARAMETERS,
            strict=bool(function.get("strict")),
            where=f"{places[name]}.function.parameters",
        )
        for name, function in functions.items()
    }


def _tools(options: ToolOptions, functions: Mapping[str, dict[str, Any]], rules: Mapping[str, Rule]) -> Tools:
    """A required call is one alone unless several are asked for: a small model might never end its list."""
    required = options.choice == "required"
    parameters = {
        name: (rules[name].schema if name in rules else function.get("parameters")) or NO_PARAMETERS
        for name, function in functions.items()
    }
    return Tools(parameters, required, not required if options.parallel is None else options.parallel)


def _read_by(request: GenerateRequest, end: str, engine: Engine, dialect: Dialect, tools: Tools | None) -> ReadBy:
    vocabulary, closing = engine.info.special_tokens, dialect.reasoning_end
    return ReadBy(
        dialect.reader(tools, vocabulary, end),
        markers={vocabulary[marker]: marker for marker in dialect.markers if marker in vocabulary},
        reasoning_end=tuple(engine.tokenize(closing, add_special=False, parse_special=True)) if closing else (),
        think_budget=request.chat.think_budget,
        most_calls=None if tools is None or tools.parallel else 1,
    )
