"""docs/reliability.md names a test for each of its rows; here they are looked up, so that none is a promise alone."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    line
    for line in (ROOT / "docs/reliability.md").read_text(encoding="utf-8").partition("\n## Retries\n")[0].splitlines()
    if line.startswith("| ") and not line.startswith(("| what", "| ---"))
]


@functools.cache
def names(file: str) -> frozenset[str]:
    """Test functions of a file, those of classes as `Class::function`."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    top = {node.name for node in tree.body if isinstance(node, functions)}
    inner = {
        f"{node.name}::{child.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, functions)
    }
    # What hypothesis makes of a state machine is assigned to its name.
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.lower().startswith("test")
    }
    return frozenset(top | inner | assigned)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:50])
def test_each_row_names_tests_that_exist(row: str) -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row)
    assert tests, row
    missing = [f"{file}::{name}" for file, name in tests if name not in names(file)]
    assert missing == []


def test_the_table_is_long() -> None:
    assert len(ROWS) >= 40
