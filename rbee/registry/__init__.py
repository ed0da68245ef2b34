"""workers.db: the keeper's record of remote workers, and of what worked for each node. The only SQL,
with `registry_file` and `migrations` beside it.

Rules
- A cache of what hives said, never the truth: losing it costs a round trip, so a damaged file is set aside and remade.
- Every write is one transaction; readers never wait for it (WAL), writers wait for each other, but not for ever.
- Reading uses the sqlite3 connection alone: sqlite-utils takes longer to import than a warm `infer` has to spare, so
  it comes in at the first write, or when the file has to be made or migrated.
- Values reach SQL as parameters, never as text.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rbee.registry import file as registry_file
from rbee.registry.file import immediate, translated
from rbee_remote.protocol import WorkerInfo, WorkerOptions, WorkerState

if TYPE_CHECKING:
    from sqlite_utils.db import Database

#: For how long the state of a worker is believed without asking.
FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A row of `workers`. created_at, last_seen_at: ISO 8601, UTC, milliseconds; other fields as in WorkerInfo.

    kv_type, flash_attention, devices, tensor_split: of its options, the last two as the command line writes them.
    """

    node: str
    worker_id: str
    model: str
    backend: str
    device: str
    state: str
    socket: str
    slots: int
    slots_free: int
    ctx: int
    keep_alive_s: float
    boot_id: str
    pid: int
    start_ticks: int
    hive_instance: str
    payload: str
    created_at: str
    last_seen_at: str
    kv_type: str
    flash_attention: str
    devices: str
    tensor_split: str

    @property
    def is_idle(self) -> bool:
        return self.state == WorkerState.IDLE.value

    @property
    def is_usable(self) -> bool:
        """Whether it could take a request at once when it was last seen."""
        return self.state in (WorkerState.IDLE.value, WorkerState.READY.value) and self.slots_free > 0


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A row of `nodes`: what worked the last time. transport: "forward" or "pipe". Paths are the node's."""

    node: str
    transport: str
    home: str
    run_dir: str
    python: str
    payload: str
    hive_socket: str
    last_seen_at: str = ""


_WORKER_COLUMNS = ", ".join(field.name for field in fields(WorkerRow))
_NODE_COLUMNS = ", ".join(field.name for field in fields(NodeFacts))


