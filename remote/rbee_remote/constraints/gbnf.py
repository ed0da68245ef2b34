"""llama.cpp's grammars (GBNF) as Lark.

The grammar is read by llguidance's converter (`gbnf_to_lark`), but for what that gets wrong: escapes of characters
above 127, classes with a `/`, a `-` at an end or operators of Rust's regular expressions in them, and `.`, which in
GBNF is a line break, too. And it is written here, a character at a time: the converter makes lexemes of whole rules,
of which the longest wins, so that `[a-z]+ "x"` would never end; in GBNF all ways to read a text count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rbee_remote.constraints.library import GrammarError

if TYPE_CHECKING:
    from llguidance import gbnf_to_lark as library

#: The most that anything may be repeated. Repetitions within each other multiply only in the parser, which is bounded.
MAX_REPETITION = 1_000_000
MAX_CHARACTER = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}


def to_lark(text: str) -> str:
    """A whole grammar. Raises GrammarError, also for one that no text fits."""
    rules = _parse(text)
    if "root" not in rules:
        raise GrammarError("the grammar has no rule root")
    names = {name: "start" if name == "root" else f"r{index}" for index, name in enumerate(rules)}
    useful = _useful(rules)
    if "root" not in useful:
        raise GrammarError("no text fits the rule root, which never ends")
    return "\n".join(f"{names[name]}: {_write(rules[name].alternatives, names, useful)}" for name in useful)


def _parse(text: str) -> dict[str, Any]:
    """Rules by name; of two with one name, the last. Raises GrammarError."""
    from llguidance.gbnf_to_lark import GbnfToLarkError

    try:
        rules = _parser().parse(text)
    except RecursionError as error:
        raise GrammarError("the grammar is nested too deeply") from error
    except GbnfToLarkError as error:
        raise GrammarError(str(error)) from error
    for rule in rules.values():
        for node in _nodes(rule):
            if type(node).__name__ == "RuleRefNode" and node.name not in rules:
                raise GrammarError(f"the rule {node.name} is not defined")
            if type(node).__name__ == "RepetitionNode":
                _check_repetition(node)
    return rules


def _check_repetition(node: Any) -> None:
    least, most = node.min_times, node.max_times
    if most is not None and least > most:
        raise GrammarError(f"something is repeated at least {least} times, but {most} at most")
    if max(least, most or 0) > MAX_REPETITION:
        raise GrammarError(f"something is repeated more than {MAX_REPETITION} times")


def _nodes(rule: Any) -> Iterator[Any]:
    todo: list[Any] = [rule]
    while todo:
        node = todo.pop()
        yield node
        todo += node.children()


def _useful(rules: dict[str, Any]) -> dict[str, None]:
    """Names of the rules that some finite text fits, in their order."""
    useful: set[str] = set()
    grown = True
    while grown:
        fits = {name for name, rule in rules.items() if _fits(rule.alternatives, useful)}
        grown, useful = fits != useful, fits
    return {name: None for name in rules if name in useful}


def _fits(node: Any, useful: set[str]) -> bool:
    match type(node).__name__:
        case "RuleRefNode":
            return node.name in useful
        case "RegexNode":
            return bool(node.rx)
        case "RepetitionNode":
            return not node.min_times or _fits(node.node, useful)
        case "AlternativeNode":
            return any(_fits(part, useful) for part in node.children())
        case _:
            return all(_fits(part, useful) for part in node.children())


def _write(node: Any, names: dict[str, str], useful: dict[str, None]) -> str:
    """Without the alternatives that no text fits."""
    match type(node).__name__:
        case "LiteralNode":
            return " ".join(f"/{_character(ord(character))}/" for character in node.value) or '""'
        case "RegexNode":
            return f"/{node.rx}/"
        case "RuleRefNode":
            return names[node.name]
        case "RepetitionNode" if not _fits(node.node, set(useful)) or node.max_times == 0:
            return '""'
        case "RepetitionNode":
            most = "" if node.max_times is None else node.max_times
            return f"({_write(node.node, names, useful)}){{{node.min_times},{most}}}"
        case "AlternativeNode":
            fitting = [part for part in node.alternatives if _fits(part, set(useful))]
            return f"({' | '.join(_write(part, names, useful) for part in fitting)})"
        case _:
            return " ".join(_write(part, names, useful) for part in node.nodes) or '""'


def _character(code: int) -> str:
    """In a regular expression."""
    return f"\\u{{{code:X}}}"


def _class(ranges: list[tuple[int, int]], *, negated: bool) -> str:
    """A regular expression for one character, "" where none fits."""
    merged: list[tuple[int, int]] = []
    outside = [_SURROGATES] if negated else []
    for first, last in sorted(ranges + outside):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    if negated:
        edges = [(-1, -1), *merged, (MAX_CHARACTER + 1, MAX_CHARACTER + 1)]
        gaps = [(left[1] + 1, right[0] - 1) for left, right in itertools.pairwise(edges)]
        merged = [(first, last) for first, last in gaps if first <= last]
    parts = [f"{_character(first)}-{_character(last)}" for first, last in merged]
    return f"[{''.join(parts)}]" if parts else ""


def _parser() -> library.GrammarParser:
    from llguidance.gbnf_to_lark import (
        ASTNode,
        GbnfToLarkError,
        GrammarParser,
        LiteralNode,
        Position,
        RegexNode,
        SequenceNode,
    )

    class Parser(GrammarParser):
        """Characters are themselves in the nodes, not escapes."""

        def _parse_char(self, pos: Position) -> tuple[str, Position]:
            character = pos.current()
            if character == "":
                raise GbnfToLarkError(pos, "unexpected end of the grammar")
            if character != "\\":
                return character, pos.advance()
            pos = pos.advance()
            kind = pos.current()
            if kind in _HEX_DIGITS:
                return self._parse_hex(pos, _HEX_DIGITS[kind])
            if kind == "" or kind not in '"\\[]nrt-^':
                raise GbnfToLarkError(pos, f"unknown escape \\{kind}")
            return _ESCAPES.get(kind, kind), pos.advance()

        def _parse_hex(self, pos: Position, length: int) -> tuple[str, Position]:
            digits = pos.peek(length + 1)[1:]
            try:
                code = int(digits, 16) if len(digits) == length and digits.isalnum() else -1
            except ValueError:
                code = -1
            if not 0 <= code <= MAX_CHARACTER:
                raise GbnfToLarkError(pos, f"\\{pos.current()} needs {length} hex digits of a character")
            return chr(code), pos.advance(length + 1)

        def _parse_char_class(self, pos: Position) -> tuple[ASTNode, Position]:
            pos = pos.advance()
            negated = pos.current() == "^"
            if negated:
                pos = pos.advance()
            ranges: list[tuple[int, int]] = []
            while pos.current() != "]":
                first, pos = self._parse_char(pos)
                last = first
                if pos.current() == "-" and pos.peek(2)[1:] != "]":
                    last, pos = self._parse_char(pos.advance())
                if first > last:
                    raise GbnfToLarkError(pos, "the range in [] ends before it begins")
                ranges.append((ord(first), ord(last)))
            return RegexNode(_class(ranges, negated=negated)), pos.advance()

        def _parse_literal(self, pos: Position) -> tuple[ASTNode, Position]:
            pos, text = pos.advance(), ""
            while pos.current() != '"':
                character, pos = self._parse_char(pos)
                text += character
            return LiteralNode(text), pos.advance()

        def _parse_sequence(self, pos: Position, is_nested: bool) -> tuple[SequenceNode, Position]:
            sequence, pos = super()._parse_sequence(pos, is_nested)
            for node in _nodes(sequence):
                if isinstance(node, RegexNode) and node.rx == ".":
                    node.rx = _class([], negated=True)
            return sequence, pos

    return Parser()
