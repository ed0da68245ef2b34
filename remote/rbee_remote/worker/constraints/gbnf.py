"""llama.cpp's grammar notation (GBNF), read as llama.cpp reads it, with the place where a grammar is wrong.

Two things differ: elements that name a token (`<[7]>`, `<|end|>`), which few grammars have, are refused; and a
repetition may be as long as `MAX_ELEMENTS` allows, where llama.cpp has other limits, or none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Characters of a grammar.
MAX_LENGTH = 256 * 1024
#: Characters and references of all rules, once repetitions are written out.
MAX_ELEMENTS = 100_000

_NAME = re.compile(r"[A-Za-z0-9-]+")
_BLANKS = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANKS_AND_NEWLINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NEWLINE = re.compile(r"\r\n|\r|\n")
_COUNT = re.compile(r"[0-9]+")
_ESCAPED = re.compile(r'\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([trn\\"\[\]-]))')
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}


class GrammarError(ValueError):
    """What is wrong with a grammar. line and column: where, from 1; None where it is no single place."""

    def __init__(self, message: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(message if line is None else f"line {line}, column {column}: {message}")
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Terminal:
    """One character. ranges: first and last code point of each; negated: any character outside of them."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool = False

    def matches(self, code_point: int) -> bool:
        return any(first <= code_point <= last for first, last in self.ranges) != self.negated


ANY = Terminal((), negated=True)

#: A character, or the number of a rule.
Symbol = Terminal | int
Sequence = tuple[Symbol, ...]


@dataclass(slots=True)
class Grammar:
    """rules: the alternatives of each, by its number. names: theirs, `NAME_NUMBER` for those made of a part of NAME."""

    root: int = 0
    names: list[str] = field(default_factory=list)
    rules: list[tuple[Sequence, ...]] = field(default_factory=list)


def parse(text: str) -> Grammar:
    """Raises GrammarError."""
    if len(text) > MAX_LENGTH:
        raise GrammarError(f"a grammar may have at most {MAX_LENGTH} characters, this one has {len(text)}")
    return _Parser(text).parse()


@dataclass(slots=True)
class _Open:
    """A rule or group that is being read. last: where in `symbols` the item begins that a repetition would repeat."""

    number: int
    at: int
    alternatives: list[Sequence] = field(default_factory=list)
    symbols: list[Symbol] = field(default_factory=list)
    last: int = 0

    def add(self, item: list[Symbol]) -> None:
        self.last = len(self.symbols)
        self.symbols += item

    def next_alternative(self) -> None:
        self.alternatives.append(tuple(self.symbols))
        self.symbols = []
        self.last = 0


