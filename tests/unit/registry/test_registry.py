"""The registry: what it remembers, and that every value may be anything."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rbee.registry import NodeFacts, Registry
from rbee_remote.protocol import WorkerInfo, WorkerOptions, WorkerState

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
        secret="5ec2e75f" * 4,
    )
    return dataclasses.replace(info, **changes)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "workers.db"


def test_a_missing_file_is_made_for_the_user_alone(path: Path) -> None:
    with Registry.open(path) as registry:
        assert registry.rows() == []
        assert registry.lost == ""
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


def test_a_row_tells_what_makes_its_worker_another_one(path: Path) -> None:
    """One that pools its tokens does not chat, whatever its model's file says."""
    options = WorkerOptions(ctx=4096, slots=2, kv_type="q8_0", lora=("file:/a.gguf:1",), pooling="mean")
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker(options=options))
        (row,) = registry.rows()
    assert (row.loaded["kv_type"], row.loaded["lora"], row.loaded["pooling"]) == ("q8_0", "file:/a.gguf:1", "mean")


def test_a_worker_is_believed_while_it_is_fresh(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker())
        assert [row.worker_id for row in registry.fresh_rows()] == ["a" * 16]
        assert registry.fresh_rows(max_age_s=-1) == []


@pytest.mark.parametrize(
    ("state", "free", "usable"),
    [
        (WorkerState.IDLE, 2, True),
        (WorkerState.READY, 1, True),
        (WorkerState.READY, 0, False),
        (WorkerState.BUSY, 0, False),
        (WorkerState.LOADING, 2, False),
    ],
)
def test_a_row_tells_whether_its_worker_had_a_slot(path: Path, state: WorkerState, free: int, usable: bool) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker())
        registry.upsert_worker("gpu1", worker(state=state, slots_free=free))
        (row,) = registry.rows()
    assert row.is_usable is usable
    # Nothing would tell one without a secret from who listens in its place.
    assert not dataclasses.replace(row, secret="").is_usable


@pytest.mark.parametrize("jump_s", [86_400, -86_400], ids=["back", "ahead"])
def test_a_clock_that_jumps_makes_rows_stale_and_not_eternal(
    path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    real = time.time
    with Registry.open(path) as registry:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: real() + jump_s)
            registry.upsert_worker("gpu1", worker())
        assert registry.fresh_rows() == []
        registry.seen("gpu1", "a" * 16)
        assert len(registry.fresh_rows()) == 1
        assert registry.sync_node("gpu1", [], asked_at=real() - 1).dropped == ()  # seen since
        assert registry.sync_node("gpu1", []).dropped == ("a" * 16,)


@pytest.mark.parametrize("created_at", [1e300, -1e300, float("nan"), -6e10, 2.5e11])
def test_a_nodes_clock_may_say_anything(path: Path, created_at: float) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker(created_at=created_at))
        (row,) = registry.rows()
    assert len(row.created_at) == len("2023-11-14T22:13:20.000Z")


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


def test_a_sync_says_what_it_changed(path: Path) -> None:
    with Registry.open(path) as registry:
        first = registry.sync_node("gpu1", [worker("1" * 16), worker("2" * 16)])
        assert (first.added, first.dropped, first.kept) == (("1" * 16, "2" * 16), (), ())
        second = registry.sync_node("gpu1", [worker("2" * 16), worker("3" * 16)])
        assert (second.added, second.dropped, second.kept) == (("3" * 16,), ("1" * 16,), ("2" * 16,))


def test_a_worker_that_was_recorded_after_the_hive_was_asked_stays(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker("1" * 16))
        asked_at = time.time()
        time.sleep(0.005)  # rows tell milliseconds
        registry.upsert_worker("gpu1", worker("2" * 16))
        assert registry.sync_node("gpu1", [], asked_at=asked_at).dropped == ("1" * 16,)
        assert [row.worker_id for row in registry.rows()] == ["2" * 16]


NASTY = [
    "x'; drop table workers; --",
    "' or '1'='1",
    'quo"ted `and` [more]',
    "nul\0inside",
    "\N{SNOWMAN} \N{FACE WITH TEARS OF JOY} \u202e",
    "line\nfeed\ttab\x1b[2J",
    "%s %(node)s :node ? $1",
    "x" * 2**20,
]


@pytest.mark.parametrize("nasty", NASTY, ids=lambda text: ascii(text[:12]))
def test_values_are_never_sql(path: Path, nasty: str) -> None:
    texts = ("id", "model", "backend", "device", "socket", "boot_id")
    info = worker(**dict.fromkeys(texts, nasty))
    facts = NodeFacts(*([nasty] * 7))
    with Registry.open(path) as registry:
        registry.upsert_worker("innocent", worker())
        registry.upsert_worker(nasty, info, hive_instance=nasty, payload=nasty)
        registry.remember_node(facts)
        registry.seen(nasty, nasty)
        (row,) = registry.rows(nasty)
        assert {getattr(row, name) for name in ("node", "worker_id", "hive_instance", "payload", *texts[1:])} == {nasty}
        known = registry.node_facts(nasty)
        assert known is not None
        assert dataclasses.replace(known, last_seen_at="") == facts
        assert registry.sync_node(nasty, [info]).kept == (nasty,)
        registry.drop(nasty, nasty)
        registry.forget_node(nasty)
        assert [row.node for row in registry.rows()] == ["innocent"]


def test_what_sqlite_cannot_hold_is_made_to_fit(path: Path) -> None:
    with Registry.open(path) as registry:
        registry.upsert_worker("gpu1", worker(model="half \ud83d a character", pid=2**80, start_ticks=-(2**80)))
        (row,) = registry.rows()
    assert (row.model, row.pid, row.start_ticks) == ("half ? a character", 2**63 - 1, -(2**63))


def test_reading_needs_no_sqlite_utils(path: Path) -> None:
    Registry.open(path).close()
    code = (
        "import sys; from pathlib import Path; from rbee.registry import Registry\n"
        "r = Registry.open(Path(sys.argv[1])); r.fresh_rows(); r.node_facts('n'); r.seen('n', 'w')\n"
        "r.close(); sys.exit('sqlite_utils' in sys.modules)"
    )
    assert run(code, str(path)).returncode == 0


def environment() -> dict[str, str]:
    root = Path(__file__).parents[3]
    return {**os.environ, "PYTHONPATH": f"{root}:{root / 'remote'}"}


def run(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