class Registry:
    """An open workers.db, made by `Registry.open`; may be used from any one thread at a time.

    recovered: where a damaged file was put, None where there was none. Every method raises ConfigError: locked for
    too long, not writable, damaged while open (REGISTRY_CORRUPT).
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, recovered: Path | None) -> None:
        self.path = path
        self.recovered = recovered
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, busy_timeout_s: float = registry_file.BUSY_TIMEOUT_S) -> Self:
        """Open the registry at `path`, made (0600) or migrated where it has to be, remade where it is damaged.

        Raises ConfigError for one that a newer rbee wrote, and as all methods do.
        """
        connection, recovered = registry_file.open_file(path, busy_timeout_s)
        return cls(path, connection, recovered)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def find_usable(self, node: str, model: str, max_age_s: float = FRESH_S) -> WorkerRow | None:
        """The worker of `node` that holds `model`, had a free slot, and was seen at most `max_age_s` seconds ago."""
        rows = [row for row in self.fresh_rows(max_age_s) if (row.node, row.model) == (node, model) and row.is_usable]
        return max(rows, key=lambda row: row.last_seen_at, default=None)

    def fresh_rows(self, max_age_s: float = FRESH_S) -> list[WorkerRow]:
        """The workers seen at most `max_age_s` seconds ago; a time in the future is no sight of them."""
        now = time.time()
        return self._workers("where last_seen_at between ? and ?", (_iso(now - max_age_s), _iso(now + 5)))

    def rows(self, node: str | None = None) -> list[WorkerRow]:
        """All workers that are recorded, or those of one node."""
        return self._workers("where node = ?", (node,)) if node is not None else self._workers("", ())

    def upsert_worker(self, node: str, info: WorkerInfo, *, hive_instance: str = "", payload: str = "") -> None:
        """Record what the hive of `node` just said of a worker."""
        with self._transaction() as db:
            db.table("workers").upsert(_worker_record(node, info, hive_instance, payload), pk=("node", "worker_id"))

    def sync_node(
        self, node: str, workers: Sequence[WorkerInfo], *, hive_instance: str = "", payload: str = ""
    ) -> None:
        """Record all that the hive of `node` just said: its rows are replaced."""
        records = [_worker_record(node, info, hive_instance, payload) for info in workers]
        with self._transaction() as db:
            db.table("workers").delete_where("node = ?", [node])
            db.table("workers").upsert_all(records, pk=("node", "worker_id"))

    def seen(self, node: str, worker_id: str) -> None:
        """A worker just answered: its row is a good hint for another while."""
        query = "update workers set last_seen_at = ? where node = ? and worker_id = ?"
        with translated(self.path), immediate(self._connection):  # plain sqlite3: every warm `infer` comes by here
            self._connection.execute(query, (_iso(time.time()), node, worker_id))

    def drop(self, node: str, worker_id: str) -> None:
        """Forget a worker; one that is not recorded is forgotten already."""
        with self._transaction() as db:
            db.table("workers").delete_where("node = ? and worker_id = ?", [node, worker_id])

    def forget_node(self, node: str) -> None:
        """Forget a node and its workers."""
        with self._transaction() as db:
            db.table("workers").delete_where("node = ?", [node])
            db.table("nodes").delete_where("node = ?", [node])

    def remember_node(self, facts: NodeFacts) -> None:
        """Record what worked for a node, seen now."""
        with self._transaction() as db:
            db.table("nodes").upsert({**asdict(facts), "last_seen_at": _iso(time.time())}, pk="node")

    def node_facts(self, node: str) -> NodeFacts | None:
        """What worked for a node the last time."""
        with translated(self.path):
            row = self._connection.execute(f"select {_NODE_COLUMNS} from nodes where node = ?", (node,)).fetchone()  # noqa: S608 - column names are ours
        return NodeFacts(*row) if row else None

    def _workers(self, where: str, values: tuple[Any, ...]) -> list[WorkerRow]:
        query = f"select {_WORKER_COLUMNS} from workers {where} order by node, created_at, worker_id"  # noqa: S608 - column names are ours
        with translated(self.path):
            return [WorkerRow(*row) for row in self._connection.execute(query, values)]

    @cached_property
    def _database(self) -> Database:
        return registry_file.database(self._connection)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Database]:
        database = self._database  # imported before the lock is taken, not under it
        with translated(self.path), immediate(self._connection):
            yield database


def _worker_record(node: str, info: WorkerInfo, hive_instance: str, payload: str) -> dict[str, Any]:
    options = info.options or WorkerOptions()
    row = WorkerRow(
        node=node,
        worker_id=info.id,
        model=info.model,
        backend=info.backend,
        device=info.device,
        state=info.state.value,
        socket=info.socket,
        slots=info.slots,
        slots_free=info.slots_free,
        ctx=info.ctx,
        keep_alive_s=info.keep_alive_s,
        boot_id=info.boot_id,
        pid=info.pid,
        start_ticks=info.start_ticks,
        hive_instance=hive_instance,
        payload=payload,
        created_at=_iso(info.created_at),
        last_seen_at=_iso(time.time()),
        kv_type=options.kv_type,
        flash_attention=options.flash_attention,
        devices=joined(options.devices),
        tensor_split=joined(options.tensor_split),
    )
    return asdict(row)


def joined(values: Sequence[str | float]) -> str:
    """devices or tensor_split, as a row holds them."""
    return ",".join(map(str, values))


def _iso(seconds: float) -> str:
    """Unix seconds as text that sorts by time."""
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        moment = datetime.fromtimestamp(0, UTC)  # a node's clock may say anything
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


#: How a use case comes to a registry when it needs one.
OpenRegistry = Callable[[], Registry]