class _Parser:
    """Reads what llama_grammar_parser of llama.cpp's src/llama-grammar.cpp reads."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._elements = 0
        self._numbers: dict[str, int] = {}
        self._rules: dict[int, tuple[Sequence, ...]] = {}
        self._first_use: dict[int, int] = {}

    def parse(self) -> Grammar:
        if "\0" in self._text:
            raise self._error("a grammar cannot contain the character NUL", self._text.index("\0"))
        if bad := re.search("[\ud800-\udfff]", self._text):
            raise self._error("half a surrogate pair is no character", bad.start())
        self._skip(_BLANKS_AND_NEWLINES)
        while self._at < len(self._text):
            self._rule()
        for number, at in self._first_use.items():
            if number not in self._rules:
                raise self._error(f"the rule {list(self._numbers)[number]} is not defined", at)
        if "root" not in self._numbers:
            raise GrammarError("the grammar has no rule root")
        rules = [self._rules[number] for number in range(len(self._numbers))]
        return Grammar(self._numbers["root"], list(self._numbers), rules)

    def _rule(self) -> None:
        name = self._expect(_NAME, "a rule's name")
        self._skip(_BLANKS)
        number = self._number(name)
        if not self._text.startswith("::=", self._at):
            raise self._error("expected ::=")
        self._at += 3
        self._skip(_BLANKS_AND_NEWLINES)
        self._body(name, number)
        if self._at < len(self._text) and not self._skip(_NEWLINE):
            raise self._error("expected the end of the line")
        self._skip(_BLANKS_AND_NEWLINES)

    def _body(self, rule: str, number: int) -> None:
        """A rule's right-hand side. The stack holds what is open: groups may be deeper than Python recurses."""
        stack = [_Open(number, self._at)]
        while character := self._peek():
            top, nested, at = stack[-1], len(stack) > 1, self._at
            newlines = nested
            if character in "*+?{":
                self._repeat(rule, top, *self._repetition(nested=nested), at)
            elif character == "|":
                self._at += 1
                top.next_alternative()
                newlines = True
            elif character == "(":
                self._at += 1
                stack.append(_Open(self._synthesize(rule), at))
                newlines = True
            elif character == ")" and nested:
                self._at += 1
                group = self._close(stack.pop())
                stack[-1].add([group.number])
                self._grow([group.number])
                newlines = len(stack) > 1
            elif (item := self._item(character)) is not None:
                top.add(item)
                self._grow(item)
            else:
                break
            self._skip(_BLANKS_AND_NEWLINES if newlines else _BLANKS)
        if len(stack) > 1:
            raise self._error("the group is not closed", stack[-1].at)
        self._close(stack.pop())

    def _close(self, body: _Open) -> _Open:
        body.next_alternative()
        self._rules[body.number] = tuple(body.alternatives)
        return body

    def _item(self, character: str) -> list[Symbol] | None:
        """None for what ends the sequence."""
        if character == '"':
            self._at += 1
            return self._literal()
        if character == "[":
            self._at += 1
            return self._class()
        if character == ".":
            self._at += 1
            return [ANY]
        if character in "<!":
            raise self._error("elements that name a token are not supported")
        if _NAME.match(character):
            at = self._at
            number = self._number(self._expect(_NAME, "a rule's name"))
            self._first_use.setdefault(number, at)
            return [number]
        return None

    def _literal(self) -> list[Symbol]:
        opened = self._at - 1
        points: list[Symbol] = []
        while self._peek() != '"':
            if not self._peek():
                raise self._error("the string is not closed", opened)
            point = self._character()
            points.append(Terminal(((point, point),)))
        self._at += 1
        return points

    def _class(self) -> list[Symbol]:
        opened = self._at - 1
        negated = self._peek() == "^"
        self._at += negated
        ranges: list[tuple[int, int]] = []
        while self._peek() != "]":
            if not self._peek():
                raise self._error("the [ is not closed", opened)
            first = last = self._character()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                if not self._peek():
                    raise self._error("the [ is not closed", opened)
                last = self._character()
            ranges.append((first, last))
        self._at += 1
        return [Terminal(tuple(ranges), negated)] if ranges else []

    def _character(self) -> int:
        if self._peek() != "\\":
            self._at += 1
            return ord(self._text[self._at - 1])
        escaped = _ESCAPED.match(self._text, self._at)
        if escaped is None:
            raise self._error(f"unknown escape {self._text[self._at : self._at + 2]}")
        self._at = escaped.end()
        digits = escaped[1] or escaped[2] or escaped[3]
        return int(digits, 16) if digits else ord(_ESCAPES.get(escaped[4], escaped[4]))

    def _repetition(self, *, nested: bool) -> tuple[int, int | None]:
        """How often at least and at most, None for any number."""
        blanks = _BLANKS_AND_NEWLINES if nested else _BLANKS
        at = self._at
        character = self._text[at]
        self._at += 1
        if character != "{":
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        self._skip(blanks)
        least = self._count()
        most: int | None = least
        self._skip(blanks)
        if self._peek() == ",":
            self._at += 1
            self._skip(blanks)
            most = self._count() if _COUNT.match(self._text, self._at) else None
            self._skip(blanks)
        if self._peek() != "}":
            raise self._error("expected }")
        self._at += 1
        if most is not None and most < least:
            raise self._error(f"at least {least} times, but {most} at most", at)
        return least, most

    def _repeat(self, rule: str, body: _Open, least: int, most: int | None, at: int) -> None:
        """Write a repetition of the last item out: S{m,n} becomes m times S, then n - m rules S' ::= S S'' |, each
        with the next one inside; S{m,} m times S, then S' ::= S S' |."""
        item = body.symbols[body.last :]
        if not item:
            raise self._error("there is nothing to repeat before this", at)
        optional = 1 if most is None else most - least
        self._grow([*item, 0, 0], max(least - 1, 0) + optional)
        body.symbols[body.last :] = item * least
        tail: list[Symbol] = []
        for _ in range(optional):
            number = self._synthesize(rule)
            self._rules[number] = ((*item, *([number] if most is None else tail)), ())
            tail = [number]
        body.symbols += tail

    def _grow(self, symbols: list[Symbol], times: int = 1) -> None:
        self._elements += times * sum(len(symbol.ranges) if isinstance(symbol, Terminal) else 1 for symbol in symbols)
        if self._elements > MAX_ELEMENTS:
            raise self._error(f"the grammar has more than {MAX_ELEMENTS} elements, its repetitions written out")

    def _number(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers))

    def _synthesize(self, rule: str) -> int:
        return self._number(f"{rule}_{len(self._numbers)}")

    def _count(self) -> int:
        return int(self._expect(_COUNT, "a number").lstrip("0")[:9] or 0)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> bool:
        match = pattern.match(self._text, self._at)
        if match:
            self._at = match.end()
        return match is not None

    def _expect(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            raise self._error(f"expected {what}")
        self._at = match.end()
        return match[0]

    def _error(self, message: str, at: int | None = None) -> GrammarError:
        at = self._at if at is None else at
        line = self._text.count("\n", 0, at) + 1
        return GrammarError(message, line, at - (self._text.rfind("\n", 0, at)))
