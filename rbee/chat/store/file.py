"""The file behind the sessions: made, checked, migrated. No cache: a damaged one is left to its owner.

Rules
- The file appears whole, 0600: it is made under another name and linked into place, so that of several first chats one
  makes it, and none sees it half made.
- sqlite3's errors end here, as ConfigErrors.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.retries import BUSY_TIMEOUT_S
from rbee.base.settings import make_private_folder
from rbee.registry.file import database, immediate

#: In rbee's home.
NAME = "chats.db"
#: Grows with each step in `migrations`; kept in `PRAGMA user_version`.
VERSION = 1
_WHAT = "the chats' file"


def open_file(path: Path) -> sqlite3.Connection:
    """A connection at our version. Raises ConfigError, also for a file that others can write."""
    trusted_files.check_entry(path, _WHAT)
    make_private_folder(path.parent)
    with translated(path):
        if not path.exists():
            _create(path)
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        version = _version(connection)
        if version > VERSION:
            raise ConfigError(
                f"{path} was written by a newer rbee (format {version}; this one knows {VERSION})",
                hint="upgrade rbee, or chat with --no-history",
                details={"file": str(path), "format": version, "known": VERSION},
            )
        connection.execute("pragma secure_delete = on")  # what was removed is gone from the file
        if version < VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """All steps that are missing, or none. Two at once: the second waits, and finds nothing to do."""
    from rbee.chat.store.migrations import MIGRATIONS

    connection.execute("pragma journal_mode = wal")
    with immediate(connection):
        if _version(connection) < VERSION:
            MIGRATIONS.apply(database(connection))
            connection.execute(f"pragma user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("pragma user_version").fetchone()
    return int(version)


def _create(path: Path) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        _connect(draft).close()
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{draft}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3's and the system's errors as ConfigErrors."""
    try:
        yield
    except sqlite3.Error as error:
        raise ConfigError(
            f"cannot use {path}: {error}",
            hint="check that it is yours and writable, and that the disk is not full; --no-history does without",
            details={"file": str(path), "sqlite": str(error)},
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror}", hint="--no-history does without it") from error
