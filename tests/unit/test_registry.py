"""The registry: a cache that survives many processes, damage, and other versions of rbee."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from rbee.errors import ConfigError
from rbee.registry import NodeFacts, Registry
from rbee.registry.file import VERSION
from rbee_remote.protocol import ErrorCode, WorkerInfo, WorkerState

MODEL = "smollm2:135m"


def worker(ident: str = "a" * 16, **changes: object) -> WorkerInfo:
    info = WorkerInfo(
        id=ident,
        model=MODEL,
        state=WorkerState.IDLE,
        backend="cpu",
        device="cpu",
        socket="/run/worker.sock",
        pid=7,
        start_ticks=8,
        boot_id="boot",
        ctx=4096,
        slots=2,
        slots_free=2,
        keep_alive_s=300.0,
        created_at=1_700_000_000.0,
    )
    return dataclasses.replace(info, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "workers.db"


def test_a_missing_file_is_made_for_the_user_alone(path: Path) -> None:
    with Registry.open(path) as registry:
        assert registry.rows() == []
        assert registry.recovered is None
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_select_star_reads_well(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker(), hive_instance="h", payload="p")
    with sqlite3.connect(path) as plain:
        cursor = plain.execute("select * from workers")
        columns = [column[0] for column in cursor.description]
        (values,) = cursor.fetchall()
    plain.close()
    row = dict(zip(columns, values, strict=True))
    assert row["created_at"] == "2023-11-14T22:13:20.000Z"
    assert (row["node"], row["model"], row["state"], row["hive_instance"]) == ("gpu1", MODEL, "idle", "h")


def test_a_worker_is_found_while_it_is_fresh_and_has_a_slot(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker())
        found = registry.find_usable("gpu1", MODEL)
        assert found is not None
        assert found.worker_id == "a" * 16
        assert registry.find_usable("gpu2", MODEL) is None
        assert registry.find_usable("gpu1", "other") is None
        assert registry.find_usable("gpu1", MODEL, max_age_s=-1) is None
        for state, free in ((WorkerState.BUSY, 0), (WorkerState.LOADING, 2), (WorkerState.READY, 0)):
            registry.upsert_worker("gpu1", worker(state=state, slots_free=free))
            assert registry.find_usable("gpu1", MODEL) is None
        assert len(registry.rows()) == 1


def test_syncing_replaces_what_was_known_of_that_node_alone(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker("1" * 16))
        registry.upsert_worker("gpu2", worker("2" * 16))
        registry.sync_node("gpu1", [worker("3" * 16), worker("4" * 16)])
        assert [(row.node, row.worker_id[0]) for row in registry.rows()] == [
            ("gpu1", "3"),
            ("gpu1", "4"),
            ("gpu2", "2"),
        ]
        registry.sync_node("gpu1", [])
        assert [row.node for row in registry.rows()] == ["gpu2"]
        registry.drop("gpu2", "2" * 16)
        registry.drop("gpu2", "2" * 16)
        assert registry.rows() == []


def test_what_worked_for_a_node_is_remembered(path: Path) -> None:
    facts = NodeFacts(
        "gpu1", "pipe", "/home/bee/.rbee/node", "/run/rbee", "/venv/bin/python", "p.zip", "/run/hive.sock"
    )
    with Registry.open(path) as registry:
        assert registry.node_facts("gpu1") is None
        registry.remember_node(facts)
        known = registry.node_facts("gpu1")
        assert known is not None
        assert dataclasses.replace(known, last_seen_at="") == facts
        registry.forget_node("gpu1")
        assert registry.node_facts("gpu1") is None


def test_values_are_never_sql(path: Path) -> None:
    nasty = "x'; drop table workers; --"
    with Registry.open(path) as registry:
        registry.upsert_worker(nasty, worker(model=nasty))
        assert registry.find_usable(nasty, nasty) is not None
        registry.drop(nasty, "' or '1'='1")
        assert len(registry.rows()) == 1


def test_reading_needs_no_sqlite_utils(path: Path) -> None:
    Registry.open(path).close()
    code = (
        "import sys; from pathlib import Path; from rbee.registry import Registry\n"
        "r = Registry.open(Path(sys.argv[1])); r.find_usable('n', 'm'); r.node_facts('n'); r.seen('n', 'w')\n"
        "r.close(); sys.exit('sqlite_utils' in sys.modules)"
    )
    assert run(code, str(path)).returncode == 0


def test_twenty_processes_at_once_lose_nothing(path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[3]); from pathlib import Path\n"
        "from tests.unit.test_registry import worker; from rbee.registry import Registry\n"
        "with Registry.open(Path(sys.argv[1])) as registry:\n"
        "    for turn in range(5): registry.upsert_worker('n' + sys.argv[2], worker(f'{turn:016x}'))\n"
    )
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen([*command, str(i), root], env=environment(), stderr=subprocess.PIPE) for i in range(20)]
    ends = [(process.communicate()[1], process.returncode) for process in running]
    assert ends == [(b"", 0)] * 20
    with Registry.open(path) as registry:
        assert len(registry.rows()) == 100
        assert registry.recovered is None


@pytest.mark.parametrize("damage", ["garbage", "truncated", "pages"])
def test_a_damaged_file_is_set_aside_and_made_anew(path: Path, damage: str) -> None:
    with Registry.open(path) as registry:
        for i in range(200):
            registry.upsert_worker("gpu1", worker(f"{i:016x}"))
    content = path.read_bytes()
    broken = {
        "garbage": b"not a database at all" * 100,
        "truncated": content[: len(content) // 2],
        "pages": content[:4096] + b"\xa5" * (len(content) - 4096),
    }[damage]
    path.write_bytes(broken)
    with Registry.open(path) as registry:
        assert registry.rows() == []
        assert registry.recovered is not None
        assert registry.recovered.read_bytes() == broken
        assert registry.recovered.name.startswith("workers.db.corrupt-2")
        registry.upsert_worker("gpu1", worker())
    with Registry.open(path) as registry:
        assert registry.recovered is None
        assert len(registry.rows()) == 1


def test_an_empty_file_becomes_a_registry(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker())
        assert len(registry.rows()) == 1


def test_one_from_a_newer_rbee_is_refused_and_left_alone(path: Path) -> None:
    Registry.open(path).close()
    with sqlite3.connect(path) as plain:
        plain.execute(f"pragma user_version = {VERSION + 1}")
    plain.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="newer rbee") as caught:
        Registry.open(path)
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert path.read_bytes() == before


def test_a_locked_one_is_waited_for_and_then_refused(path: Path) -> None:
    with Registry.open(path, busy_timeout_s=0.2) as registry:
        registry.upsert_worker("gpu1", worker())
        holder = sqlite3.connect(path)
        holder.execute("begin immediate")
        assert len(registry.rows()) == 1  # readers need not wait
        began = time.monotonic()
        with pytest.raises(ConfigError, match="locked") as caught:
            registry.drop("gpu1", "a" * 16)
        assert time.monotonic() - began >= 0.15
        assert caught.value.hint
        holder.rollback()
        holder.close()
        registry.drop("gpu1", "a" * 16)
        assert registry.rows() == []


def test_one_that_cannot_be_opened_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "workers.db").mkdir()
    with pytest.raises(ConfigError, match="cannot use the registry"):
        Registry.open(tmp_path / "workers.db")


READ_ONLY = """
import os, sys
from pathlib import Path
from rbee.errors import ConfigError
from rbee.registry import Registry
from tests.unit.test_registry import worker
if os.getuid() == 0:
    os.setuid(65534)  # permissions do not bind root
try:
    with Registry.open(Path(sys.argv[1])) as registry:
        registry.upsert_worker("n", worker())
except ConfigError as error:
    sys.exit(error.hint)
"""


def test_a_read_only_one_is_a_config_error_with_a_hint() -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "workers.db"
        Registry.open(path).close()
        path.chmod(0o444)
        path.parent.chmod(0o555)
        done = run(READ_ONLY, str(path))
        path.parent.chmod(0o755)
    assert "writable" in done.stderr, done.stderr


def environment() -> dict[str, str]:
    root = Path(__file__).parents[2]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'remote'}"}


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
