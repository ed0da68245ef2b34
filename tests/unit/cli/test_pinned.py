"""`rbee version -v`: what is pinned, and that nothing that is fetched was left out."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from rbee.cli import main as cli
from rbee.cli.pinned import Pinned, pinned
from rbee.models.ref import built_in
from rbee.setup.base import requirements
from rbee.setup.base.payload import build_payload

ROOT = Path(__file__).parents[3]


def test_it_lists_each_line_of_each_lock_the_payload_and_the_models() -> None:
    parts = Counter(item.part for item in pinned())
    assert parts["keeper"] == len(requirements.parse((ROOT / "requirements/keeper.txt").read_text()))
    node = [*requirements.read(requirements.BASE), *requirements.read(requirements.CONSTRAINTS)]
    assert parts["node"] == len(node) + 3  # uv, llama.cpp's source, the payload
    assert parts["build"] == len(requirements.read(requirements.BUILD))
    assert parts["model"] == sum(bool(model.sha256) for model in built_in().values()) > 0
    assert all(len(value) == 64 for item in pinned() for value in item.sha256)
    assert all(item.sha256 for item in pinned())


def test_the_payload_is_told_by_its_sources() -> None:
    """Bytecode, which differs between the Pythons of keepers, is put beside them on the way to a node."""
    (payload,) = (item for item in pinned() if item.name == "payload")
    assert payload.sha256 == (hashlib.sha256(build_payload().data).hexdigest(),)


def test_what_is_installed_here_is_told_beside_what_the_lock_says() -> None:
    (pip,) = (item for item in pinned() if (item.part, item.name) == ("keeper", "pip"))
    assert pip.installed == pip.version


def test_a_model_in_a_wheel_has_a_hash() -> None:
    """Nothing else says that the file in the package is the model."""
    wheels = [model for model in built_in().values() if any(source.kind == "wheel" for source in model.sources)]
    assert wheels
    assert all(len(model.sha256) == 64 for model in wheels)


def test_one_hash_is_shown_and_many_are_counted() -> None:
    assert Pinned("node", "x", "1", ("aa",)).by() == "aa"
    assert Pinned("node", "x", "1", ("aa", "bb")).by() == "one of 2 files"


def test_the_command_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "-v"]) == 0
    out = capsys.readouterr().out
    source = requirements.llama().hashes[0].removeprefix("sha256:")
    assert source in out
    assert cli.main(["version", "-v", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [item["sha256"] for item in told["pinned"] if item["name"] == "llama-cpp-python"] == [[source]]
