"""What README, the inventory's example and the help promise is true: it is read here as a user would type it."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rbee import cli
from rbee.inventory import load

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
APP: Any = typer.main.get_command(cli.make_app())


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(APP))


def _shown() -> Iterator[str]:
    """Every line of a shell that begins a rbee command, without its comment, pipe and redirection."""
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            for part in re.split(r"\s[|>]\s", line.split(" # ", 1)[0]):
                if part.startswith("rbee "):
                    yield part.strip()


def _examples() -> Iterator[str]:
    for path, command in COMMANDS.items():
        match = re.fullmatch(r"Example: (rbee .*)", command.epilog)
        assert match, path
        yield match[1]


def _parse(line: str) -> None:
    """Read a command line up to where its command would run. Raises typer's UsageError."""
    words = shlex.split(line)[1:]
    command, path = APP, []
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, line
        path.append(name)
        command = command.commands[name]
    command.make_context(" ".join(path), words)


@pytest.mark.parametrize("line", [*_shown(), *_examples()])
def test_every_command_line_that_is_shown_can_be_typed(line: str) -> None:
    _parse(line)


def test_the_readme_shows_command_lines() -> None:
    assert len(list(_shown())) >= 8


def test_the_table_of_commands_is_the_command_line() -> None:
    """Row by row: `rbee nodes add`, `list` are two commands; words in capitals and brackets are their arguments."""
    listed: set[tuple[str, ...]] = set()
    for row in re.findall(r"^\| (`rbee .*?) \|", README, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", row)
        words = [word for word in first.split()[1:] if re.fullmatch(r"[a-z]+", word)]
        listed |= {tuple(words), *((words[0], other) for other in others)}
        _options_are_known(tuple(words), first)
    assert listed == set(COMMANDS)


def _options_are_known(path: tuple[str, ...], text: str) -> None:
    known = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", text)) <= known


def test_options_that_the_text_names_exist() -> None:
    known = {option for command in COMMANDS.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", README)) <= known | {"--help"}


def test_the_makefile_has_the_targets_that_are_shown() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"infer", "test"} <= set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) <= targets


def test_files_that_are_linked_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_no_hint_names_a_command_that_is_not_there() -> None:
    """`rbee …` in a text of the program, as far as it is command words."""
    top = {path[0] for path in COMMANDS}
    wrong = [
        f"{path.relative_to(ROOT)}: rbee {' '.join(words)}"
        for folder in ("rbee", "remote/rbee_remote")
        for path in (ROOT / folder).rglob("*.py")
        for words in re.findall(r"`rbee ([a-z]+)(?: ([a-z]+))?", path.read_text(encoding="utf-8"))
        if words[0] not in top or ((words[0],) not in COMMANDS and words[1] and words not in COMMANDS)
    ]
    assert wrong == []


def test_the_example_inventory_is_used_as_it_stands() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["nodes", "list", "-i", str(ROOT / "inventory.example.toml")]) == 0
    names = [line.split()[0] for line in out.getvalue().splitlines()[1:]]
    assert names == list(load(ROOT / "inventory.example.toml").nodes) == ["gpu1", "bastion", "local"]
