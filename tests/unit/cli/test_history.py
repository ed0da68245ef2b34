"""`rbee history`, and what `rbee chat` refuses before it begins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Session
from rbee.chat.store.sessions import Chats
from rbee.cli import main as cli


@pytest.fixture
def ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sessions about the sky and about tea."""
    monkeypatch.setenv("RBEE_HOME", str(tmp_path / "home"))
    with Chats(tmp_path / "home" / "chats.db") as chats:
        return [
            chats.keep(Session(conversation=Conversation((Turn(question, question, answer, "", "stop"),)))).id
            for question, answer in (("why is the\nsky blue?", "Rayleigh **scattering**."), ("tea?", "Yes."))
        ]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["history", *words]) == 0
    return capsys.readouterr().out


def test_list_search_and_show(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rows = [line.split() for line in said(capsys, "list").splitlines()]
    assert [row[0] for row in rows] == ["ID", ids[1], ids[0]]
    assert [each["id"] for each in json.loads(said(capsys, "search", "rayl", "scatt", "--json"))] == [ids[0]]
    assert said(capsys, "show", ids[0]) == "> why is the\n> sky blue?\n\nRayleigh **scattering**.\n"
    assert json.loads(said(capsys, "show", "--json"))["messages"][1]["content"] == "Yes."


def test_remove(ids: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(said(capsys, "remove", ids[0], "--json")) == {"removed": 1}
    assert json.loads(said(capsys, "remove", "--all", "--json")) == {"removed": 1}
    assert json.loads(said(capsys, "list", "--json")) == []
    for words in (["remove"], ["remove", ids[0]], ["remove", "--all", "x"], ["show"], ["search", " "]):
        assert cli.main(["history", *words]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--continue", "--no-history"], "--continue and --no-history were given"),
        (["abc"], "'abc' is taken with --continue alone"),
        (["--continue", "abc"], "there is no session 'abc'"),
        (["--no-think", "--reasoning-effort", "low"], "--no-think and --reasoning-effort were given"),
        (["--temperature", "9"], "--temperature: 9.0 is not between 0 and 5"),
        (["--node", "nope"], "no node 'nope'"),
        (["--model", "no such"], "model"),
    ],
)
def test_what_chat_refuses(ids: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["chat", *words]) in (2, 6)
    assert message in capsys.readouterr().err
