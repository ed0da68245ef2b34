"""What is left over in the keeper's own home: found, and removed.

Rules
- Only names that rbee itself gives to what is on its way, and to answers that it saved, are looked at.
- A lock's file is removed by whoever holds the lock; others find out that theirs has no name any more, and begin anew.
- Cron has no terminal and may have no HOME: nothing here asks, and nothing is made by looking.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from rbee.locks import held_at_once
from rbee.runtime.wheels import WheelCache
from rbee.settings import Settings
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
    with _held(file) as is_free:
        if not is_free:
            return "somebody holds the lock"
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
    wheels = WheelCache.of(settings).root
    digits = "[0-9a-f]" * 8
    for kind, folder, pattern in (
        ("staging", settings.cache / "models", ".staging-*"),
        ("download", settings.cache / "models", "*.part"),
        ("download", settings.cache / "models", "*.part.json"),
        ("download", settings.cache / "models", "incoming-*.gguf"),
        ("lock", settings.cache / "models", "*.lock"),
        ("lock", settings.cache / "locks", "*.lock"),
        ("payload", settings.cache / "payloads", "*.zip"),
        ("draft", settings.cache / "payloads", f".*.zip.{digits}"),
        ("staging", wheels, ".staging-*"),
        ("staging", wheels / "llama", ".adding-*"),
        ("lock", wheels, "*.lock"),
        ("draft", settings.home, f"keeper-id.{digits}"),
        ("draft", settings.home, f"workers.db.{digits}*"),
        ("registry", settings.home, "workers.db.corrupt-*"),
        ("answer", settings.log, "answer-*.txt"),
    ):
        yield from ((kind, path) for path in sorted(folder.glob(pattern)))


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


def _held(file: FileSeen) -> AbstractContextManager[bool]:
    """Holds the lock whose file it is; yields whether that was possible at once."""
    return held_at_once(Path(file.path)) if file.kind == "lock" else nullcontext(True)
