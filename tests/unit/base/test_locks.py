"""The locks: complete, hashed, in step with pyproject.toml and with each other, and made as their README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rbee.setup import requirements

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


def commands() -> list[list[str]]:
    """What the READMEs say makes the locks."""
    texts = [(folder / "README.md").read_text().replace("\\\n", " ") for folder in (OURS, NODES)]
    lines = [line for text in texts for line in text.splitlines() if line.startswith("    uv ")]
    return [shlex.split(line)[1:] for line in lines]


def test_each_lock_has_a_command_that_makes_it() -> None:
    made = {words[words.index("--output-file") + 1] for words in commands()}
    assert made == {name(path) for path in LOCKS if path.name != requirements.LLAMA}


@pytest.mark.model
@pytest.mark.parametrize("words", commands(), ids=lambda words: words[-1])
def test_the_command_in_the_readme_makes_the_lock_that_is_there(words: list[str], tmp_path: Path) -> None:
    """Asks the package index. Files that were added to a version since then are no difference, lost ones are."""
    lock = ROOT / words[words.index("--output-file") + 1]
    made = tmp_path / lock.name
    shutil.copy(lock, made)
    uv = Path(sys.executable).with_name("uv")
    words = [str(made) if word == name(lock) else word for word in words]
    env = {**os.environ, "UV_CACHE_DIR": str(tmp_path / "cache")}
    asked = subprocess.run([uv, *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200, check=False)
    if asked.returncode and UNREACHABLE.search(asked.stderr):
        pytest.skip("uv does not reach an index from here")
    assert asked.returncode == 0, asked.stderr
    before, after = (
        {(line.name, line.version, line.marker): set(line.hashes) for line in requirements.parse(path.read_text())}
        for path in (lock, made)
    )
    assert before.keys() == after.keys()
    assert not [key for key, hashes in before.items() if not hashes <= after[key]]
