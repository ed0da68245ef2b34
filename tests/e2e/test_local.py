"""This machine as a node, as the README's first command uses it: no inventory, no SSH."""

from __future__ import annotations

import pytest

from tests.testbed.cli import Rbee

pytestmark = pytest.mark.model


def test_out_of_the_box(rbee: Rbee) -> None:
    result = rbee("infer", "--max-tokens", "16", "Why is the sky blue?")
    assert result.stdout.strip()
    assert "local" in result.stderr
    assert len(rbee.node_processes()) == 2
    assert list(rbee.user_home.iterdir()) == []


def test_a_file_on_this_machine(rbee: Rbee, model_path: object) -> None:
    result = rbee("infer", "--model", f"file:{model_path}", "--max-tokens", "4", "--json", "Hello")
    assert result.lines()[-1]["model"] == f"file:{model_path}"
    (listed,) = rbee("models", "list", "--json").json()
    assert listed["owned"] is False
