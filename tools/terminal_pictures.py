"""Make the pictures of terminals in the docs from real runs: rbee with the built-in model on this machine, in tmux.

    .venv/bin/python -m tools.terminal_pictures          # after a change of what is shown; takes a minute or two

A picture is a block of text between `<!-- picture: NAME -->` and `<!-- end of picture -->` on its page. A test compares
what does not differ from run to run: titles, keys, and that it is as wide as it says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RBEE = ROOT / ".venv/bin/rbee"
#: What generates while a picture is taken.
QUESTION = ("Tell a long story of a lighthouse.", "--max-tokens", "600")


@dataclass(frozen=True, slots=True)
class Picture:
    """page: below docs/. command: what is typed. cells, lines: of the terminal. keys: pressed before, as tmux names
    them. shows: what has to be there before it is taken. beside: whether a model generates meanwhile."""

    name: str
    page: str
    command: str
    cells: int
    lines: int
    shows: str
    keys: tuple[str, ...] = ()
    beside: bool = False


PICTURES = (
    Picture("top", "how-to/top.md", "rbee top", 80, 8, r"busy.* \d+\.\d .*▇|ready.* \d+\.\d .*[▁-█]{4}", beside=True),
    Picture("top-narrow", "how-to/top.md", "rbee top", 40, 8, r"(busy|ready) .*\d+\.\d", beside=True),
    Picture("top-details", "how-to/top.md", "rbee top", 80, 16, r"first token", keys=("End", "Enter"), beside=True),
    Picture("workers-list", "how-to/keep-alive.md", "rbee workers list", 80, 8, r"kept for"),
)
_SHOWS_S = 120.0


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="rbee-pictures-") as folder:
        env = os.environ | {"RBEE_HOME": f"{folder}/home", "RBEE_LINK": "off", "PYTHONUTF8": "1", "LANG": "C.UTF-8"}
        try:
            subprocess.run([RBEE, "infer", "Hello", "--max-tokens", "5", "--keep-alive", "30m"], env=env, check=True)
            for picture in PICTURES:
                shown = _taken(picture, env)
                page = DOCS / picture.page
                page.write_text(placed(page.read_text(encoding="utf-8"), picture, shown), encoding="utf-8")
        finally:
            subprocess.run([RBEE, "hive", "stop", "local", "--now"], env=env, check=False)


def _taken(picture: Picture, env: Mapping[str, str]) -> list[str]:
    with _generating(env if picture.beside else None), _terminal(picture, env) as tmux:
        until = time.monotonic() + _SHOWS_S
        for key in picture.keys:
            time.sleep(3.0)
            subprocess.run([*tmux, "send-keys", key], check=True)
        while not re.search(picture.shows, shown := _captured(tmux)):
            if time.monotonic() > until:
                sys.exit(f"{picture.name}: {picture.shows} was not shown:\n{shown}")
            time.sleep(1.0)
    return shown.rstrip("\n").split("\n")


def _captured(tmux: list[str]) -> str:
    return subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout


@contextmanager
def _terminal(picture: Picture, env: Mapping[str, str]) -> Iterator[list[str]]:
    """tmux, on a server of its own, with the command running."""
    tmux = ["tmux", "-L", f"rbee-pictures-{os.getpid()}"]
    command = f"{RBEE.parent}/{picture.command}; sleep 600"
    size = ["-x", str(picture.cells), "-y", str(picture.lines)]
    subprocess.run([*tmux, "-f", "/dev/null", "new-session", "-d", *size, command], env=env, check=True)
    subprocess.run([*tmux, "set", "-g", "status", "off"], check=True)
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)


@contextmanager
def _generating(env: Mapping[str, str] | None) -> Iterator[None]:
    if env is None:
        yield
        return
    process = subprocess.Popen(
        [RBEE, "infer", *QUESTION], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def placed(page: str, picture: Picture, shown: list[str]) -> str:
    """The page with that picture."""
    begin, end = _marks(picture)
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    prompt = f"$ {picture.command}"
    text = "\n".join(line.rstrip() for line in [prompt, *shown]).rstrip("\n")
    return f"{before}{begin}\n```text\n{text}\n```\n{end}{after}"


def shown(page: str, picture: Picture) -> list[str]:
    """What the page has of it, without the line that was typed; [] for nothing."""
    begin, end = _marks(picture)
    block = page.partition(begin)[2].partition(end)[0]
    found = re.fullmatch(r"\n```text\n\$ (.*?)\n(.*)\n```\n", block, re.DOTALL)
    return found[2].split("\n") if found and found[1] == picture.command else []


def _marks(picture: Picture) -> tuple[str, str]:
    return f"<!-- picture: {picture.name} -->", "<!-- end of picture -->"


if __name__ == "__main__":
    main()
