from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.worker.constraints import gbnf
from rbee_remote.worker.constraints.automaton import DEAD, MAX_BRANCHES, Automaton
from rbee_remote.worker.constraints.gbnf import GrammarError


def automaton(grammar: str) -> Automaton:
    return Automaton(gbnf.parse(grammar))


def matches(automaton: Automaton, text: str) -> bool:
    state = automaton.start
    for character in text:
        state = automaton.step(state, automaton.class_of(ord(character)))
    return automaton.can_end(state)


@pytest.mark.parametrize(
    ("grammar", "inside", "outside"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["", "y", "yesno", "Yes"]),
        ("root ::= [a-cx] [^0-9]", ["ab", "x!", "aß"], ["a1", "da", "a"]),
        (r'root ::= "\x41\u00e4\U0001F600\"\n" [\]\-]', ['Aä😀"\n]', 'Aä😀"\n-'], ['Aä😀"\n']),
        ("root ::= [a-]", ["a", "-"], ["b"]),
        ("root ::= .", ["x", "\n", "漢"], ["", "xy"]),
        ('root ::= "ab"* "c"+ "d"?', ["c", "ababccd"], ["ab", "abd", "cdd"]),
        ('root ::= "a"{2} "b"{1,3} "c"{2,}', ["aabcc", "aabbbccc"], ["abcc", "aabbbbcc", "aabc"]),
        ('root ::= "a"{0} "b"{0,1}', ["", "b"], ["a", "bb"]),
        ('root ::= ("a" | ("b" "c")\n  )* # one\n# two\nunused ::= "x"', ["", "abca"], ["b", "x"]),
        ("root ::= ", [""], ["a"]),
        ('root ::= "(" root ")" | ""', ["", "()", "((()))"], ["(", "(()"]),
        ('root ::= ws* "a"\nws ::= [ \\t]*', ["a", " \t a"], [" "]),
        ('root ::= "a"\nroot ::= "b"', ["b"], ["a"]),
    ],
)
def test_the_notation(grammar: str, inside: list[str], outside: list[str]) -> None:
    found = automaton(grammar)
    assert [text for text in inside if not matches(found, text)] == []
    assert [text for text in outside if matches(found, text)] == []


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "the grammar has no rule root"),
        ('answer ::= "a"', "the grammar has no rule root"),
        ('root = "a"', "line 1, column 6: expected ::="),
        ('root ::= "a"\n\n  b := "c"', "line 3, column 5: expected ::="),
        ('root ::= "a" | nothing', "line 1, column 16: the rule nothing is not defined"),
        ('root ::= "a', "line 1, column 10: the string is not closed"),
        ("root ::= [a-", "line 1, column 10: the [ is not closed"),
        ('root ::= "b" ("a"', "line 1, column 14: the group is not closed"),
        ('root ::= "a" )', "line 1, column 14: expected the end of the line"),
        (r'root ::= "\q"', r"line 1, column 11: unknown escape \q"),
        ('root ::= | *"a"', "line 1, column 12: there is nothing to repeat before this"),
        ('root ::= "a"{x}', "line 1, column 14: expected a number"),
        ('root ::= "a"{1;2}', "line 1, column 15: expected }"),
        ('root ::= "a"{3,2}', "line 1, column 13: at least 3 times, but 2 at most"),
        ("root ::= <[7]>", "line 1, column 10: elements that name a token are not supported"),
        ('root ::= "a\0"', "line 1, column 12: a grammar cannot contain the character NUL"),
        ('root ::= "\ud800"', "line 1, column 11: half a surrogate pair is no character"),
    ],
)
def test_an_error_says_where(grammar: str, message: str) -> None:
    with pytest.raises(GrammarError) as caught:
        gbnf.parse(grammar)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "grammar",
    [
        'root ::= "a"{1000000000}',
        'root ::= "a"{0,1000000000}',
        'root ::= ("a"{1000} "b"){1000}' + "{1000}",
        'root ::= "' + "a" * 100 + '"{2000}',
        "root ::= " + "(" * 50_000 + ")" * 50_000 + '"a"{100001}',
        "root ::= [" + "a" * gbnf.MAX_LENGTH + "]",
    ],
)
def test_what_would_grow_too_large_is_refused(grammar: str) -> None:
    with pytest.raises(GrammarError, match=r"more than 100000 elements|may have at most 262144 characters"):
        gbnf.parse(grammar)


@pytest.mark.parametrize(
    ("grammar", "rule"),
    [
        ('root ::= root "a" | "b"', "root is left-recursive"),
        ('root ::= "x" a\na ::= b "y"\nb ::= a | "z"', "a is left-recursive"),
        ('root ::= a root "x" | "y"\na ::= b\nb ::= ""', "root is left-recursive"),  # llama.cpp never comes back
        ('root ::= "a" x\nx ::= n x\nn ::= m\nm ::= ""', "x never ends"),  # llama.cpp ends the process
        ("root ::= a\na ::= b\nb ::= a", "root never ends"),
        ("root ::= " + " | ".join(f'"{number}"' for number in range(MAX_BRANCHES + 1)), "root is left-recursive, or"),
    ],
)
def test_a_rule_that_cannot_be_begun_is_named(grammar: str, rule: str) -> None:
    with pytest.raises(GrammarError, match=f"the rule {re.escape(rule)}"):
        automaton(grammar)


def test_alternatives_that_multiply_are_refused() -> None:
    """2**40 ways to begin r0."""
    rules = [f"r{number} ::= r{number + 1} r{number + 1} | r{number + 1}" for number in range(40)]
    with pytest.raises(GrammarError, match="the rule r0 is left-recursive, or has too many beginnings"):
        automaton("\n".join([*rules, 'r40 ::= "a"', 'root ::= "x" r0']))


def test_equal_stacks_are_one() -> None:
    """Three ways to read each character: 3**1000 ways through the text, but a handful of states."""
    found = automaton("root ::= ([a-z] | . | [^x])*")
    assert matches(found, "a" * 1000)
    assert found.step(found.start, found.class_of(ord("a"))) != DEAD


def test_stacks_that_multiply_end_in_an_error() -> None:
    """After n characters there are 2**n answers to what is still to come."""
    found = automaton('root ::= s\ns ::= "a" s "b" | "a" s "c" | "a"')
    with pytest.raises(GrammarError, match=r"too ambiguous|too large"):
        matches(found, "a" * 100)


def test_a_table_that_grows_without_end_is_an_error() -> None:
    found = automaton('root ::= "a" root "b" | "' + "".join(map(chr, range(0x4E00, 0x5000))) + '"')
    with pytest.raises(GrammarError, match="grown too large"):
        matches(found, "a" * 100_000)
    assert found.worn


@given(st.text(st.sampled_from('root ::= "a" | () [] b{2}*+?.\n#\\'), max_size=40))
def test_anything_is_parsed_or_refused(text: str) -> None:
    try:
        found = automaton("root ::= " + text)
    except GrammarError as error:
        assert str(error)
    else:
        matches(found, "ab")


@given(st.from_regex(r"\A(a|[b-d]{1,2}|\(e*\))(f|g){0,3}h?\Z"), st.text("abcdefgh()", max_size=8))
def test_it_agrees_with_a_regular_expression(inside: str, other: str) -> None:
    found = automaton('root ::= ("a" | [b-d]{1,2} | "(" "e"* ")") ("f" | "g"){0,3} "h"?')
    pattern = re.compile(r"(a|[b-d]{1,2}|\(e*\))(f|g){0,3}h?")
    assert matches(found, inside)
    assert matches(found, other) == bool(pattern.fullmatch(other))
