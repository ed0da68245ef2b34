from __future__ import annotations

from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.cli.constraints import read_constraints

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
        ("missing.json", "cannot read missing.json: No such file or directory"),
        (" ", "--schema is empty"),
        (".", "cannot read .: Is a directory"),
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


def test_not_both() -> None:
    with pytest.raises(UsageError, match="--schema and --grammar"):
        read_constraints(SCHEMA, Path("answer.gbnf"))
