"""A load option is declared once: its name is spelt where something is done with it, and nowhere to hand it on."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee_remote.protocol.load_options import OPTIONS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(ROOT / "rbee").rglob("*.py"), *(ROOT / "remote" / "rbee_remote").rglob("*.py")])
MOST = 5
#: Words for what every worker, model or request has, however the model was loaded, and so not the option's alone.
COMMON = {"ctx", "slots", "lora", "pooling"}


def words(tree: ast.AST) -> Iterator[str]:
    """Every name, and every word of a text that is no docstring."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield from re.findall(r"(?<![/\w])\w+", text)  # not of a path


@pytest.fixture(scope="module")
def spelt() -> dict[str, set[str]]:
    """In which modules each option's name stands."""
    found: dict[str, set[str]] = {name: set() for name in OPTIONS}
    for path in SOURCES:
        for name in OPTIONS.keys() & set(words(ast.parse(path.read_text()))):
            found[name].add(str(path.relative_to(ROOT)))
    return found


@pytest.mark.parametrize("name", [name for name in OPTIONS if name not in COMMON])
def test_an_options_name_is_spelt_in_few_modules(name: str, spelt: dict[str, set[str]]) -> None:
    assert len(spelt[name]) <= MOST, f"{name} stands in {', '.join(sorted(spelt[name]))}"


def test_what_hands_options_on_does_not_spell_them(spelt: dict[str, set[str]]) -> None:
    """The command line, the inventory and a request are made from the declaration, the commonest words included."""
    hands_on = ("rbee/cli/infer.py", "rbee/cli/load_options.py", "rbee/infer/request.py", "rbee/inventory/")
    others = OPTIONS.keys() - {"slots"}  # a word of every dataclass
    assert not [(name, module) for name in others for module in spelt[name] if module.startswith(hands_on)]
