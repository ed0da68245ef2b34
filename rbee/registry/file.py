"""The file behind the registry: made, checked, migrated, and replaced where it is damaged.

Rules
- The file appears whole: it is made under another name and linked into place.
- A damaged file is never thrown away, and only ever set aside under a lock, after a second look.
- sqlite3's errors end here, as ConfigErrors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.errors import ConfigError
from rbee.settings import make_private_folder
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from sqlite_utils.db import Database

#: Grows with each step in `migrations`; kept in `PRAGMA user_version`.
VERSION = 2
BUSY_TIMEOUT_S = 5.0

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def open_file(path: Path, busy_timeout_s: float) -> tuple[sqlite3.Connection, Path | None]:
    """A connection to a sound registry at our version, and where a damaged one went. Raises ConfigError."""
    make_private_folder(path.parent)
    with translated(path):
        if not path.exists():
            _create(path)
        try:
            return _connect(path, busy_timeout_s), None
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        aside = _set_aside(path, busy_timeout_s)
        return _connect(path, busy_timeout_s), aside


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A checked connection at our version. Raises sqlite3.Error, and ConfigError for a newer version."""
    connection = sqlite3.connect(path, timeout=busy_timeout_s, check_same_thread=False)
    try:
        version = _version(connection)
        (verdict,) = connection.execute("pragma quick_check(1)").fetchone()
        if verdict != "ok":
            raise _damage(verdict)
        if version > VERSION:
            raise ConfigError(
                f"{path} was written by a newer rbee (format {version}; this one knows {VERSION})",
                hint="upgrade rbee, or set RBEE_HOME to another folder",
                details={"file": str(path), "format": version, "known": VERSION},
            )
        if version < VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    """All steps that are missing, or none. Two at once: the second waits, and finds nothing to do."""
    from rbee.registry.migrations import MIGRATIONS

    wrapped = database(connection)
    connection.execute("pragma journal_mode = wal")
    with immediate(connection):
        if _version(connection) < VERSION:
            MIGRATIONS.apply(wrapped)
            connection.execute(f"pragma user_version = {VERSION}")


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("pragma user_version").fetchone()
    return int(version)


def database(connection: sqlite3.Connection) -> Database:
    from sqlite_utils.db import Database

    return Database(connection, execute_plugins=False)


@contextlib.contextmanager
def immediate(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that takes the write lock at its beginning, where waiting for it is possible."""
    connection.execute("begin immediate")
    try:
        yield
        connection.execute("commit")
    except BaseException:
        if connection.in_transaction:
            connection.execute("rollback")
        raise


def _create(path: Path) -> None:
    """Make the file beside its place and link it there whole: of several at once the first wins, none is half made."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        _connect(draft, BUSY_TIMEOUT_S).close()
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{draft}{suffix}").unlink(missing_ok=True)


def _set_aside(path: Path, busy_timeout_s: float) -> Path | None:
    """Put a damaged file under a dated name and a fresh one in its place; None when another process just did."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            _connect(path, busy_timeout_s).close()
            return None
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = path.with_name(f"{path.name}.corrupt-{stamp}")
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
        _create(path)
        return aside
    finally:
        os.close(folder)


def _damage(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without the extension in its upper bits."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: sqlite3.Error) -> bool:
    return _primary_code(error) in _DAMAGED


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """sqlite3's and the system's errors as ConfigErrors."""
    try:
        yield
    except sqlite3.Error as error:
        details = {"file": str(path), "sqlite": str(error)}
        if _is_damage(error):
            raise ConfigError(
                f"the registry {path} is damaged",
                hint="the next command sets it aside and makes another",
                details=details,
                code=ErrorCode.REGISTRY_CORRUPT,
            ) from error
        if _primary_code(error) in _BUSY:
            raise ConfigError(
                f"the registry {path} is locked by another process",
                hint="try again when the other rbee is done; `fuser` on the file shows who holds it",
                details=details,
            ) from error
        raise ConfigError(
            f"cannot use the registry {path}: {error}",
            hint="see that folder and file are yours, writable and not on a full disk, or set RBEE_HOME",
            details=details,
        ) from error
    except OSError as error:
        raise ConfigError(f"cannot use the registry {path}: {error.strerror}") from error
