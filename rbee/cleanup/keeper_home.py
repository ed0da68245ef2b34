"""What is left over in the keeper's own home: found, and removed.

Rules
- Only names that rbee itself gives to what is on its way, and to answers that it saved, are looked at.
- Only what lies in the home itself: a wheel cache elsewhere, or a folder that a link leads to, is used by others, too.
- A lock's file stays, even where nobody holds it. Somebody may have opened it and be about to lock it; with the file
  gone the next one would make another, and two would hold the lock. There are few of them, and they are empty.
- Cron has no terminal and may have no HOME: nothing here asks, and nothing is made by looking.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from rbee.base.settings import Settings
from rbee_remote.protocol.sweep import FileSeen

#: The lock of `rbee gc` itself.
LOCK = "gc"


def look(settings: Settings) -> list[FileSeen]:
    """The leftovers of this keeper, whatever their age."""
    now = time.time()
    found = (_seen(kind, path, now) for kind, path in _candidates(settings))
    return [file for file in found if file is not None]


def remove(file: FileSeen) -> str:
    """Remove a leftover if it still is what was seen; "" or why it was left alone. Raises OSError."""
    path = Path(file.path)
    if (now := _seen(file.kind, path, time.time())) is None:
        return "it is gone already"
    if now.identity != file.identity:
        return "it has changed meanwhile"
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return ""


def _candidates(settings: Settings) -> Iterator[tuple[str, Path]]:
    """(kind, path) of what has a name that rbee gives to it."""
    digits = "[0-9a-f]" * 8
    for kind, folder, pattern in (
        ("staging", "cache/models", ".staging-*"),
        ("download", "cache/models", "*.part"),
        ("download", "cache/models", "*.part.json"),
        ("download", "cache/models", "incoming-*.gguf"),
        ("payload", "cache/payloads", "*.zip"),
        ("draft", "cache/payloads", f".*.zip.{digits}"),
        ("draft", "cache/interpreters", f".*.tar.gz.{digits}"),
        ("staging", "cache/wheels", ".staging-*"),
        ("staging", "cache/wheels/llama", ".adding-*"),
        ("draft", ".", f"keeper-id.{digits}"),
        ("draft", ".", f"workers.db.{digits}*"),
        ("registry", ".", "workers.db.corrupt-*"),
        ("draft", ".", f"chats.db.{digits}*"),
        ("registry", ".", "usage.db.corrupt-*"),
        ("draft", ".", f"keys.toml.{digits}"),
        ("answer", "log", "answer-*.txt"),
    ):
        if _lies_inside(settings.home, folder):
            yield from ((kind, path) for path in sorted((settings.home / folder).glob(pattern)))


def _lies_inside(home: Path, folder: str) -> bool:
    """Whether no step from `home` to the folder below it is a link; the home itself may be one."""
    return (home / folder).resolve() == home.resolve() / folder


def _seen(kind: str, path: Path, now: float) -> FileSeen | None:
    """None for what is gone, or not ours to remove."""
    try:
        own = path.lstat()
        below = [entry.lstat() for entry in path.rglob("*")] if path.is_dir() and not path.is_symlink() else []
    except OSError:
        return None
    if own.st_uid != os.getuid():
        return None
    newest = max(status.st_mtime for status in (own, *below))
    identity = f"{own.st_dev}:{own.st_ino}:{newest}"
    size = sum(status.st_size for status in (own, *below))
    return FileSeen(kind, str(path), size, max(now - newest, 0.0), identity)
