"""Names of the protocol are read from their modules when they are asked for: which is which stands there twice."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rbee_remote import protocol


def declared() -> dict[str, str]:
    """Name to module, as type checkers read them."""
    tree = ast.parse(Path(protocol.__file__).read_text())
    return {
        alias.name: node.module.rpartition(".")[2]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rbee_remote.protocol.")
        for alias in node.names
    }


def test_both_say_the_same() -> None:
    assert declared() == vars(protocol)["_MODULES"]


@pytest.mark.parametrize("name", sorted(declared()))
def test_each_is_there(name: str) -> None:
    assert getattr(protocol, name) is not None


def test_another_is_not() -> None:
    with pytest.raises(AttributeError):
        getattr(protocol, "Nothing")  # noqa: B009 - for mypy there is none
