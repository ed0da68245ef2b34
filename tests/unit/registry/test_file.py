"""The registry's file: many processes, damage, no room, no permission, and other versions of rbee. Nothing is lost."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rbee.base.errors import ConfigError
from rbee.registry import Registry
from rbee.registry.file import VERSION
from rbee_remote.protocol import ErrorCode
from tests.unit.registry.test_registry import run, worker

FIXTURES = Path(__file__).parents[2] / "fixtures"
ID = "a" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "workers.db"


def filled(path: Path, rows: int = 1) -> bytes:
    """Make a registry with some rows; the file's content."""
    with Registry.open(path) as registry:
        registry.sync_node("gpu1", [worker(f"{i:016x}") for i in range(rows)])
    return path.read_bytes()


FIFTY = """
import os, sys, traceback
from pathlib import Path
import sqlite_utils
from rbee.registry import NodeFacts, Registry
from tests.unit.registry.test_registry import worker

def child(number):
    mine = f"n{number}"
    with Registry.open(Path(sys.argv[1])) as registry:
        for turn in range(4):
            registry.upsert_worker(mine, worker(f"{turn:016x}"))
            registry.upsert_worker("shared", worker(f"{number:08x}{turn:08x}"))
            registry.seen(mine, f"{turn:016x}")
            assert len(registry.rows(mine)) == turn + 1, registry.rows(mine)
        registry.drop(mine, f"{0:016x}")
        changes = registry.sync_node(mine, [worker(f"{turn:016x}") for turn in (1, 2, 9)])
        assert (len(changes.added), len(changes.dropped), len(changes.kept)) == (1, 1, 2), changes
        registry.remember_node(NodeFacts(mine, "pipe", "", "", "", "", ""))
        assert registry.lost == ""

def forked(number):
    pid = os.fork()
    if pid == 0:
        try:
            child(number)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return pid

pids = [forked(number) for number in range(50)]
sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in pids))
"""


def test_fifty_processes_at_once_lose_nothing(path: Path) -> None:
    done = run(FIFTY, str(path))
    assert (done.returncode, done.stderr) == (0, "")
    with Registry.open(path) as registry:
        of_each = {f"n{number}": sorted(row.worker_id for row in registry.rows(f"n{number}")) for number in range(50)}
        assert set(map(tuple, of_each.values())) == {tuple(f"{turn:016x}" for turn in (1, 2, 9))}
        assert len(registry.rows("shared")) == 200
        assert all(registry.node_facts(node) for node in of_each)
    assert sorted(file.name for file in path.parent.iterdir()) == ["workers.db"]


def test_a_locked_one_is_waited_for(path: Path) -> None:
    with Registry.open(path, busy_timeout_s=10) as registry:
        registry.upsert_worker("gpu1", worker())
        with holding(path) as let_go:
            began = time.monotonic()
            let_go(after_s=0.3)
            registry.drop("gpu1", ID)
            assert time.monotonic() - began >= 0.2
        assert registry.rows() == []


def test_one_that_stays_locked_is_refused_with_the_way_to_its_holder(path: Path) -> None:
    with Registry.open(path, busy_timeout_s=0.2) as registry:
        registry.upsert_worker("gpu1", worker())
        with holding(path):
            assert len(registry.rows()) == 1  # readers need not wait
            with pytest.raises(ConfigError, match="locked") as caught:
                registry.drop("gpu1", ID)
        assert f"fuser -v {path}" in caught.value.hint
        registry.drop("gpu1", ID)
        assert registry.rows() == []


