"""The input's file: what is refused before anything is asked, and which lines ask for nothing."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rbee.base.errors import UsageError
from rbee.batch import reading
from rbee.batch.reading import Input


def file_of(folder: Path, name: str, content: bytes) -> Input:
    path = folder / name
    path.write_bytes(content)
    return Input(path)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("in.jsonl", '{"prompt": "x"}\n'.encode("utf-16"), "is UTF-16"),
        ("in.csv", "prompt\nx\n".encode("utf-16-be").join([b"\xfe\xff", b""]), "is UTF-16"),
        ("in.jsonl.gz", gzip.compress(b'{"prompt": "x"}\n', mtime=0), "is compressed"),
        ("in.csv", b"PK\x03\x04 and so on", "a spreadsheet"),
        ("in.csv", b"prompt\xe9\nx\n", "the head of .* cannot be read: it is not UTF-8"),
    ],
)
def test_files_of_other_kinds_are_refused(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        file_of(tmp_path, name, content).check()


def test_rows_that_cannot_be_read_are_bad_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_LINE", 100)
    rows = [b"prompt", b"a", b"caf\xe9", b"x" * 101, "café".encode(), b'"' + b"y" * 50, b"z" * 60]
    survey = file_of(tmp_path, "in.csv", b"\n".join(rows)).survey()
    assert (survey.count, survey.bad_count) == (5, 3)
    assert survey.bad == [
        (2, "it is not UTF-8"),
        (3, "field larger than field limit (100)"),
        (5, "field larger than field limit (100)"),
    ]


@pytest.mark.parametrize("content", [b'\xef\xbb\xbf{"prompt":"x"}\r\n\r\n \n{"prompt":"y"}\r\n{"prompt":"z"}'])
def test_line_ends_and_marks_of_windows(tmp_path: Path, content: bytes) -> None:
    survey = file_of(tmp_path, "in.jsonl", content).survey()
    assert (survey.count, survey.bad_count) == (3, 0)


def test_a_line_of_any_length_takes_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_LINE", 100)
    given = file_of(tmp_path, "in.jsonl", b"x" * 1000 + b'\n{"prompt": "y"}\n' + b"z" * 1000)
    assert [len(raw.content) if isinstance(raw.content, bytes) else 0 for raw in given.lines()] == [0, 16, 0]
    assert [raw.number for raw in given.lines()] == [1, 2, 3]
