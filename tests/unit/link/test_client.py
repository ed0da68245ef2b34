"""What a command over the link may import, and when it does not even ask."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rbee.base.settings import Settings
from rbee.cli.main import MODULES
from rbee.link import client, place
from rbee.link.messages import LinkError, line, parsed
from tests.patience import PATIENCE_S

#: Of rbee, and of what is not Python's own core: a command over the link is faster than ssh only without the rest.
OURS = {"rbee", "rbee.__main__", "rbee.link", "rbee.link.client", "rbee.link.messages", "rbee.link.place"}
#: The standard library's that take milliseconds each and that nothing here needs.
HEAVY = {
    "asyncio",
    "dataclasses",
    "inspect",
    "typing",
    "pathlib",
    "subprocess",
    "logging",
    "hashlib",
    "tempfile",
    "ssl",
}


def imported(code: str, **env: str) -> set[str]:
    words = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}\nprint(*sys.modules)"]
    return set(subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ | env).stdout.split())


def test_the_warm_path_imports_a_socket_and_json_and_nothing_heavy(tmp_path: Path) -> None:
    code = "from rbee.__main__ import main\nfrom rbee.link.client import over_link\nover_link(['infer', 'x'])"
    modules = imported(code, RBEE_HOME=str(tmp_path), RBEE_LINK="auto")
    before = imported("", RBEE_HOME=str(tmp_path))
    assert {name for name in modules if name.split(".")[0] in ("rbee", "rbee_remote")} == OURS
    assert (modules - before) & HEAVY == set()
    foreign = {name.split(".")[0] for name in modules - before} - set(sys.stdlib_module_names) - {"rbee"}
    assert foreign == set()


def test_commands_over_the_link_are_those_that_say_so() -> None:
    assert set(MODULES) >= place.COMMANDS
    source = Path(__file__).parents[3] / "rbee" / "cli"
    marked = {
        path.stem for path in source.glob("*.py") if "over_link=True" in path.read_text() and path.stem != "shell"
    }
    assert marked == place.COMMANDS


@pytest.mark.parametrize("words", [["version"], [], ["models", "list"], ["--help"]])
def test_other_commands_do_not_ask(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connected", lambda: pytest.fail("it asked"))
    monkeypatch.setenv("RBEE_LINK", "auto")
    assert client.over_link(words) is None


def test_off_means_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "connected", lambda: pytest.fail("it asked"))
    monkeypatch.setenv("RBEE_LINK", "off")
    assert client.over_link(["infer", "x"]) is None


@pytest.mark.parametrize(
    "env", [{"RBEE_HOME": "/a/b"}, {"RBEE_HOME": "~/x", "HOME": "/h"}, {"HOME": "/h"}, {"RBEE_HOME": "rel"}]
)
def test_the_home_is_the_one_of_the_settings(env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RBEE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert place.home() == str(Settings.from_environment().home)


def test_a_socket_is_reached_however_long_its_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / ("long" * 30)
    (home / place.FOLDER).mkdir(parents=True)
    monkeypatch.setenv("RBEE_HOME", str(home))
    with socket.socket(socket.AF_UNIX) as listener:
        with place.Folder(str(home)) as path:
            listener.bind(path)
        listener.listen()
        connection = client.connected()
        assert connection is not None
        connection.close()


def test_what_matters_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN_PATH", "/x")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("RBEE_LINK", "on")
    found = place.environment()
    assert found["HF_TOKEN_PATH"] == "/x"
    assert found["https_proxy"] == "http://proxy"
    assert not {"SSH_AUTH_SOCK", "RBEE_LINK", "PWD", "SHLVL"} & found.keys()


@pytest.mark.parametrize("data", [b"", b"x", b"[]", b"1", b"\xff", b"[" * 100_000])
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(LinkError):
        parsed(data)


def test_a_message_is_one_line_of_ascii() -> None:
    said = line({"out": "a\nb\u2028\udc80"})
    assert said.count(b"\n") == 1
    assert json.loads(said) == {"out": "a\nb\u2028\udc80"} == parsed(said)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def canceled() -> None:
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("happens", "last", "raised"),
    [
        (full, {"end": 0, "knows": []}, client.BadOutputError),
        (full, {"end": 5, "knows": ["out"]}, None),
        (full, None, client.LostError),
        (canceled, {"end": 130, "knows": []}, None),
        (canceled, None, KeyboardInterrupt),
    ],
)
def test_what_cannot_be_told_to_a_server_that_has_said_all_loses_nothing_of_what_it_said(
    happens: Callable[[], None],
    last: dict[str, object] | None,
    raised: type[BaseException] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """happens: to the client, when the server has hung up and its last word is still to be read."""
    ours, theirs = socket.socketpair()

    def serve() -> None:
        with theirs, theirs.makefile("rb") as said:
            assert "code" in json.loads(said.readline())
            theirs.sendall(line({"accepted": 1}))
            assert json.loads(said.readline()) == {"go": True}
            messages: list[dict[str, object]] = [{"begun": True}, {"out": "a"}, *([last] if last else [])]
            for message in messages:
                theirs.sendall(line(message))

    def write(*_: object) -> None:
        server.join()
        happens()

    server = threading.Thread(target=serve)
    monkeypatch.setattr(client, "connected", lambda: ours)
    monkeypatch.setattr(client._Output, "write", write)
    monkeypatch.setattr(client, "OFFER_S", PATIENCE_S)
    monkeypatch.setattr(client, "BEGIN_S", PATIENCE_S)
    monkeypatch.setenv("RBEE_LINK", "auto")
    server.start()
    if raised is None:
        assert last is not None
        assert client.over_link(["infer", "x"]) == last["end"]
    else:
        with pytest.raises(raised):
            client.over_link(["infer", "x"])