class holding:
    """Another connection holds the write lock for as long as the context lasts, or for less."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Callable[..., None]:
        import threading

        self._connection = sqlite3.connect(self._path, check_same_thread=False)
        self._connection.execute("begin immediate")
        self._timers: list[threading.Timer] = []

        def let_go(after_s: float) -> None:
            self._timers.append(threading.Timer(after_s, self._connection.rollback))
            self._timers[0].start()

        return let_go

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.join()
        self._connection.rollback()
        self._connection.close()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "no database": lambda _: b"not a database at all" * 100,
    "header": lambda content: b"\xff" * 16 + content[16:],
    "page size": lambda content: content[:16] + b"\x00\x01" + content[18:],
    "middle page": lambda content: content[:8192] + b"\xa5" * 4096 + content[12288:],
    "all pages but the first": lambda content: content[:4096] + b"\xa5" * (len(content) - 4096),
    "cut to its beginning": lambda content: content[:2],
    "cut to half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside_and_made_anew(path: Path, damage: str) -> None:
    broken = DAMAGES[damage](filled(path, rows=300))
    path.write_bytes(broken)
    with Registry.open(path) as registry:
        assert registry.rows() == []
        assert registry.set_aside is not None
        assert registry.set_aside.read_bytes() == broken
        assert registry.set_aside.name.startswith("workers.db.corrupt-2")
        assert registry.set_aside.name in registry.lost
        registry.upsert_worker("gpu1", worker())
    with Registry.open(path) as registry:
        assert registry.lost == ""
        assert len(registry.rows()) == 1


def test_a_damaged_file_whose_lock_is_kept_by_another_is_not_waited_for_for_ever(path: Path) -> None:
    filled(path)
    path.write_bytes(b"damage" * 1000)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="is locked by another process"):
            Registry.open(path, busy_timeout_s=0.2)
    finally:
        os.close(folder)


@pytest.mark.parametrize("length", [0, 1])
def test_one_that_was_cut_to_nothing_is_said_to_have_lost_its_rows(path: Path, length: int) -> None:
    path.write_bytes(filled(path)[:length])
    with Registry.open(path) as registry:
        assert registry.lost == "was empty"
        assert registry.rows() == []
    with Registry.open(path) as registry:
        assert registry.lost == ""


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_garbage_beside_the_file_costs_nothing(path: Path, suffix: str) -> None:
    filled(path, rows=3)
    Path(f"{path}{suffix}").write_bytes(os.urandom(50_000))
    with Registry.open(path) as registry:
        assert (registry.lost, len(registry.rows())) == ("", 3)


SET_ASIDE = """
import os, sys
from pathlib import Path
from rbee.registry import Registry

def child():
    with Registry.open(Path(sys.argv[1])) as registry:
        os._exit(1 if registry.set_aside else 0)

