from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.cli.constraints import read_constraints
from rbee_remote.constraints import library

SCHEMA = '{"type": "object"}'


def test_a_schema_is_json_or_a_file_with_it(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(SCHEMA)
    assert read_constraints(f"  {SCHEMA}", None) == {"json_schema": {"type": "object"}}
    assert read_constraints(str(tmp_path / "schema.json"), None) == {"json_schema": {"type": "object"}}
    assert read_constraints(None, None) == {}


def test_a_grammar_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "answer.gbnf").write_text('root ::= "ja" | "nö"\n')
    assert read_constraints(None, tmp_path / "answer.gbnf") == {"grammar": 'root ::= "ja" | "nö"\n'}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "the value of --schema is not JSON: Expecting property name"),
        ("[1]", "the value of --schema is not a JSON schema"),
        ('"x"', "the value of --schema is not a JSON schema"),
        ('{"a":' * 100_000, "the value of --schema is nested too deeply"),
        ("missing.json", "--schema: cannot read missing.json: No such file or directory"),
        (" ", "--schema is empty"),
        (".", "--schema: cannot read .: Is a directory"),
    ],
)
def test_what_is_no_schema(schema: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_constraints(schema, None)
    assert str(caught.value).startswith(message)


def test_files_that_hold_neither(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\xff\xfe")
    for schema, grammar in ((str(path), None), (None, path)):
        with pytest.raises(UsageError, match="is not UTF-8 text"):
            read_constraints(schema, grammar)
    path.write_text("\n")
    with pytest.raises(UsageError, match="is not JSON"):
        read_constraints(str(path), None)
    with pytest.raises(UsageError, match="is empty"):
        read_constraints(None, path)
    with pytest.raises(UsageError, match=r"^--lark: cannot read .*: Is a directory"):
        read_constraints(None, None, None, tmp_path)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ('{"uniqueItems": true}', "--schema cannot be used: #: uniqueItems is not enforced: "),
        (
            '{"properties": {"a": {"enum": []}}}',
            "--schema cannot be used: #/properties/a: enum is empty, no value fits",
        ),
        ('{"type": "integer", "minimum": 3, "maximum": 2}', "--schema cannot be used: #: no value fits"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(schema: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_constraints(schema, None)
    assert str(caught.value).startswith(message)


def test_a_regular_expression_and_lark(tmp_path: Path) -> None:
    assert read_constraints(None, None, "[a-c]+") == {"regex": "[a-c]+"}
    path = tmp_path / "answer.lark"
    path.write_text('start: "ja" | "nö"\n')
    assert read_constraints(None, None, None, path) == {"lark": 'start: "ja" | "nö"\n'}
    for regex, said in (
        ("(", "--regex cannot be used: "),
        ("", "--regex is empty"),
        ("\udcff", "--regex is not UTF-8"),
    ):
        with pytest.raises(UsageError, match=f"^{said}"):
            read_constraints(None, None, regex)
    path.write_text("start: nothing")
    with pytest.raises(UsageError, match=r"^--lark cannot be used: .*nothing"):
        read_constraints(None, None, None, path)
    path.write_text("root ::= nothing")
    with pytest.raises(UsageError, match=r"^--grammar cannot be used: the rule nothing is not defined"):
        read_constraints(None, path)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path) -> None:
    schema, grammar = tmp_path / "schema.json", tmp_path / "answer.gbnf"
    schema.write_bytes(b'\xef\xbb\xbf{"type": "integer"}')
    grammar.write_bytes(b'\xef\xbb\xbfroot ::= "a"')
    assert read_constraints(str(schema), None) == {"json_schema": {"type": "integer"}}
    assert read_constraints(None, grammar) == {"grammar": 'root ::= "a"'}


def test_without_llguidance_the_rest_is_left_to_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "is_available", lambda: False)
    assert read_constraints(None, None, "(") == {"regex": "("}
    assert read_constraints('{"pattern": "("}', None) == {"json_schema": {"pattern": "("}}
    with pytest.raises(UsageError, match=r"^--schema cannot be used: #: uniqueItems"):
        read_constraints('{"uniqueItems": true}', None)


def test_neither_help_nor_free_text_imports_what_checks() -> None:
    program = "import sys, rbee.cli.constraints as c; c.read_constraints(None, None); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"llguidance", "rbee_remote.constraints", "rbee_remote.constraints.rules"} & set(done.stdout.split())


def test_not_both() -> None:
    with pytest.raises(UsageError, match="--schema and --grammar"):
        read_constraints(SCHEMA, Path("answer.gbnf"))
    with pytest.raises(UsageError, match="--regex and --lark"):
        read_constraints(None, None, "a", Path("answer.lark"))
