"""Grammars, regular expressions and Lark, as texts that they allow and texts that they do not."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee_remote.constraints import library
from rbee_remote.constraints.rules import Rule, content_rule
from rbee_remote.protocol import ErrorCode, RemoteError, Sampling
from tests.answers import fits
from tests.patience import PATIENCE_S

NOTHING = r"root ::= [^\x00-\U0010FFFF]"


def rule(**fields: Any) -> Rule:
    found = content_rule(Sampling(**fields))
    assert found is not None
    return found


def test_free_text_has_no_rule() -> None:
    assert content_rule(Sampling()) is None


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
        ('root ::= [a-z]+ "x"', ["ax", "xx", "xxx"], ["x", "xa"]),
        ('root ::= word "x"\nword ::= [a-z]+', ["ax", "xxx"], ["x"]),
        ('root ::= "ab" "z" | [a-z] "bc"', ["abz", "abc"], ["ab"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a"]),
        ("root ::= [a/[&&~~] [^a/]", ["/b", "[b", "&b", "~~"], ["b/", "//"]),
        (r"root ::= [\u00e0-\u00e5] [\U0001F600]", ["ä😀"], ["e😀", "ä"]),
        (
            'root ::= fooBar foo-bar foo_bar 9x start\nfooBar ::= "a"\nfoo-bar ::= "b"\nfoo_bar ::= "c"\n9x ::= "d"\n'
            'start ::= "e"',
            ["abcde"],
            ["abcd"],
        ),
        (r'root ::= "/" [/]', ["//"], ["/"]),
        ('root ::= "a" | root2\nroot2 ::= "b" root2', ["a"], ["b", "ba"]),
        (r'root ::= "" | [^\x00-\U0010FFFF]', [""], ["a"]),
        ('root ::= "(a" ")*"', ["(a)*"], ["aa"]),
    ],
)
def test_the_notation(grammar: str, inside: list[str], outside: list[str]) -> None:
    found = rule(grammar=grammar)
    assert [text for text in inside if not fits(found, text)] == []
    assert [text for text in outside if fits(found, text)] == []


@pytest.mark.parametrize(
    ("fields", "inside", "outside"),
    [
        ({"regex": "a+|b"}, ["aa", "b"], ["ab", ""]),
        ({"regex": r"\d{4}-\d\d"}, ["2024-12"], ["2024-1", "x2024-12"]),
        ({"regex": "^/a/$"}, ["/a/"], ["a"]),
        ({"regex": "(?i)ja"}, ["JA"], ["j"]),
        ({"regex": "a\nb"}, ["a\nb"], ["ab"]),
        ({"lark": 'start: "a" other\nother: /[0-9]+/ | start'}, ["a1", "aa12"], ["a", "1"]),
        ({"lark": 'start: "a" %json {"type": "integer"}'}, ["a12"], ["a1.5"]),
        ({"json_schema": {"type": "integer"}}, ["12"], ["1.5"]),
        (
            {"json_schema": {"type": "array"}},
            ["[1, 2]", "[\n  1,\n  2\n]", "[\n" + " " * 20 + "1]"],
            ["[  1]", "[\n\n1]", "[ \n1]", "[\n" + " " * 21 + "1]"],
        ),
    ],
)
def test_the_other_forms(fields: dict[str, Any], inside: list[str], outside: list[str]) -> None:
    found = rule(**fields)
    assert [text for text in inside if not fits(found, text)] == []
    assert [text for text in outside if fits(found, text)] == []
    nested = Rule(f'"<" inner ">"\ninner: {found.lark}')  # as a part of a dialect's grammar
    assert [text for text in inside if not fits(nested, f"<{text}>")] == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grammar": 'answer ::= "a"'}, "the grammar has no rule root"),
        ({"grammar": 'root = "a"'}, "Expected ::= at line 1"),
        ({"grammar": 'root ::= "a"\n\n  b := "c"'}, "Expected ::= at line 3"),
        ({"grammar": 'root ::= "a" | nothing'}, "the rule nothing is not defined"),
        ({"grammar": 'root ::= "a'}, "unexpected end of the grammar at line 1"),
        ({"grammar": "root ::= [a-"}, "unexpected end of the grammar at line 1"),
        ({"grammar": "root ::= [z-a]"}, "the range in [] ends before it begins at line 1"),
        ({"grammar": 'root ::= "b" ("a"'}, "Expected ')' at line 1"),
        ({"grammar": 'root ::= "a" )'}, "Expected name at line 1"),
        ({"grammar": r'root ::= "\q"'}, r"unknown escape \q at line 1"),
        ({"grammar": r'root ::= "\u12"'}, r"\u needs 4 hex digits of a character at line 1"),
        ({"grammar": 'root ::= | *"a"'}, "Expected name at line 1"),
        ({"grammar": 'root ::= "a"{x}'}, "Expected integer at line 1"),
        ({"grammar": 'root ::= "a"{1;2}'}, "Expected ',' or '}' at line 1"),
        ({"grammar": 'root ::= "a"{3,2}'}, "something is repeated at least 3 times, but 2 at most"),
        ({"grammar": 'root ::= "a"{1000000000}'}, "something is repeated more than 1000000 times"),
        ({"grammar": "root ::= <[7]>"}, "Expected name at line 1"),
        ({"grammar": "root ::= " + "(" * 30_000}, "the grammar is nested too deeply"),
        ({"grammar": NOTHING}, "no text fits the rule root, which never ends"),
        ({"grammar": 'root ::= "x" root'}, "no text fits the rule root, which never ends"),
        ({"grammar": "root ::= a\na ::= b\nb ::= a"}, "no text fits the rule root, which never ends"),
        ({"regex": "("}, "cannot be used: regex parse error: ( error: unclosed group"),
        ({"regex": "(?=a)b"}, "cannot be used: regex parse error: (?=a)b error: look-around, "),
        ({"regex": "a\\"}, "cannot be used: it ends with a backslash that escapes nothing"),
        ({"regex": "[^\\x00-\\u{10FFFF}]"}, "no text fits"),
        ({"lark": 'start: "a" x\nx: nothing'}, 'at 2(4): unknown name: "nothing"'),
        ({"lark": "start: }"}, "Expected"),
        ({"lark": 'x: "a"'}, "no start"),
    ],
)
def test_what_cannot_be_used_names_the_field(fields: dict[str, Any], message: str) -> None:
    (field,) = fields
    with pytest.raises(RemoteError) as caught:
        rule(**fields)
    assert caught.value.code is ErrorCode.USAGE
    assert caught.value.details == {"field": field}
    assert caught.value.message.startswith(f"{field} cannot be used: ")
    assert message.lower() in caught.value.message.lower()


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(a|b)*a(a|b){2000}"},
        {"grammar": 'root ::= ("a"{1000} "b"){1000}' + "{1000}"},
        {"grammar": "\n".join(["root ::= r0 r0", *(f"r{n} ::= r{n + 1} r{n + 1} | r{n + 1}" for n in range(40)),
                               'r40 ::= "a"'])},
        {"grammar": 'root ::= s s\ns ::= s s | "a" | ""'},
        {"grammar": "root ::= ([a-z] | . | [^x])*"},
        {"lark": "start: s\ns: s s | /a/ |"},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_grammar_takes_its_time_and_no_more(fields: dict[str, Any]) -> None:
    """It is followed, or refused. A step has a bound; how many there are, the sampler sees to."""
    begun, longest = time.monotonic(), 0.0
    try:
        matcher = library.make_matcher(library.bytes_tokenizer(), rule(**fields).grammar)
        assert time.monotonic() - begun < PATIENCE_S
        while time.monotonic() - begun < 2 and not matcher.is_stopped():
            step = time.monotonic()
            matcher.try_consume_tokens([ord("a")])
            matcher.compute_bitmask()
            longest = max(longest, time.monotonic() - step)
    except RemoteError as error:
        assert error.code is ErrorCode.USAGE
    assert longest < PATIENCE_S


def test_two_forms_are_one_too_many() -> None:
    with pytest.raises(RemoteError, match=r"^json_schema cannot be given together with regex$"):
        content_rule(Sampling(regex="a", json_schema={}))


def test_without_llguidance_a_constrained_request_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "is_available", lambda: False)
    assert content_rule(Sampling()) is None
    each: list[dict[str, Any]] = [{"regex": "a"}, {"json_schema": {}}, {"grammar": "x"}, {"lark": "x"}]
    for fields in each:
        with pytest.raises(RemoteError, match=r"^this node has no llguidance, so ") as caught:
            content_rule(Sampling(**fields))
        assert caught.value.code is ErrorCode.NODE_UNSUPPORTED
        assert caught.value.hint.startswith("use a node with glibc 2.31 or newer, or macOS")


def test_what_was_not_known_without_llguidance_is_known_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    broken, overlapping = "^(ab|c", ("^x", "x$")
    with monkeypatch.context() as missing:
        missing.setattr(library, "is_available", lambda: False)
        assert (library.pattern_trouble(broken), library.may_overlap(overlapping)) == ("", False)
    assert "unclosed group" in library.pattern_trouble(broken)
    assert library.may_overlap(overlapping)


@given(st.text(st.sampled_from('root ::= "a" | () [] b{2}*+?.\n#\\'), max_size=40))
def test_any_grammar_is_followed_or_refused(text: str) -> None:
    try:
        found = rule(grammar="root ::= " + text)
    except RemoteError as error:
        assert error.code is ErrorCode.USAGE
    else:
        fits(found, "ab")


@given(st.from_regex(r"\A(a|[b-d]{1,2}|\(e*\))(f|g){0,3}h?\Z"), st.text("abcdefgh()", max_size=8))
def test_a_grammar_agrees_with_a_regular_expression(inside: str, other: str) -> None:
    found = rule(grammar='root ::= ("a" | [b-d]{1,2} | "(" "e"* ")") ("f" | "g"){0,3} "h"?')
    pattern = re.compile(r"(a|[b-d]{1,2}|\(e*\))(f|g){0,3}h?")
    assert fits(found, inside)
    assert fits(found, other) == bool(pattern.fullmatch(other))