pids = [os.fork() or child() for _ in range(10)]
print(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))
"""


def test_of_many_that_find_the_damage_one_sets_it_aside(path: Path) -> None:
    filled(path)
    path.write_bytes(b"damage" * 1000)
    done = run(SET_ASIDE, str(path))
    assert (done.stdout, done.stderr) == ("1\n", "")
    assert len(list(path.parent.glob("workers.db.corrupt-*"))) == 1


@pytest.mark.parametrize("version", range(1, VERSION + 1))
def test_every_version_is_brought_to_ours_with_its_rows(path: Path, version: int) -> None:
    path.parent.mkdir()
    with sqlite3.connect(path) as plain:
        plain.executescript((FIXTURES / f"registry_v{version}.sql").read_text())
    plain.close()
    with Registry.open(path) as registry:
        (row,) = registry.rows("gpu1")
        assert (row.worker_id, row.slots, row.last_seen_at) == ("3f9a" * 4, 4, "2026-01-02T03:05:06.789Z")
        assert (row.loaded["kv_type"], row.loaded["devices"]) == (("", "") if version < 2 else ("q8_0", "CUDA0,CUDA1"))
        assert row.secret == ("" if version < 3 else "5ec2e75f" * 4)
        assert row.loaded["lora"] == ("" if version < 5 else "file:/models/style.gguf:0.5")
        assert row.loaded["pooling"] == ("auto" if version < 6 else "mean")
        facts = registry.node_facts("gpu1")
        assert facts is not None
        assert facts.transport == "pipe"
        assert facts.platform == ("" if version < 4 else "Linux x86_64 glibc 2.36 3.11")
        assert registry.lost == ""
        assert registry.sync_node("gpu1", [worker()]).dropped == ("3f9a" * 4,)
    assert schema_of(path) == schema_of_a_fresh_one(path.parent)


def test_the_fixtures_end_with_our_version(path: Path) -> None:
    """A version that is released has its fixture, made from a file of that version and never changed."""
    assert {file.name for file in FIXTURES.glob("registry_v*.sql")} == {
        f"registry_v{version}.sql" for version in range(1, VERSION + 1)
    }
    path.parent.mkdir()
    with sqlite3.connect(path) as plain:
        plain.executescript((FIXTURES / f"registry_v{VERSION}.sql").read_text())
    plain.close()
    assert schema_of(path) == schema_of_a_fresh_one(path.parent)


def schema_of(path: Path) -> dict[str, list[tuple[str, str]]]:
    connection = sqlite3.connect(path)
    tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    found = {name: [row[1:3] for row in connection.execute(f"pragma table_info({name})")] for name in tables}
    connection.close()
    return found


def schema_of_a_fresh_one(folder: Path) -> dict[str, list[tuple[str, str]]]:
    Registry.open(folder / "fresh.db").close()
    return schema_of(folder / "fresh.db")


def test_one_from_a_newer_rbee_is_refused_and_left_alone(path: Path) -> None:
    filled(path)
    with sqlite3.connect(path) as plain:
        plain.execute(f"pragma user_version = {VERSION + 1}")
    plain.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="newer rbee") as caught:
        Registry.open(path)
    assert caught.value.code is ErrorCode.CONFIG_INVALID
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "workers.db").mkdir()
    with pytest.raises(ConfigError, match="cannot use the registry"):
        Registry.open(tmp_path / "workers.db")


UNWRITABLE = """
import json, os, resource, sys
from pathlib import Path
from rbee.base.errors import ConfigError
from rbee.registry import Registry, migrations  # not to be read by any user
from tests.unit.registry.test_registry import worker
if sys.argv[2] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
elif os.getuid() == 0:
    os.setuid(65534)  # permissions do not bind root
told = []
with Registry.open(Path(sys.argv[1]), tell=told.append) as registry:
    found = [row.worker_id for row in registry.fresh_rows()]
    registry.upsert_worker("n", worker("b" * 16))
    registry.seen("n", "b" * 16)
    print(json.dumps([found, len(registry.rows()), told]))
"""


@pytest.fixture
def public_path() -> Iterator[Path]:
    """In a folder that other users reach."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name) / "home" / "workers.db"
        (Path(name) / "home").chmod(0o755)


@pytest.mark.parametrize("case", ["file", "folder", "folder with log", "full", "full and missing"])
def test_one_that_cannot_be_written_is_read_and_said_so(public_path: Path, case: str) -> None:
    filled(public_path)
    public_path.parent.chmod(0o755)
    public_path.chmod(0o644)
    if case == "full and missing":
        public_path.unlink()
    if case == "folder with log":  # a write-ahead log that was never taken into the file
        with sqlite3.connect(public_path) as connection:
            connection.execute("update workers set model = 'x'")
            for suffix in ("", "-wal", "-shm"):
                shutil.copy(f"{public_path}{suffix}", f"{public_path.parent.parent}/kept{suffix}")
        connection.close()
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{public_path.parent.parent}/kept{suffix}", f"{public_path}{suffix}")
            Path(f"{public_path}{suffix}").chmod(0o444)
    if case == "file":
        public_path.chmod(0o444)
    if case.startswith("folder"):
        public_path.parent.chmod(0o555)
    done = run(UNWRITABLE, str(public_path), "full" if case.startswith("full") else "user")
    assert done.returncode == 0, done.stderr
    found, rows, told = json.loads(done.stdout)
    known = [] if case == "full and missing" else ["0" * 16]
    assert (found, rows) == (known, len(known) + 1)
    assert len(told) == 1
    assert "cannot be written" in told[0]
    assert "nothing of this command is remembered" in told[0]
