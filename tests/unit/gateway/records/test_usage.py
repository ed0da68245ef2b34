"""usage.db: sums, and what becomes of them where the file is locked, full, damaged or another's."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.gateway.records import usage
from rbee.gateway.records.usage import Counts, Pending, Row, read, write

ONE = Counts(1, 0, 10, 4, 5, 0.5)
ALICE = Row("2026-11-01", "alice", "smollm2:135m", "gpu1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "usage.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as other:
        other.execute("begin exclusive")
        yield
        other.rollback()


def test_sums_by_key_model_node_and_day(path: Path) -> None:
    assert read(path, "key") == {}
    write(path, {ALICE: ONE, ALICE._replace(node="gpu2"): ONE, Row("2026-11-02", "", "other", ""): ONE})
    write(path, {ALICE: Counts(2, 1, 1, 1, 1, 1.0)})
    both = Counts(4, 1, 21, 9, 11, 2.0)
    assert read(path, "key") == {"": ONE, "alice": both}
    assert read(path, "model") == {"other": ONE, "smollm2:135m": both}
    assert read(path, "node") == {"": ONE, "gpu1": Counts(3, 1, 11, 5, 6, 1.5), "gpu2": ONE}
    assert read(path, "day") == {"2026-11-01": both, "2026-11-02": ONE}
    assert read(path, "key", "2026-11-02") == {"": ONE}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
        columns = [row[1] for row in connection.execute("pragma table_info(usage)")]
    assert columns == ["day", "key", "model", "node", *Counts.__slots__]


def test_what_cannot_be_written_now_is_written_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "BUSY_TIMEOUT_S", 0.01)
    write(path, {ALICE: ONE})
    pending = Pending()
    pending.add(ALICE, ONE)
    with locked(path), pytest.raises(ConfigError, match=r"usage\.db: database is locked"):
        pending.write(path)
    pending.add(ALICE, ONE)
    pending.write(path)
    assert not pending
    assert read(path, "key") == {"alice": ONE + ONE + ONE}


def test_what_waits_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MOST_PENDING", 2)
    pending = Pending()
    for name in "abca":
        pending.add(ALICE._replace(key=name), ONE)
    assert pending.lost == 1


@pytest.mark.parametrize(
    "cut", [b"this is no database, and never was" * 200, None], ids=["another file", "overwritten"]
)
def test_a_damaged_file_is_set_aside(path: Path, cut: bytes | None, caplog: pytest.LogCaptureFixture) -> None:
    write(path, {ALICE: ONE})
    damaged = cut or path.read_bytes()[:100] + b"\xff" * 4000 + path.read_bytes()[4100:]
    path.write_bytes(damaged)
    write(path, {ALICE: ONE})
    assert read(path, "key") == {"alice": ONE}
    (aside,) = path.parent.glob("usage.db.corrupt-*")
    assert aside.read_bytes() == damaged
    assert aside.name in caplog.text


def test_an_empty_file_is_filled(path: Path) -> None:
    """A gateway was killed while it made the file."""
    path.parent.mkdir()
    path.touch(0o600)
    assert read(path, "key") == {}
    write(path, {ALICE: ONE})
    assert read(path, "key") == {"alice": ONE}


def test_a_file_of_a_newer_rbee_is_left_alone(path: Path) -> None:
    write(path, {ALICE: ONE})
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("update format set version = 99")
    for act in (lambda: write(path, {ALICE: ONE}), lambda: read(path, "key")):
        with pytest.raises(ConfigError, match=r"newer rbee \(format 99"):
            act()
    assert not list(path.parent.glob("*.corrupt-*"))


def test_a_place_that_cannot_be_written_is_said() -> None:
    with pytest.raises(ConfigError, match="cannot"):
        write(Path("/sys/usage.db"), {ALICE: ONE})


def test_a_file_that_others_can_write_is_not_used(path: Path) -> None:
    write(path, {ALICE: ONE})
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="everybody"):
        write(path, {ALICE: ONE})
