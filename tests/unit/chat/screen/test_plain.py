"""A chat in a pipe: lines in, and what is read of them."""

from __future__ import annotations

import os
from pathlib import Path

from rbee.chat.screen.plain import Lines, Prompt

SILENT = Prompt(is_shown=False)


async def messages(lines: Lines) -> list[str]:
    found = []
    while (text := await lines.message(SILENT)) is not None:
        found.append(text)
    return found


async def test_each_line_of_a_pipe_is_a_message() -> None:
    reading, writing = os.pipe()
    os.write(writing, 'hi\r\n\n"""\ntwo\nlines\n"""\nno end of line, ü'.encode())
    os.close(writing)
    assert await messages(Lines(reading)) == ["hi", "", '"""\ntwo\nlines\n"""', "no end of line, ü"]
    os.close(reading)


async def test_a_file_is_read_as_a_pipe_is(tmp_path: Path) -> None:
    (tmp_path / "in").write_text('one\n"""never closed\n')
    descriptor = os.open(tmp_path / "in", os.O_RDONLY)
    assert await messages(Lines(descriptor)) == ["one", '"""never closed\n'.rstrip("\n")]
    os.close(descriptor)
