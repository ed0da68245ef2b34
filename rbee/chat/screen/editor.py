"""A text in the user's editor: $VISUAL, else $EDITOR, else what is there."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import tempfile
from pathlib import Path

from rbee.base.errors import UsageError
from rbee.chat.screen import modes

_OTHERS = ("sensible-editor", "editor", "nano", "vim", "vi")


def editor_words() -> list[str]:
    """The program and its arguments. Raises UsageError for none."""
    named = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    try:
        words = shlex.split(named) if named else [name for name in _OTHERS if shutil.which(name)][:1]
    except ValueError as error:
        raise UsageError(f"$EDITOR is no command: {error}") from error
    if not words or not shutil.which(words[0]):
        raise UsageError(f"there is no editor{f' {words[0]}' if words else ''}", hint="set $EDITOR to one")
    return words


async def edited(text: str) -> str:
    """`text` as it was saved. Raises UsageError for an editor that is not there, or that failed."""
    words = editor_words()
    with tempfile.TemporaryDirectory(prefix="rbee-chat-") as folder:
        file = Path(folder, "message.md")
        file.write_text(text, encoding="utf-8")  # noqa: ASYNC240 - nothing else goes on meanwhile
        status = await _run([*words, str(file)])
        if status:
            raise UsageError(f"{words[0]} ended with status {status}: the message is as it was")
        return file.read_text(encoding="utf-8", errors="replace")  # noqa: ASYNC240


async def _run(words: list[str]) -> int:
    """Ctrl-C is the editor's."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # caught, not ignored: that would be handed down
    try:
        with modes.cooked():
            process = await asyncio.create_subprocess_exec(*words)
            return await process.wait()
    except OSError as error:
        raise UsageError(f"cannot start {words[0]}: {error.strerror}") from error
    finally:
        signal.signal(signal.SIGINT, before)
