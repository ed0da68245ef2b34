"""usage.db: requests, tokens and seconds of each key, model, node and day. Never what was asked or answered.

Rules
- A gateway writes in a thread of its own, some seconds after the requests: what a kill costs. There can be several of
  them (`rbee launch`): counts are added within a transaction, and one that another came between is tried again.
- What cannot be written now (locked, no room) is kept and written later; a damaged file is set aside. No request fails.
- sqlite-utils makes and fills the table; there is no SQL here.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, get_args

from rbee.base import trusted_files
from rbee.base.errors import ConfigError
from rbee.base.retries import BUSY_TIMEOUT_S
from rbee.base.settings import Settings, make_private_folder

if TYPE_CHECKING:
    from sqlite_utils.db import Database

_log = logging.getLogger(__name__)

#: Of the table; a file that says another was written by a newer rbee.
VERSION = 1
#: Rows that wait to be written, at most: days of a disk that is full.
MOST_PENDING = 10_000
WHAT = "the record of usage"
_COLUMNS = ("day", "key", "model", "node")
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}

By = Literal["key", "model", "node", "day"]
WAYS: tuple[By, ...] = get_args(By)


class Row(NamedTuple):
    """day: ISO 8601, UTC. key, node: "" for none."""

    day: str
    key: str
    model: str
    node: str


@dataclass(slots=True)
class Counts:
    """failed: of the requests, those that ended with an error. tokens_in: of prompts, cached ones included.
    seconds: from request to end, summed up."""

    requests: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_cached: int = 0
    tokens_out: int = 0
    seconds: float = 0.0

    def __add__(self, other: Self) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def default_path(settings: Settings) -> Path:
    return settings.home / "usage.db"


class Pending:
    """What is not written so far. lost: requests for which there was no room."""

    def __init__(self) -> None:
        self._rows: dict[Row, Counts] = {}
        self.lost = 0

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, row: Row, counts: Counts) -> None:
        if row not in self._rows and len(self._rows) >= MOST_PENDING:
            self.lost += counts.requests
            return
        self._rows[row] = self._rows.get(row, Counts()) + counts

    def write(self, path: Path) -> None:
        """Add all of it to the file, or nothing. Raises ConfigError: try again later."""
        write(path, self._rows)
        self._rows = {}


def write(path: Path, rows: Mapping[Row, Counts]) -> None:
    """Add counts to those in the file, which is made, or made anew where it is damaged. Raises ConfigError."""
    try:
        _write(path, rows)
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
            raise _unusable(path, error) from error
    else:
        return
    with _translated(path):
        _set_aside(path)
        _write(path, rows)


def _write(path: Path, rows: Mapping[Row, Counts]) -> None:
    try:
        make_private_folder(path.parent)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _unusable(path, error) from error
    with _opened(path, write=True) as database, database.atomic():
        table = database.table("usage", pk=_COLUMNS)
        known = _known(table, rows)
        table.upsert_all(
            ({**row._asdict(), **asdict(known.get(row, Counts()) + counts)} for row, counts in rows.items()),
            pk=_COLUMNS,
        )


def _known(table: Any, rows: Iterable[Row]) -> dict[Row, Counts]:
    """What the table has for the rows already."""
    from sqlite_utils.db import NotFoundError

    found = {}
    for row in rows:
        with suppress(NotFoundError):
            found[row] = _counts(table.get(tuple(row)))
    return found


def read(path: Path, by: By, since: str = "") -> dict[str, Counts]:
    """The sums by key, model, node or day, in the order of their names. since: the first day that counts, "" for all.

    Raises ConfigError.
    """
    sums: dict[str, Counts] = {}
    if not path.exists():
        return sums
    with _translated(path), _opened(path, write=False) as database:
        for row in database.table("usage").rows if "usage" in database.table_names() else ():
            if row["day"] >= since:
                name = str(row[by])
                sums[name] = sums.get(name, Counts()) + _counts(row)
    return dict(sorted(sums.items()))


def _counts(row: Mapping[str, Any]) -> Counts:
    return Counts(**{name: row[name] for name in asdict(Counts())})


@contextmanager
def _opened(path: Path, *, write: bool) -> Iterator[Database]:
    from sqlite_utils.db import Database

    trusted_files.check_entry(path, WHAT)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
    try:
        database = Database(connection, execute_plugins=False)
        if write:
            database.enable_wal()
        _check_version(database, path, write=write)
        yield database
    finally:
        connection.close()


def _check_version(database: Database, path: Path, *, write: bool) -> None:
    table = database.table("format", pk="id")
    (found,) = [row["version"] for row in table.rows] if table.exists() else [None]
    if found is None and write:
        with database.atomic():
            table.upsert({"id": 1, "version": VERSION}, pk="id")
            database.table("usage").create(
                {**dict.fromkeys(_COLUMNS, str), **{name: type(value) for name, value in asdict(Counts()).items()}},
                pk=_COLUMNS,
                if_not_exists=True,
            )
    elif found not in (None, VERSION):
        raise ConfigError(
            f"{path} was written by a newer rbee (format {found}; this one knows {VERSION})",
            hint="upgrade rbee, or set RBEE_HOME to another folder",
        )


def _set_aside(path: Path) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    for suffix in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{path}.corrupt-{stamp}{suffix}")
    _log.warning("%s is damaged, and set aside as %s.corrupt-%s: sums begin anew", path, path.name, stamp)


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _unusable(path, error) from error


def _unusable(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"cannot use {WHAT} {path}: {error}",
        hint="check that folder and file are yours and writable, and that the disk is not full",
        details={"file": str(path)},
    )
