"""Make docs/reference/commands.md from the command line itself: every command with its arguments, options and example.

    .venv/bin/python tools/command_reference.py          # after a change in rbee/cli/

A test compares the page with what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from rbee.cli import main as cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "commands.md"
HEAD = """# Commands

Made from `rbee --help` by `tools/command_reference.py`. `rbee COMMAND --help` shows the same on your terminal.

The answer, the table or the JSON goes to stdout. Progress and notices go to stderr. [Exit codes](exit-codes.md) says
how a command ends, and [JSON](json.md) what `--json` prints.

Where a command takes several nodes, `@TAG` stands for those with that tag, and `all` for every one. Lengths of time are
written `90s`, `5m`, `1h30m` or `7d`. `rbee --install-completion` sets up completion for your shell.

"""


def page() -> str:
    """The whole page."""
    app: Any = typer.main.get_command(cli.make_app())
    commands = list(_commands(app))
    shared = {parameter.name for parameter in app.params}
    lines = ["| command | what it does |", "| --- | --- |"]
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_sentences(command)[0]} |" for name, command in commands]
    lines += [
        "",
        "## Options that every command takes",
        "",
        *_table([parameter for parameter in app.params if "completion" not in parameter.name]),
    ]
    for name, command in commands:
        own = [parameter for parameter in command.params if parameter.name not in shared]
        arguments = [parameter for parameter in own if not hasattr(parameter, "help_option")]
        lines += ["", f"## {name}", "", *(f"{sentence}\n" for sentence in _sentences(command))]
        lines += ["```sh", command.epilog.removeprefix("Example: "), "```", "", *_table(arguments)]
    return HEAD + re.sub(r"\n{3,}", "\n\n", "\n".join(lines).rstrip()) + "\n"


def _commands(group: Any, path: str = "rbee") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _sentences(command: Any) -> list[str]:
    """The paragraphs of a command's help."""
    return [" ".join(paragraph.split()) for paragraph in command.help.split("\n\n")]


def _table(parameters: list[Any]) -> list[str]:
    rows = [f"| {_name(parameter)} | {_meaning(parameter)} |" for parameter in parameters]
    return ["| name | meaning |", "| --- | --- |", *rows] if rows else []


def _name(parameter: Any) -> str:
    """How a parameter is typed: its metavar, after its options if it has any."""
    metavar = (parameter.metavar or parameter.name.upper()).replace("|", "\\|")
    if parameter.param_type_name == "argument":
        return f"`{metavar}`"
    takes_none = parameter.is_flag or parameter.count
    options = (*parameter.opts, *parameter.secondary_opts)
    return ", ".join(f"`{option}`" for option in options) + ("" if takes_none else f" `{metavar}`")


def _meaning(parameter: Any) -> str:
    """The help, and the default where it is one that the help does not tell."""
    text = parameter.help.replace("|", "\\|")
    told = parameter.default is None or parameter.default in ([], ()) or isinstance(parameter.default, bool)
    return text if told or "[default:" in text or parameter.count else f"{text} [default: {parameter.default}]"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
