"""A chat in a pipe: lines in, and what is read of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.chat.screen.plain import Lines, Prompt
from rbee.chat.store.sessions import Chats
from tests.doubles import chat_worker
from tests.patience import PATIENCE_S

SILENT = Prompt(is_shown=False)


async def messages(lines: Lines) -> list[str]:
    found = []
    while (text := await lines.message(SILENT)) is not None:
        found.append(text)
    return found


async def test_each_line_of_a_pipe_is_a_message() -> None:
    reading, writing = os.pipe()
    os.write(writing, 'hi\r\n\n"""\ntwo\nlines\n"""\nno end of line, ü'.encode())
    os.close(writing)
    assert await messages(Lines(reading)) == ["hi", "", '"""\ntwo\nlines\n"""', "no end of line, ü"]
    os.close(reading)


async def test_a_file_is_read_as_a_pipe_is(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('one\n"""never closed\n')
    descriptor = os.open(tmp_path / "in", os.O_RDONLY)
    assert await messages(Lines(descriptor)) == ["one", '"""never closed\n'.rstrip("\n")]
    os.close(descriptor)


@pytest.fixture
def worker() -> Iterator[Path]:
    with chat_worker.running_worker() as socket:
        yield socket


def piped(home: Path, worker: Path, text: str, *words: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(mode=0o700, exist_ok=True)
    chat_worker.know_worker(home / "workers.db", "local", worker)
    env = {**os.environ, "RBEE_HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path), "RBEE_LINK": "off"}
    return subprocess.run(
        [sys.executable, "-m", "rbee", "chat", *words],
        env=env, input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_answers_go_to_stdout_and_the_first_failure_ends_it(tmp_path: Path, worker: Path) -> None:
    done = piped(tmp_path / "home", worker, "hi\n/set top_k 1\n\n/undo that\nnever asked\n")
    assert (done.stdout, done.returncode) == ("you said: hi\ntop_k  1\n", 2)
    assert "error: /undo stands alone" in done.stderr
    went_on = piped(tmp_path / "home", worker, "and now?", "--continue", "--json")
    events = [json.loads(line) for line in went_on.stdout.splitlines()]
    assert "".join(event["text"] for event in events if event["event"] == "token") == "you said: and now?"
    assert (went_on.returncode, went_on.stderr) == (0, "")
    with Chats(tmp_path / "home" / "chats.db") as chats:
        assert [turn.typed for turn in chats.find("").conversation.turns] == ["hi", "and now?"]


def test_without_history_nothing_is_written(tmp_path: Path, worker: Path) -> None:
    assert piped(tmp_path / "home", worker, "hi", "--no-history").stdout == "you said: hi\n"
    assert not (tmp_path / "home" / "chats.db").exists()
