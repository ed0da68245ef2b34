"""Every command's help, as wide as the terminal: nothing goes beyond it, and no sentence is cut off."""

from __future__ import annotations

from typing import Any

import pytest
import typer

from rbee.cli import main as cli

APP: Any = typer.main.get_command(cli.make_app())


def _all(group: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for name, command in getattr(group, "commands", {}).items():
        found += _all(command, (*path, name))
    return found


@pytest.mark.parametrize("cells", [40, 80, 200])
def test_help_fits(cells: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(cells))
    for path in _all(APP):
        assert cli.main([*path, "--help"]) == 0
        shown = capsys.readouterr().out
        assert [line for line in shown.splitlines() if len(line) > cells] == [], path
        assert [line for line in shown.partition("Commands:")[2].splitlines() if line.endswith("...")] == [], path


def test_options_have_a_line_of_their_own_where_it_is_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    cli.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert "  -i, --inventory FILE" in lines
    assert lines[lines.index("  -i, --inventory FILE") + 1] == "        The inventory to use."
