"""The file behind the registry: made, checked, migrated, and replaced where it is damaged.

Rules
- The file appears whole: it is made under another name and linked into place. So one that is empty was cut off.
- A damaged file is never thrown away, and only ever set aside under a lock, after a second look.
- Where the file can be read but not written (read-only, no room), a copy in memory takes its place for one command.
- sqlite3's errors end here, as ConfigErrors.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.retries import BUSY_TIMEOUT_S
from rbee.base.settings import make_private_folder
from rbee_remote.protocol import ErrorCode

if TYPE_CHECKING:
    from sqlite_utils.db import Database

#: Grows with each step in `migrations`; kept in `PRAGMA user_version`.
VERSION = 6

_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}


@dataclass(frozen=True, slots=True)
class Opened:
    """lost: what became of the rows that were there, a clause, "" where nothing happened to them.

    set_aside: where a damaged file is now. unwritable: why the connection is to a copy in memory, "" where it is not.
    """

    connection: sqlite3.Connection
    lost: str = ""
    set_aside: Path | None = None
    unwritable: str = ""


def open_file(path: Path, busy_timeout_s: float) -> Opened:
    """A connection to a sound registry at our version. Raises ConfigError, also for one that others can write."""
    trusted_files.check_entry(path, "the registry")
    with translated(path):
        try:
            return _open(path, busy_timeout_s)
        except (sqlite3.Error, OSError) as error:
            if not is_unwritable(error) or path.is_dir():
                raise
            return Opened(copy_in_memory(path, busy_timeout_s), unwritable=str(error))


def _open(path: Path, busy_timeout_s: float) -> Opened:
    make_private_folder(path.parent)
    if not path.exists():
        _create(path)
    try:
        was_empty = path.stat().st_size <= 1  # SQLite takes one byte for none
        return Opened(_connect(path, busy_timeout_s), "was empty" if was_empty else "")
    except sqlite3.DatabaseError as error:
        if not _is_damage(error):
            raise
    aside = _set_aside(path, busy_timeout_s)
    connection = _connect(path, busy_timeout_s)
    return Opened(connection, f"was damaged and is kept as {aside.name}", aside) if aside else Opened(connection)


def _connect(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """A checked connection at our version. Raises sqlite3.Error, and ConfigError for a newer version."""
    connection = sqlite3.connect(path, timeout=busy_timeout_s, check_same_thread=False)
    try:
        _check(connection, path)
        # With a write-ahead log this may lose the last rows in a power cut, and never damages the file.
        connection.execute("pragma synchronous = normal")
        if _version(connection) < VERSION:
            _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check(connection: sqlite3.Connection, path: Path) -> None:
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


def copy_in_memory(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """What the file holds, nothing where it is damaged, at our version. Raises sqlite3.Error, ConfigError."""
    trusted_files.check_entry(path, "the registry")
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        if path.exists() and path.stat().st_size:
            try:
                _copy(path, memory, busy_timeout_s)
                _check(memory, path)
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                memory.close()
                memory = sqlite3.connect(":memory:", check_same_thread=False)
        if _version(memory) < VERSION:
            _migrate(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def _copy(path: Path, memory: sqlite3.Connection, busy_timeout_s: float) -> None:
    """SQLite needs to write even to read a write-ahead log; failing that, what is in the main file has to do."""
    for option in ("mode=ro", "immutable=1"):
        source = sqlite3.connect(f"file:{quote(str(path))}?{option}", timeout=busy_timeout_s, uri=True)
        try:
            source.backup(memory)
            return
        except sqlite3.Error as error:
            if option == "immutable=1" or not is_unwritable(error):
                raise
        finally:
            source.close()


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
        _lock(folder, path, busy_timeout_s)
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


def _lock(folder: int, path: Path, patience_s: float) -> None:
    """Raises ConfigError where another process, which may be stopped, keeps the lock."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _locked(path, {}) from None
            time.sleep(0.02)


def _locked(path: Path, details: dict[str, str]) -> ConfigError:
    return ConfigError(
        f"the registry {path} is locked by another process",
        hint=f"try again when the other rbee is done; `fuser -v {path}` shows who has it open",
        details=details,
    )


def _damage(verdict: str) -> sqlite3.DatabaseError:
    error = sqlite3.DatabaseError(verdict)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def _primary_code(error: BaseException) -> int:
    """SQLite's result code without the extension in its upper bits; 0 for any other error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _is_damage(error: BaseException) -> bool:
    return _primary_code(error) in _DAMAGED


def is_unwritable(error: BaseException) -> bool:
    """Whether reading may work where writing failed with `error`: no permission, a read-only file system, no room."""
    return _primary_code(error) in _UNWRITABLE or isinstance(error, OSError)


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
            raise _locked(path, details) from error
        raise ConfigError(
            f"cannot use the registry {path}: {error}",
            hint="check that folder and file are yours and writable, and that the disk is not full; or set RBEE_HOME",
            details=details,
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot use the registry {path}: {error.strerror}", hint="check that folder and file belong to you"
        ) from error
