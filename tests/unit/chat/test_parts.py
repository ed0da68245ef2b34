"""Files that go along, code blocks, messages of several lines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.base.errors import UsageError
from rbee.chat import known, multiline
from rbee.chat.attachments import MOST_BYTES, read_file, with_files
from rbee.chat.code_blocks import CodeBlock, code_blocks, fenced


def test_a_file_goes_along_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("print('ü')\n")
    message = with_files("what is it?", (read_file(str(path)),))
    assert message == f"File `{path}`:\n\n```py\nprint('ü')\n```\n\nwhat is it?"


def test_fences_in_a_file_do_not_end_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("```\nx\n```")
    assert read_file(str(path)).in_message.endswith("````md\n```\nx\n```\n````")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x7fELF\0\0", "binary"),
        (b"caf\xe9", "not UTF-8"),
        (b"x" * (MOST_BYTES + 1), "more than 256 KiB"),
        (b" \n", "empty"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_file(str(path))


def test_what_cannot_be_read_is_refused_and_a_pipe_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("none", "pipe", ".", "a\0b", "~nobody-of-this-name/x"):
        with pytest.raises(UsageError):
            read_file(str(tmp_path / name))


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "n.txt").write_text("x")
    assert read_file("~/n.txt").name == "~/n.txt"


ANSWER = """So:

```python
def f():
    return "```"
```

- a list
  ~~~
  in it
  ~~~

````
```
````

```sh
never closed"""


def test_the_code_of_an_answer() -> None:
    assert code_blocks(ANSWER) == [
        CodeBlock("python", 'def f():\n    return "```"\n'),
        CodeBlock("", "in it\n"),
        CodeBlock("", "```\n"),
        CodeBlock("sh", "never closed\n"),
    ]


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"))))
def test_what_was_fenced_is_found_again(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    assert [block.text for block in code_blocks(fenced(text, "x"))] == [text]


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ('"""', True),
        ('"""a', True),
        ('"""a\n', True),
        ('"""a\n"""', False),
        ('""""""', False),
        ("a", False),
        ('"""Adds.""" what is that?', False),
        ('"""Adds."""\ndef add(): ...', False),
        ('"""\n"""Adds.""" it', True),
    ],
)
def test_three_quotes(text: str, is_open: bool) -> None:
    assert multiline.is_open(text) is is_open


@pytest.mark.parametrize("begun", ["none/", "a\0b/", "~nobody-of-this-name/"])
def test_no_path_is_offered_where_there_is_no_folder(begun: str) -> None:
    assert list(known.paths(begun)) == []
