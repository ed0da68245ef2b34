"""`rbee top` at a terminal: it draws, obeys keys, and gives the terminal back however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from tests.unit.top.terminal import ROOT, Terminal

ENTERED, LEFT = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """A home with two nodes: this machine, without a hive, and one that refuses connections."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    inventory = home / "inventory.toml"
    inventory.write_text(f'[nodes.local]\nhome = "{tmp_path}/node"\n[nodes.away]\nhost = "127.0.0.1"\nport = 9\n')
    inventory.chmod(0o600)
    return {
        "RBEE_HOME": str(home),
        "HOME": str(tmp_path),
        "TERM": "xterm-256color",
        "RBEE_LINK": "off",
        "PYTHONUTF8": "1",
    }


def top(env: dict[str, str], *words: str, size: tuple[int, int] = (80, 24)) -> Terminal:
    return Terminal("-m", "rbee", "top", *words, env=env, size=size)


def test_it_draws_obeys_and_leaves(env: dict[str, str]) -> None:
    with top(env) as terminal:
        place = terminal.wait_for(ENTERED)
        place = terminal.wait_for("no hive", place)
        terminal.wait_for("away", place)
        terminal.resize(40, 20)
        place = terminal.wait_for("\x1b[20;1H", place)
        terminal.type("?")
        place = terminal.wait_for("PgUp", place)
        terminal.type("\x1b")
        place = terminal.wait_for("NODE / MODEL", place)
        terminal.type("/awa")
        terminal.wait_for("awa", place)
        terminal.type("\rq")
        terminal.wait_for(LEFT, place)
        terminal.wait_for("[ended] 0 restored", place)


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_whatever_ends_it_the_terminal_is_given_back(env: dict[str, str], how: str) -> None:
    with top(env, "local") as terminal:
        place = terminal.wait_for("no hive")
        if how == "Ctrl-C":
            terminal.type("\x03")
        else:
            terminal.signal(signal.Signals[how])
        place = terminal.wait_for(LEFT, place)
        place = terminal.wait_for("canceled", place)
        terminal.wait_for("[ended] 130 restored", place)


def test_it_is_suspended_and_comes_back(env: dict[str, str]) -> None:
    with top(env, "local") as terminal:
        place = terminal.wait_for("no hive")
        terminal.type("\x1a")
        place = terminal.wait_for(LEFT, place)
        place = terminal.wait_for("[stopped] restored", place)
        terminal.type("fg\n")
        place = terminal.wait_for(ENTERED, place)
        place = terminal.wait_for("no hive", place)
        terminal.type("q")
        terminal.wait_for("[ended] 0 restored", place)


def run(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'remote'}"}
    words = (sys.executable, "-m", "rbee", "top", *words)
    return subprocess.run(
        words, env={**os.environ, **env, **paths}, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip


def test_without_a_terminal_it_says_how_it_is_now(env: dict[str, str]) -> None:
    done = run(env, "local")
    assert done.returncode == 0
    assert "as with --once" in done.stderr
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [["NODE", "WORKER"], ["local", "-"]]
    quiet = run(env, "local", "--once")
    assert quiet.stderr == ""


def test_as_json_it_is_one_document(env: dict[str, str]) -> None:
    done = run(env, "--json", "--once")
    assert done.returncode == 0
    said = json.loads(done.stdout)
    assert [(each["node"], each["state"]) for each in said["nodes"]] == [("local", "no hive"), ("away", "down")]
    assert "refused" in said["nodes"][1]["reason"]
    assert said["gateway"] is None
