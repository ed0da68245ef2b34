"""What fits into a context, and what is left out where not all of it does."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from rbee.chat import room
from rbee.chat.conversation import Conversation, Turn

#: Bytes of a word and of the tokens that it is here.
WORD = "word "


def talk(turns: int, words: int = 40) -> Conversation:
    """Turns of so many words each way, of which the worker counted two tokens a word."""
    made: list[Turn] = []
    said = 0
    for number in range(turns):
        text = WORD * words
        said += words
        tokens = 2 * said + room.AROUND * (2 * number + 1)
        made.append(Turn(text, f"question {number}", text, "", "stop", tokens, 2 * words))
        said += words
    return Conversation(tuple(made))


def test_what_fits_is_sent_whole() -> None:
    asked = talk(3).asked("and?")
    assert room.fitted(asked, "", ctx=4096) == asked
    assert room.fitted(asked, "", ctx=0) == asked


def test_oldest_turns_go_until_half_is_free() -> None:
    asked = talk(10).asked("and?")
    shorter = room.fitted(asked, "be brief", ctx=1024)
    assert 0 < shorter.first < 10
    sent = len("".join(message.content for message in shorter.messages("be brief"))) / len(WORD) * 2
    assert sent <= 512
    assert shorter.turns == asked.turns


def test_once_left_out_the_next_turns_change_nothing_before_them() -> None:
    """Else the worker would compute the whole prompt anew for each."""
    shorter = room.fitted(talk(10).asked("and?"), "", ctx=1024)
    turn = replace(shorter.turns[-1], answer="yes", finish="stop", prompt_tokens=500, answer_tokens=1)
    answered = shorter.answered(turn)
    assert room.fitted(answered.asked("more?"), "", ctx=1024).first == shorter.first


def test_the_question_itself_is_never_left_out() -> None:
    asked = talk(4).asked(WORD * 4000)
    assert room.fitted(asked, "", ctx=1024).sent == asked.turns[-1:]


def test_what_the_worker_counted_decides_where_the_estimate_was_wrong() -> None:
    asked = Conversation(tuple(replace(turn, prompt_tokens=0) for turn in talk(6).turns)).asked("字" * 100)
    few = room.with_half_free(asked, "", 2000, counted=0)
    many = room.with_half_free(asked, "", 2000, counted=6000)
    assert many.first > few.first >= 1


def test_what_a_template_adds_to_a_short_question_is_not_expected_of_long_answers() -> None:
    """Figures of SmolLM2, whose template has a system message of its own."""
    asked = Conversation((Turn("Tell me a long story", "", "a tale " * 300, "", "length", 36, 512),)).asked("and?")
    assert room.fitted(asked, "", ctx=4096) == asked


def test_how_full_it_is_and_what_goes_next() -> None:
    use = room.used(talk(1), "", 4096)
    assert (use.tokens, use.is_counted, use.leaves_out) == (80 + room.AROUND + 80, True, ())
    nearly = room.used(talk(8), "", 2048)
    assert nearly.is_nearly_full
    assert not nearly.must_leave_out
    assert nearly.leaves_out[0] == "question 0"
    full = room.used(talk(10), "", 2048)
    assert full.must_leave_out
    assert full.leaves_out == room.names(room.fitted(talk(10).asked(""), "", 2048).turns[: len(full.leaves_out)])


def test_names_are_short_and_one_line() -> None:
    (name,) = room.names([Turn("q", "why is\nthe sky blue, and why is it red in the evening?")])
    assert name == "why is the sky blue, and why is…"


@given(
    turns=st.integers(0, 12), words=st.integers(0, 300), ctx=st.integers(0, 5000), limit=st.none() | st.integers(1, 900)
)
def test_whatever_is_left_out_is_a_beginning(turns: int, words: int, ctx: int, limit: int | None) -> None:
    asked = talk(turns, words).asked("and?")
    shorter = room.fitted(asked, "s", ctx, limit)
    assert shorter.turns == asked.turns
    assert asked.first <= shorter.first <= len(asked.turns) - 1
    assert room.fitted(shorter, "s", 0, limit) == shorter
