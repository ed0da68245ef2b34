"""Each error code is raised somewhere, has an exit status and a meaning, and stands with both in the docs."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.base.errors import EXIT_STATUS
from rbee_remote.protocol import ErrorCode, failures

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs/reference/exit-codes.md"


def codes_in(node: ast.AST) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name) and child.value.id == "ErrorCode":
            yield child.attr


@functools.cache
def used() -> frozenset[str]:
    """Codes that become part of an error: given to a call, assigned, returned, or a default."""
    found: set[str] = set()
    for path in (*(ROOT / "rbee").rglob("*.py"), *(ROOT / "remote/rbee_remote").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            match node:
                case ast.Call():
                    given = [*node.args, *(keyword.value for keyword in node.keywords)]
                case ast.Assign(value=value) | ast.Return(value=ast.expr() as value):
                    given = [value]
                case ast.arguments():
                    given = [value for value in (*node.defaults, *node.kw_defaults) if value]
                case _:
                    continue
            for value in given:
                for part in [value.body, value.orelse] if isinstance(value, ast.IfExp) else [value]:
                    if isinstance(part, ast.Attribute):
                        found.update(codes_in(part))
    return frozenset(found)


def meanings() -> dict[str, str]:
    """What the line above each code says."""
    return {
        name: text for text, name in re.findall(r"    #: (.+)\n    ([A-Z_]+) = ", Path(failures.__file__).read_text())
    }


def table() -> list[str]:
    """The rows of the docs."""
    return [f"| `{code.name}` | {EXIT_STATUS[code]} | {meanings()[code.name].rstrip('.')} |" for code in ErrorCode]


@pytest.mark.parametrize("code", list(ErrorCode), ids=lambda code: code.name)
def test_each_code_is_raised_and_says_what_it_means(code: ErrorCode) -> None:
    assert code.name in used()
    assert EXIT_STATUS[code] > 0
    assert meanings()[code.name].endswith(".")


def test_the_docs_have_each_code_with_its_exit_status_and_meaning() -> None:
    rows = PAGE.read_text(encoding="utf-8").splitlines()
    assert [row for row in rows if re.match(r"\| `[A-Z_]+` \|", row)] == table()
