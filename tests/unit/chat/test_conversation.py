"""What was said, and what of it is sent."""

from __future__ import annotations

from rbee.chat.conversation import Conversation, Turn
from rbee_remote.protocol import Message


def talk(*answers: str) -> Conversation:
    """Questions q0, q1, … with these answers."""
    made = Conversation()
    for number, answer in enumerate(answers):
        made = made.asked(f"q{number}").answered(
            Turn(f"q{number}", f"q{number}", answer, finish="stop" if answer else "")
        )
    return made


def test_messages_begin_the_same_with_each_turn() -> None:
    first, second = talk("a0").messages("be brief"), talk("a0", "a1").messages("be brief")
    assert second[: len(first)] == first
    assert [message.role for message in second] == ["system", "user", "assistant", "user", "assistant"]


def test_reasoning_goes_along_and_the_template_decides() -> None:
    turn = Turn("q", "q", "a", reasoning="hm", finish="stop")
    assert Conversation((turn,)).messages() == (Message("user", "q"), Message("assistant", "a", reasoning="hm"))


def test_a_part_of_an_answer_is_an_answer() -> None:
    asked = Conversation().asked("q").answered(Turn("q", "q", "half an ans"))
    assert [message.content for message in asked.asked("go on").messages()] == ["q", "half an ans", "go on"]


def test_the_next_question_takes_the_place_of_one_without_an_answer() -> None:
    assert [message.content for message in talk("a0", "").asked("q2").messages()] == ["q0", "a0", "q2"]


def test_an_empty_answer_that_is_whole_is_one() -> None:
    empty = Conversation().asked("q").answered(Turn("q", "q", "", finish="stop"))
    assert [message.role for message in empty.asked("next").messages()] == ["user", "assistant", "user"]


def test_undo_and_again() -> None:
    said = talk("a0", "a1")
    assert said.undone() == talk("a0")
    assert said.again().last == Turn("q1", "q1")
    assert talk("a0").undone() == Conversation()


def test_what_was_left_out_is_not_sent_and_comes_back_with_undo() -> None:
    said = Conversation(talk("a0", "a1", "a2").turns, first=2)
    assert [message.content for message in said.messages("s")] == ["s", "q2", "a2"]
    assert said.undone().first == 0
