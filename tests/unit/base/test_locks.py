"""The locks: complete, hashed, in step with pyproject.toml and with each other, and made as their README says."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rbee.setup.base import requirements
from tools import locks

ROOT = Path(__file__).parents[3]
OURS, NODES = ROOT / "requirements", ROOT / "remote/requirements"
LOCKS = sorted([*OURS.glob("*.txt"), *NODES.glob("*.txt")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
UNREACHABLE = re.compile(r"Failed to fetch|error sending request|dns error|Network is unreachable")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def pinned(path: Path) -> dict[str, str]:
    return {line.name: line.version for line in requirements.parse(path.read_text())}


@pytest.mark.parametrize("path", LOCKS, ids=name)
def test_every_line_has_a_version_and_hashes_and_none_an_address(path: Path) -> None:
    text = path.read_text()
    assert "//" not in text
    assert not re.search(r"^-", text, re.MULTILINE), "an option would apply to all"
    lines = requirements.parse(text)
    assert lines
    for line in lines:
        assert re.fullmatch(r"[\w.+!]+", line.version), line
        assert line.hashes, line.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in line.hashes), line.name


@pytest.mark.parametrize(("lock", "groups"), [("keeper.txt", []), ("dev.txt", ["dev", "node"])])
def test_the_keepers_locks_have_what_pyproject_asks_for(lock: str, groups: list[str]) -> None:
    versions = pinned(OURS / lock)
    wanted = [
        *PROJECT["project"]["dependencies"],
        *PROJECT["build-system"]["requires"],
        *(item for group in groups for item in PROJECT["dependency-groups"][group]),
    ]
    for requirement in map(Requirement, wanted):
        version = versions[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement}: {lock} has {version}"


def test_the_locks_agree() -> None:
    keeper, dev = pinned(OURS / "keeper.txt"), pinned(OURS / "dev.txt")
    assert keeper.items() <= dev.items()
    assert pinned(NODES / "uv.txt") == {"uv": keeper["uv"]}


@pytest.mark.parametrize("lock", ["keeper.txt", "dev.txt"])
def test_this_environment_is_the_locked_one(lock: str) -> None:
    from importlib.metadata import version

    from packaging.markers import Marker

    lines = [
        line
        for line in requirements.parse((OURS / lock).read_text())
        if not line.marker or Marker(line.marker).evaluate()
    ]
    assert {line.name: version(line.name) for line in lines} == {line.name: line.version for line in lines}


def test_each_lock_has_a_command_that_makes_it() -> None:
    made = {words[-1] for words in locks.commands()}
    assert made == {name(path) for path in LOCKS if path.name != requirements.LLAMA}


@pytest.mark.model
@pytest.mark.parametrize("words", locks.commands(), ids=lambda words: words[-1])
def test_the_command_in_the_readme_makes_the_lock_that_is_there(words: list[str], tmp_path: Path) -> None:
    """Asks the package index."""
    try:
        assert locks.differences(words, tmp_path, tmp_path / "cache") == []
    except locks.Unanswered as error:
        if UNREACHABLE.search(str(error)):
            pytest.skip("uv does not reach an index from here")
        raise
