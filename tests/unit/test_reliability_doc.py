"""docs/reliability.md names a test for each of its rows; here they are looked up, so that none is a promise alone."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

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


def test_each_row_names_tests_that_exist() -> None:
    found = {row: re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", row) for row in ROWS}
    assert [row for row, tests in found.items() if not tests] == []
    named = {test for tests in found.values() for test in tests}
    assert [f"{file}::{name}" for file, name in sorted(named) if name not in names(file)] == []


def test_the_table_is_long() -> None:
    assert len(ROWS) >= 40
