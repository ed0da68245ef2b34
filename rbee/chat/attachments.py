"""Files that go along with the next message: read, checked, and named in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from rbee.base.errors import UsageError
from rbee.chat.code_blocks import fenced

#: Bytes of one file: some 80,000 tokens, more than most contexts hold.
MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Attachment:
    """name: as the user wrote the path."""

    name: str
    text: str

    @property
    def in_message(self) -> str:
        """As a model reads it: the file's name, and its text between fences."""
        language = Path(self.name).suffix.lstrip(".")
        return f"File `{self.name}`:\n\n{fenced(self.text, language if language.isalnum() else '')}"


def read_file(name: str) -> Attachment:
    """Raises UsageError for what cannot be read, is no regular file, too large, empty or no text."""
    try:
        path = Path(name).expanduser()
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would be waited for
        with os.fdopen(descriptor, "rb") as file:
            if not path.is_file():
                raise UsageError(f"{name} is no regular file", hint="/file takes a text file")
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {name}: {error.strerror}") from error
    except (ValueError, RuntimeError) as error:  # a NUL in it; a ~name of nobody
        raise UsageError(f"cannot read {name}: there is no such path") from error
    if b"\0" in content:
        raise UsageError(f"{name} is a binary file", hint="/file takes text")
    if len(content) > MOST_BYTES:
        raise UsageError(f"{name} has more than {MOST_BYTES // 1024} KiB", hint="give a part of it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text (byte {error.start})", hint="/file takes text") from error
    if not text.strip():
        raise UsageError(f"{name} is empty")
    return Attachment(name, text)


def with_files(message: str, files: tuple[Attachment, ...]) -> str:
    """The files first, then what was typed, as models expect a question about a text."""
    return "\n\n".join([*(file.in_message for file in files), message])
