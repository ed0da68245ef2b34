"""What README, docs, example and help promise is true: it is read here as a user would type it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from rbee.base import events
from rbee.base.errors import EXIT_STATUS
from rbee.cli import main as cli
from rbee.inventory import load, parse
from rbee.inventory.aliases import ALIAS_KEYS, SAMPLING_KEYS
from rbee.inventory.schema import KEEPER_KEYS, KEYS, SANDBOX
from rbee.models.ref import built_in
from rbee_remote.protocol import Sampling, Usage, load_options
from rbee_remote.protocol.load_options import BACKENDS
from tools import command_reference

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: What users read; the others are for people who change the code, and name commands of other programs.
FOR_USERS = [ROOT / "README.md", ROOT / "SECURITY.md", DOCS / "tutorial.md"] + [
    page
    for folder in ("how-to", "reference", "explanation")
    for page in sorted((DOCS / folder).glob("*.md"))
    if page.name not in ("decisions.md", "glossary.md")
]
PAGES = sorted({*FOR_USERS, *ROOT.glob("*.md"), *DOCS.rglob("*.md")})
APP: Any = typer.main.get_command(cli.make_app())


def _name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def _text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def _blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every block of code in that language."""
    for page in PAGES:
        for block in re.findall(
            rf"^ *```{language}\n(.*?)^ *```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
        ):
            yield _name(page), block


def _rows(page: str, heading: str) -> dict[str, list[str]]:
    """The tables below a heading: first cell, without its marks, to the others."""
    section = re.split(r"^#+ ", _text(page).split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines() if "|" in line
    ]
    return {row[0].strip("`"): row[1:] for row in rows if not row[0].startswith("---")}


def _commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(_commands(APP))
OPTIONS = {
    option
    for command in COMMANDS.values()
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
}
OPTIONS |= {option for parameter in APP.params for option in parameter.opts} | {"--help"}


def _shown() -> Iterator[str]:
    """Every rbee command line in a block of shell, without its comment, pipe and redirection."""
    for _, block in _blocks("sh"):
        for line in block.splitlines():
            for part in re.split(r"\s(?:\|\|?|>)\s|\$\(", re.split(r"\s# ", line, maxsplit=1)[0]):
                if part.strip().startswith("rbee "):
                    yield part.strip().removesuffix(")")


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
        if words[0] == "--install-completion":
            return
        name = words.pop(0)
        assert name in command.commands, line
        path.append(name)
        command = command.commands[name]
    command.make_context(" ".join(path), words)


@pytest.mark.parametrize("line", sorted({*_shown(), *_examples()}))
def test_every_command_line_that_is_shown_can_be_typed(line: str) -> None:
    _parse(line)


def test_the_pages_show_command_lines() -> None:
    assert len(set(_shown())) >= 60


def test_the_reference_of_commands_is_the_command_line() -> None:
    assert command_reference.PAGE.read_text(encoding="utf-8") == command_reference.page(), (
        "run .venv/bin/python tools/command_reference.py"
    )


@pytest.mark.parametrize("page", FOR_USERS, ids=_name)
def test_options_that_a_page_names_exist(page: Path) -> None:
    assert set(re.findall(r"`(--[a-z-]+)", page.read_text(encoding="utf-8"))) <= OPTIONS


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_commands_that_a_page_names_exist(page: Path) -> None:
    """`rbee …`, as far as it is command words."""
    named = re.findall(r"`rbee ([a-z]+)(?: ([a-z]+))?", page.read_text(encoding="utf-8"))
    assert [words for words in named if not _exists(*words)] == []


def _exists(first: str, second: str) -> bool:
    groups = {path[0] for path in COMMANDS if len(path) > 1}
    return (first,) in COMMANDS or (first in groups and (not second or (first, second) in COMMANDS))


def test_no_hint_names_a_command_that_is_not_there() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: rbee {' '.join(words)}"
        for folder in ("rbee", "remote/rbee_remote")
        for path in (ROOT / folder).rglob("*.py")
        for words in re.findall(r"`rbee ([a-z]+)(?: ([a-z]+))?", path.read_text(encoding="utf-8"))
        if not _exists(*words)
    ]
    assert wrong == []


