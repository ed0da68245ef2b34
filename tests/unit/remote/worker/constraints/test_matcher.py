from __future__ import annotations

import numpy as np
import pytest

from rbee_remote.worker.constraints import gbnf
from rbee_remote.worker.constraints.automaton import Automaton
from rbee_remote.worker.constraints.gbnf import GrammarError
from rbee_remote.worker.constraints.matcher import Matcher, Vocabulary

END, CONTROL = 0, 1
#: Every byte is a token, as in the vocabularies of real models, and so are some texts.
PIECES = [b"</s>", b"", *(bytes([byte]) for byte in range(256)), "aä".encode(), b"ab", b"abc", "ä".encode(), b"x\xe6"]
VOCABULARY = Vocabulary(PIECES, [END])


def matcher(grammar: str) -> Matcher:
    return Matcher(Automaton(gbnf.parse(grammar)), VOCABULARY)


def allowed(matcher: Matcher) -> set[bytes]:
    mask = VOCABULARY.allowed(matcher)
    assert [matcher.allows(token) for token in range(len(PIECES))] == mask.tolist()
    return {PIECES[token] for token in np.flatnonzero(mask)}


def accept(matcher: Matcher, *pieces: bytes) -> None:
    for piece in pieces:
        matcher.accept(PIECES.index(piece))


def test_whole_tokens_and_the_end() -> None:
    found = matcher('root ::= "abc" | "ab"')
    assert allowed(found) == {b"a", b"ab", b"abc"}
    accept(found, b"ab")
    assert allowed(found) == {b"c", b"</s>"}
    accept(found, b"c")
    assert allowed(found) == {b"</s>"}
    accept(found, b"</s>")
    assert allowed(found) == {b"</s>"}


def test_a_character_over_several_tokens() -> None:
    found = matcher('root ::= "漢" | "ä"')
    assert allowed(found) == {b"\xe6", b"\xc3", "ä".encode()}
    accept(found, b"\xe6")
    assert allowed(found) == {b"\xbc"}
    accept(found, b"\xbc")
    assert allowed(found) == {b"\xa2"}
    accept(found, b"\xa2")
    assert allowed(found) == {b"</s>"}


def test_the_beginning_of_a_character_needs_one_that_fits() -> None:
    assert b"x\xe6" in allowed(matcher('root ::= "x" [一-鿿]'))
    assert b"x\xe6" not in allowed(matcher('root ::= "x" [a-z]'))


@pytest.mark.parametrize("bytes_", [b"\xc0", b"\xc1", b"\xf5", b"\xff", b"\x80"])
def test_bytes_that_begin_no_character_are_never_allowed(bytes_: bytes) -> None:
    assert bytes_ not in allowed(matcher("root ::= .*"))


def test_overlong_and_surrogate_forms_are_never_allowed() -> None:
    found = matcher("root ::= .*")
    accept(found, b"\xe0")
    assert allowed(found) == {bytes([byte]) for byte in range(0xA0, 0xC0)}
    found = matcher("root ::= .*")
    accept(found, b"\xed")
    assert allowed(found) == {bytes([byte]) for byte in range(0x80, 0xA0)}


def test_a_token_without_text_is_never_allowed() -> None:
    assert not matcher("root ::= .*").allows(CONTROL)


def test_a_grammar_that_no_token_fits_allows_nothing() -> None:
    assert allowed(matcher(r"root ::= [^\x00-\U0010FFFF]")) == set()


def test_an_answer_that_finds_no_way_in_its_time_is_an_error() -> None:
    found = matcher("root ::= [a-c]*")
    found.patience.left = 0.0
    with pytest.raises(GrammarError, match="takes too long"):
        VOCABULARY.allowed(found)


def test_a_vocabulary_without_text() -> None:
    nothing = Vocabulary([b"", b""], [1])
    found = Matcher(Automaton(gbnf.parse("root ::= .*")), nothing)
    assert nothing.allowed(found).tolist() == [False, True]
