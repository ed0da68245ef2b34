"""A chat with a worker on this machine whose model is a script: what its words do, and what stays of what was said."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rbee.chat.asked import Asked
from rbee.chat.chat import Chat
from rbee.chat.interfaces import Session
from rbee.chat.store.sessions import Chats
from rbee.inventory import LOCAL, Node
from tests.doubles import chat_worker
from tests.doubles.chat_worker import Screen


@pytest.fixture
def worker() -> Iterator[Path]:
    with chat_worker.running_worker() as socket:
        yield socket


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
async def chat(tmp_path: Path, worker: Path, screen: Screen) -> AsyncIterator[Chat]:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    context = chat_worker.context_of(home, Node(LOCAL, home=str(tmp_path / "node")))
    chat_worker.know_worker(context.settings.registry_path, LOCAL, worker)
    with Chats(home / "chats.db") as store:
        async with Chat(context, screen, store, Session(asked=Asked())) as made:
            made.prepare()
            yield made


def said(chat: Chat) -> list[str]:
    return [message.content for message in chat.conversation.messages(chat.system)]


async def test_a_conversation(chat: Chat, screen: Screen, tmp_path: Path) -> None:
    await chat.take("hi")
    await chat.take("and now?")
    assert screen.answers == ["you said: hi", "you said: and now?"]
    assert said(chat) == ["hi", "you said: hi", "and now?", "you said: and now?"]
    assert chat.ctx == chat_worker.CTX
    assert chat.state == f"smollm2:135m on local · 2% of {chat_worker.CTX:,} tokens"

    await chat.take("/retry")
    assert said(chat)[-1] == screen.answers[-1] == "you said: and now?"
    assert len(chat.conversation.turns) == 2
    screen.edits = "rather this"
    await chat.take("/edit")
    assert said(chat)[-2:] == ["rather this", "you said: rather this"]
    await chat.take("/undo")
    assert said(chat) == ["hi", "you said: hi"]

    (tmp_path / "a.txt").write_text("some text")
    await chat.take(f"/file {tmp_path / 'a.txt'}")
    await chat.take("what is it?")
    assert said(chat)[-2] == f"File `{tmp_path / 'a.txt'}`:\n\n```txt\nsome text\n```\n\nwhat is it?"
    await chat.take("/edit")
    assert said(chat)[-2].endswith("some text\n```\n\nrather this")

    await chat.take("/copy")
    assert screen.copied == chat.conversation.turns[-1].answer.removesuffix("\n") or "```" in said(chat)[-1]
    await chat.take("/system Be brief.")
    await chat.take("/set temperature 0.2")
    await chat.take("/think low")
    await chat.take("/think hide")
    assert (chat.session.asked.sampling, chat.session.asked.effort, screen.is_folded) == (
        {"temperature": 0.2},
        "low",
        True,
    )
    assert said(chat)[0] == "Be brief."
    await chat.take("/tokens")
    assert [value[:12] for name, value in screen.rows if name == "context"] == ["4,096 tokens"]
    assert screen.errors == []

    await chat.take("/save greetings")
    kept = chat.session
    await chat.take("/new")
    assert said(chat) == ["Be brief."]
    await chat.take("/sessions hi")
    assert [row[0] for row in screen.rows] == [kept.id]
    await chat.take("/load greetings")
    assert chat.session == kept
    await chat.take("/nonsense")
    await chat.take("/load nothing")
    assert [error.message for error in screen.errors] == ["there is no /nonsense", "there is no session 'nothing'"]
    assert chat.failure is screen.errors[-1]
    await chat.take("/exit")
    assert chat.is_over

    log = (chat.context.settings.log / "audit.log").read_text().splitlines()
    entries = [json.loads(line) for line in log]
    assert {(entry["action"], entry["node"], entry["outcome"]) for entry in entries} == {("chat", LOCAL, "ok")}
    assert "hi" not in json.dumps([entry.get("prompt") for entry in entries])


async def test_ctrl_c_stops_the_answer_and_what_came_stays(chat: Chat, screen: Screen) -> None:
    def press(came: str) -> None:
        if came.endswith("line 3\n"):
            screen.on_token = lambda _: None
            os.kill(os.getpid(), signal.SIGINT)

    screen.on_token = press
    await chat.take("long")
    (turn,) = chat.conversation.turns
    assert turn.answer.startswith("line 0\n\nline 1\n\nline 2\n\nline 3\n")
    assert "line 399" not in turn.answer
    assert (turn.finish, screen.errors) == ("", [])
    assert screen.notices[-1] == "stopped; what came of the answer is kept; /retry asks again"
    await chat.take("go on")
    assert screen.answers[-1] == "you said: go on"
    assert said(chat)[1] == turn.answer
    assert chat.store is not None
    assert chat.store.find("").conversation == chat.conversation


async def test_a_full_context_is_told_before_and_the_chat_goes_on(chat: Chat, screen: Screen) -> None:
    for number in range(5):
        await chat.take(f"{number} " + "word " * 80)
    assert screen.errors == []
    before = [text for text in screen.notices if "full (" in text]
    gone = [text for text in screen.notices if text.startswith("the context is full; left out from now on: “0 word")]
    assert before
    assert screen.notices.index(before[0]) < screen.notices.index(gone[0])
    assert 0 < chat.conversation.first < 5
    assert len(chat.conversation.turns) == 5


async def test_what_the_worker_finds_too_long_is_made_shorter(chat: Chat, screen: Screen) -> None:
    """The estimate was wrong: nothing was counted yet."""
    from rbee.chat.conversation import Conversation, Turn

    turns = tuple(Turn(f"q{n}", f"q{n}", "x" * 1500, "", "stop") for n in range(4))
    chat.conversation = Conversation(turns)
    await chat.take("and now?")
    assert screen.errors == []
    assert screen.answers == ["you said: and now?"]
    assert chat.conversation.first >= 2


async def test_a_question_too_long_by_itself_is_an_error_and_the_chat_goes_on(chat: Chat, screen: Screen) -> None:
    await chat.take("word " * 1000)
    assert ["too long" in error.message for error in screen.errors] == [True]
    await chat.take("hi")
    assert said(chat) == ["hi", "you said: hi"]


async def test_where_nothing_can_be_kept_the_chat_goes_on(chat: Chat, screen: Screen) -> None:
    assert isinstance(chat.store, Chats)
    chat.store._connection.execute("drop table turns")
    await chat.take("hi")
    await chat.take("again")
    assert screen.answers == ["you said: hi", "you said: again"]
    assert len([text for text in screen.notices if "nothing is kept" in text]) == 1


async def test_where_lines_that_were_typed_cannot_be_kept_the_message_is_sent_all_the_same(
    chat: Chat, screen: Screen
) -> None:
    assert isinstance(chat.store, Chats)
    chat.store._connection.execute("pragma query_only = on")
    await chat.take("hi")
    await chat.take("again")
    assert (screen.answers, screen.errors) == (["you said: hi", "you said: again"], [])
    assert len([text for text in screen.notices if "nothing is kept" in text]) == 1


@pytest.mark.parametrize("word", ["/retry", "/edit"])
async def test_an_answer_stays_where_another_one_was_asked_for_and_none_came(
    chat: Chat, screen: Screen, word: str
) -> None:
    await chat.take("hi")
    before = chat.conversation
    screen.edits = "word " * 1000  # longer than the context
    if word == "/retry":
        await chat.take(f"/system {screen.edits}")
    await chat.take(word)
    assert ["too long" in error.message for error in screen.errors] == [True]
    assert chat.conversation == before
    assert chat.store is not None
    assert chat.store.find("").conversation == before


@pytest.mark.parametrize(
    "text", ["/load \udcff", "/sessions \udcff", "/sessions \0", "/file a\0b", "/file ~nobody-of-this-name/x"]
)
async def test_whatever_is_typed_the_chat_goes_on(chat: Chat, screen: Screen, text: str) -> None:
    await chat.take(text)
    await chat.take("caf\udcff")
    assert screen.answers == ["you said: caf?"]