def test_the_makefile_has_the_targets_that_are_shown() -> None:
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    shown = {target for _, block in _blocks("sh") for target in re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)}
    shown |= {target for page in PAGES for target in re.findall(r"`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    assert {"infer", "test", "setup", "dev", "unit"} <= shown <= targets


# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    """Files and folders exist, and so do headings."""
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" in link or (target.exists() and (not anchor or anchor in _anchors(target))):
            continue
        wrong.append(link)
    assert wrong == []


def _anchors(page: Path) -> set[str]:
    """Of headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["docs/architecture.md", "docs/explanation/decisions.md", "CONTRIBUTING.md"])
def test_modules_that_a_page_names_exist(page: str) -> None:
    files = [f"/{path.relative_to(ROOT).as_posix()}" for path in ROOT.rglob("*.*") if ".venv" not in path.parts]
    named = re.findall(r"`([\w/]+\.(?:py|sh|toml))(?:::\w+)?`", _text(page))
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []


def test_the_index_leads_to_every_page() -> None:
    linked = {(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#]+\.md)\)", _text("docs/README.md"))}
    assert set(DOCS.rglob("*.md")) - {DOCS / "README.md"} <= linked


# --- the inventory -----------------------------------------------------------------------------------------------


def test_the_example_inventory_is_used_as_it_stands() -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert cli.main(["nodes", "list", "-i", str(ROOT / "inventory.example.toml")]) == 0
    names = [line.split()[0] for line in out.getvalue().splitlines()[1:]]
    assert names == list(load(ROOT / "inventory.example.toml").nodes) == ["gpu1", "bastion", "local"]


@pytest.mark.parametrize(("page", "block"), list(_blocks("toml")))
def test_inventories_that_are_shown_are_valid(page: str, block: str) -> None:
    assert parse(block.encode(), Path(page)).nodes


def test_the_reference_of_the_inventory_has_every_key() -> None:
    page = "docs/reference/inventory.md"
    headings = ("How to reach a node", "Where and with what it runs", "Models and workers", "Load options")
    rows = {key: cells for heading in headings for key, cells in _rows(page, heading).items() if key != "key"}
    assert set(rows) == set(KEYS)
    assert set(_rows(page, "Your own machine")) - {"key"} == set(KEEPER_KEYS)
    assert set(_rows(page, "Load options")) - {"key"} == set(load_options.OPTIONS)
    for key, choices in (
        ("backend", BACKENDS),
        ("kv_type", load_options.KV_TYPES),
        ("flash_attention", load_options.FLASH_ATTENTION),
        ("sandbox", SANDBOX),
    ):
        assert set(re.findall(r"`(\w+)`", rows[key][0])) >= set(choices)


def test_the_reference_of_the_inventory_has_every_key_of_an_alias() -> None:
    page = "docs/reference/inventory.md"
    assert set(_rows(page, "Aliases")) - {"key"} == set(ALIAS_KEYS) - set(load_options.OPTIONS)
    section = _text(page).partition("## Aliases")[2]
    assert set(SAMPLING_KEYS) <= set(re.findall(r"`(\w+)`", section))


def test_the_example_inventory_has_every_key() -> None:
    tables = tomllib.loads(_text("inventory.example.toml"))
    assert {key for table in (tables["defaults"], *tables["nodes"].values()) for key in table} == set(KEYS) | set(
        KEEPER_KEYS
    )


# --- what can be looked up ---------------------------------------------------------------------------------------


def test_every_error_code_stands_there_with_its_exit_code() -> None:
    rows = _rows("docs/reference/exit-codes.md", "Error codes")
    assert {code: cells[0] for code, cells in rows.items() if code != "code"} == {
        code.value: str(status) for code, status in EXIT_STATUS.items()
    }


def test_every_exit_code_stands_there() -> None:
    rows = _rows("docs/reference/exit-codes.md", "Exit codes")
    assert set(rows) - {"exit"} == {"0", *map(str, EXIT_STATUS.values())}


def test_every_event_stands_there_with_its_fields() -> None:
    rows = _rows("docs/reference/json.md", "Events")
    names = {"PhaseStarted": "phase", "PhaseDone": "phase_done", "ToolCall": "tool_call", "BatchProgress": "batch"}
    kinds = {names.get(kind.__name__, kind.__name__.lower()): kind for kind in get_args(events.Event)}
    assert set(rows) - {"event"} == set(kinds)
    for name, kind in kinds.items():
        assert {field.name for field in dataclasses.fields(kind)} <= set(re.findall(r"`(\w+)`", rows[name][0])), name
    page = _text("docs/reference/json.md")
    values = [field.name for kind in (Usage, events.Timings) for field in dataclasses.fields(kind)]
    values += [phase.name.lower() for phase in events.Phase]
    assert [value for value in values if f"`{value}`" not in page] == []


def test_every_variable_of_ours_stands_there_and_no_other() -> None:
    folders = ("rbee", "remote", "tests", "benchmarks")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")] + [
        ROOT / "Makefile",
        ROOT / ".ci/run",
    ]
    used = {
        name
        for path in sources
        for name in re.findall(r"""(?:["'$`]|export )(RBEE_[A-Z_]*[A-Z])\b""", path.read_text(encoding="utf-8"))
    }
    listed = set(re.findall(r"^\| `(RBEE_\w+)` \|", _text("docs/reference/environment.md"), re.MULTILINE))
    assert listed == used - {"RBEE_COMPLETE"}


def test_every_built_in_model_stands_there() -> None:
    rows = _rows("docs/reference/models.md", "Built-in names")
    assert {name: cells for name, cells in rows.items() if name != "name"}.keys() == built_in().keys()
    assert all(rows[name][1] == model.license for name, model in built_in().items())


def test_every_field_of_sampling_stands_there() -> None:
    page = _text("docs/reference/worker-http.md")
    assert [field.name for field in dataclasses.fields(Sampling) if f"`{field.name}`" not in page] == []


def test_the_keywords_of_json_schema_that_are_enforced_stand_there_and_no_others() -> None:
    from rbee_remote.constraints.part import ENFORCED, PARTLY
    from rbee_remote.constraints.patterns import FORMATS, LIBRARY_FORMATS

    page = (ROOT / "docs/how-to/structured-output.md").read_text()
    whole, partly = page.split("## What of JSON Schema is enforced")[1].split("| enforced in part |")
    rows = re.findall(r"^\| (.+?) \|", partly, re.MULTILINE)
    named = [re.findall(r"`([$\w]+)`", text) for text in (whole.partition("| enforced |")[2], " ".join(rows))]
    assert sorted(named[0]) == sorted(ENFORCED)
    assert sorted(named[1]) == sorted(PARTLY)
    assert f"| `format` | {', '.join(sorted([*FORMATS, *LIBRARY_FORMATS]))} |" in page


def test_the_endpoints_that_are_listed_are_served() -> None:
    listed = re.findall(r"^\| `[A-Z]+ (/[\w/]+)` \|", _text("docs/reference/worker-http.md"), re.MULTILINE)
    http = ROOT / "remote/rbee_remote/worker/http"
    served = "".join(path.read_text(encoding="utf-8") for path in http.rglob("*.py")).replace("{request_id}", "ID")
    assert len(listed) >= 10
    assert [path for path in listed if f'Route("{path}"' not in served] == []


# --- what a repository has --------------------------------------------------------------------------------------


def test_the_workflow_runs_every_check_and_may_nothing_else() -> None:
    import yaml

    workflow = yaml.safe_load(_text(".github/workflows/ci.yml"))
    (job,) = workflow["jobs"].values()
    assert workflow["permissions"] == {"contents": "read"}
    assert any(".ci/run" in step.get("run", "") for step in job["steps"])
    assert job["timeout-minutes"] <= 90


def test_the_changelog_has_the_sections_of_its_format() -> None:
    headings = re.findall(r"^### (.*)$", _text("CHANGELOG.md"), re.MULTILINE)
    assert set(headings) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert "Added" in headings
