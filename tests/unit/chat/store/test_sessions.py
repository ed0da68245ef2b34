"""Sessions are kept, found, searched and removed; two chats at once lose nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError, UsageError
from rbee.chat.asked import Asked
from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Session
from rbee.chat.store.sessions import Chats
from tests.patience import PATIENCE_S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "chats.db"


@pytest.fixture
def chats(path: Path) -> Iterator[Chats]:
    with Chats(path) as opened:
        yield opened


def session(*texts: str, **changes: object) -> Session:
    turns = tuple(Turn(text, text, f"about {text}", "hm", "stop", 10, 3) for text in texts)
    return replace(Session(conversation=Conversation(turns)), **changes)  # type: ignore[arg-type]


def test_what_is_kept_comes_back_whole(chats: Chats, path: Path) -> None:
    asked = Asked("coder", "gpu1", "", {"temperature": 0.2}, ("END",), 50, None, "low")
    kept = chats.keep(session("tea", "milk", asked=asked, name="drinks"))
    for which in (kept.id, kept.id[:5], "drinks", ""):
        assert chats.find(which) == kept
    grown = replace(kept, conversation=kept.conversation.undone().asked("water"))
    again = chats.keep(grown)
    assert (again.id, again.revision) == (kept.id, kept.revision + 1)
    assert chats.find("") == again
    with Chats(path) as other:
        assert other.find(kept.id) == again


def test_the_file_is_its_owners_alone(chats: Chats, path: Path) -> None:
    chats.keep(session("tea"))
    assert {file.stat().st_mode & 0o777 for file in path.parent.glob("chats.db*")} == {0o600}
    assert [file.name for file in path.parent.glob("chats.db.*")] == []


def test_who_is_second_keeps_his_as_another_one(chats: Chats, path: Path) -> None:
    kept = chats.keep(session("tea"))
    with Chats(path) as other:
        theirs = other.keep(replace(other.find(kept.id), conversation=kept.conversation.asked("milk")))
        ours = chats.keep(replace(kept, conversation=kept.conversation.asked("water")))
        assert ours.id != theirs.id == kept.id
        assert other.find(kept.id) == theirs
        assert other.find(ours.id) == ours


def test_one_that_was_removed_meanwhile_is_kept_as_another_one(chats: Chats) -> None:
    kept = chats.keep(session("tea"))
    chats.remove([kept.id])
    assert chats.keep(kept).id != kept.id


def test_search(chats: Chats) -> None:
    sky = chats.keep(session("why is the sky blue?", "and the sea?"))
    tea = chats.keep(session("how is tea made?"))
    assert [found.id for found in chats.listed("sky")] == [sky.id]
    assert [found.id for found in chats.listed("SEA blu")] == []
    assert [found.id for found in chats.listed("abo te")] == [tea.id]
    assert "sea" in chats.listed("sea")[0].excerpt
    for odd in ('"', "a OR b", "*", "NEAR(", "-x", "ü", "\0", "a\0b"):
        chats.listed(odd)
    chats.remove([sky.id])
    assert chats.listed("sky") == []


def test_an_answer_that_was_taken_back_is_not_found(chats: Chats) -> None:
    kept = chats.keep(session("tea", "milk"))
    chats.keep(replace(kept, conversation=kept.conversation.undone()))
    assert chats.listed("milk") == []
    assert len(chats.listed("tea")) == 1


def test_the_last_one_stands_first_whatever_the_clock_says(chats: Chats) -> None:
    first, second = chats.keep(session("tea")), chats.keep(session("milk", name="white"))
    assert [(each.id, each.title, each.turns) for each in chats.listed()] == [
        (second.id, "white", 1),
        (first.id, "tea", 1),
    ]
    chats.keep(first)
    assert chats.listed(most=1)[0].id == first.id


def test_what_is_not_there_is_told(chats: Chats) -> None:
    for which in ("", "nothing", "abc"):
        with pytest.raises(UsageError):
            chats.find(which)


def test_lines_that_were_typed(chats: Chats) -> None:
    for text in ("one", "two", "one", "three\nlines"):
        chats.add_typed(text)
    assert chats.typed(10) == ["three\nlines", "one", "two"]
    assert chats.typed(1) == ["three\nlines"]


def test_all_is_gone_from_the_file_as_well(chats: Chats, path: Path) -> None:
    chats.keep(session("a secret plan"))
    chats.add_typed("a secret line")
    assert chats.remove_all() == 1
    assert (chats.listed(), chats.typed(5), chats.listed("secret")) == ([], [], [])
    chats.close()
    assert all(b"secret" not in file.read_bytes() for file in path.parent.glob("chats.db*"))


def test_a_session_that_was_removed_is_gone_from_the_file_and_the_others_are_found(chats: Chats, path: Path) -> None:
    gone = chats.keep(session("zebrafish"))
    stays = chats.keep(session("tea"))
    for line in ("tea", "zebrafish", '"""\nzebrafish\n"""', "/nonsense"):
        chats.add_typed(line)
    chats.remove([gone.id])
    assert chats.typed(9) == ["/nonsense", "tea"]
    assert all(b"zebrafish" not in file.read_bytes() for file in path.parent.glob("chats.db*"))
    assert [found.id for found in chats.listed("tea")] == [stays.id]


def test_halves_of_characters_are_kept_as_question_marks(chats: Chats) -> None:
    kept = chats.keep(session("a\ud800b"))
    assert chats.find(kept.id).conversation.turns[0].question == "a?b"


def test_a_file_of_a_newer_rbee_and_a_damaged_one_are_left_alone(path: Path) -> None:
    Chats(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("pragma user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer rbee"):
        Chats(path)
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="cannot use"):
        Chats(path)
    assert path.read_bytes().startswith(b"no database")


WRITER = """
import sys
from pathlib import Path
from rbee.chat.conversation import Conversation, Turn
from rbee.chat.interfaces import Session
from rbee.chat.store.sessions import Chats
with Chats(Path(sys.argv[1])) as chats:
    session = Session()
    for n in range(20):
        turn = Turn(f"{sys.argv[2]} {n}", answer="a", finish="stop")
        said = Conversation((*session.conversation.turns, turn))
        session = chats.keep(Session(session.id, "", said, session.asked, session.revision))
        chats.add_typed(f"{sys.argv[2]} {n}")
"""


def test_four_first_chats_at_once(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    words = [sys.executable, "-c", WRITER, str(path)]
    processes = [subprocess.Popen([*words, name], env={"PYTHONPATH": ":".join(sys.path)}) for name in "abcd"]
    assert [process.wait(PATIENCE_S) for process in processes] == [0, 0, 0, 0]
    with Chats(path) as chats:
        assert [each.turns for each in chats.listed()] == [20] * 4
        assert len(chats.typed(1000)) == 80
