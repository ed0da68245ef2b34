"""workers.db: the keeper's record of remote workers, and of what worked for each node. The only SQL,
with `file` and `migrations` beside it; `rows` says what a row is.

Rules
- A cache of what hives said, never the truth: a damaged file is set aside and remade, and the hives are asked again.
- Every write is one transaction; readers never wait for it (WAL), writers wait for each other, but not for ever.
- A registry that cannot be written is no reason to fail: the command goes on with a copy in memory, and says so.
- Reading uses the sqlite3 connection alone: sqlite-utils takes longer to import than a warm `infer` has to spare, so
  it comes in at the first write, or when the file has to be made or migrated.
- Values reach SQL as parameters, never as text.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from rbee.base.retries import BUSY_TIMEOUT_S
from rbee.registry import file as registry_file
from rbee.registry.file import immediate, translated
from rbee.registry.rows import OPTION_COLUMNS, iso_time, storable, storable_values, worker_record
from rbee.registry.rows import NodeFacts as NodeFacts
from rbee.registry.rows import WorkerRow as WorkerRow
from rbee.registry.rows import as_text as as_text
from rbee_remote.protocol import WorkerInfo

if TYPE_CHECKING:
    from sqlite_utils.db import Database

T = TypeVar("T")

#: For how long the state of a worker is believed without asking.
FRESH_S = 60.0

_WORKER_FIELDS = [field.name for field in fields(WorkerRow) if field.name != "loaded"]
_WORKER_COLUMNS = ", ".join((*_WORKER_FIELDS, *OPTION_COLUMNS))
_NODE_COLUMNS = ", ".join(field.name for field in fields(NodeFacts))


@dataclass(frozen=True, slots=True)
class Changes:
    """What a node's hive said that the registry did not know: ids of workers."""

    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


class Registry:
    """An open workers.db, made by `Registry.open`; may be used from any one thread at a time.

    lost: what became of the rows that were there ("was damaged and is kept as …"), "" where nothing happened to them:
    the caller asks the hives. set_aside: where a damaged file was put. Every method raises ConfigError: locked for too
    long, damaged while open (REGISTRY_CORRUPT).
    """

    def __init__(self, path: Path, opened: registry_file.Opened, tell: Callable[[str], None] | None = None) -> None:
        self.path = path
        self.lost = opened.lost
        self.set_aside = opened.set_aside
        self._connection = opened.connection
        self._tell = tell
        if opened.unwritable:
            self._say_unwritable(opened.unwritable)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        busy_timeout_s: float = BUSY_TIMEOUT_S,
        tell: Callable[[str], None] | None = None,
    ) -> Self:
        """Open the registry at `path`, made (0600) or migrated where it has to be, remade where it is damaged.

        tell: is given a sentence for the user where the registry cannot be written.
        Raises ConfigError for one that a newer rbee wrote, and as all methods do.
        """
        return cls(path, registry_file.open_file(path, busy_timeout_s), tell)

    @classmethod
    def open_copy(cls, path: Path) -> Self:
        """What is recorded at `path`, in memory: whatever is done with it changes nothing there. Raises as `open`."""
        with translated(path):
            return cls(path, registry_file.Opened(registry_file.copy_in_memory(path, BUSY_TIMEOUT_S)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def fresh_rows(self, max_age_s: float = FRESH_S) -> list[WorkerRow]:
        """The workers seen at most `max_age_s` seconds ago; a time in the future is no sight of them."""
        now = time.time()
        return self._workers("where last_seen_at between ? and ?", (iso_time(now - max_age_s), iso_time(now + 5)))

    def rows(self, node: str | None = None) -> list[WorkerRow]:
        """All workers that are recorded, or those of one node."""
        return self._workers("where node = ?", (node,)) if node is not None else self._workers("", ())

    def upsert_worker(self, node: str, info: WorkerInfo, *, hive_instance: str = "", payload: str = "") -> None:
        """Record what the hive of `node` just said of a worker."""
        record = worker_record(node, info, hive_instance, payload)
        self._write(lambda: self._database.table("workers").upsert(record, pk=("node", "worker_id")))

    def sync_node(
        self,
        node: str,
        workers: Sequence[WorkerInfo],
        *,
        hive_instance: str = "",
        payload: str = "",
        asked_at: float | None = None,
    ) -> Changes:
        """Record all that the hive of `node` just said: its rows are replaced, and what that changed is returned.

        asked_at: Unix seconds, when the hive was asked; workers that others recorded since then stay.
        """
        records = [worker_record(node, info, hive_instance, payload) for info in workers]
        told = {str(record["worker_id"]) for record in records}

        def replace() -> Changes:
            now = time.time()
            since = iso_time(now if asked_at is None else asked_at)
            known = {row.worker_id for row in self.rows(node)}
            later = {row.worker_id for row in self.rows(node) if since < row.last_seen_at <= iso_time(now)}
            gone = known - told - later
            table = self._database.table("workers")
            for worker_id in gone:
                table.delete_where("node = ? and worker_id = ?", [node, worker_id])
            table.upsert_all(records, pk=("node", "worker_id"))
            return Changes(*(tuple(sorted(ids)) for ids in (told - known, gone, known & told)))

        return self._write(replace)

    def seen(self, node: str, worker_id: str) -> None:
        """A worker just answered: its row is a good hint for another while."""
        query = "update workers set last_seen_at = ? where node = ? and worker_id = ?"
        values = (iso_time(time.time()), node, storable(worker_id))
        # Plain sqlite3, because every warm `infer` comes by here.
        self._write(lambda: self._connection.execute(query, values), plain=True)

    def drop(self, node: str, worker_id: str) -> None:
        """Forget a worker; one that is not recorded is forgotten already."""
        values = [node, storable(worker_id)]
        self._write(lambda: self._database.table("workers").delete_where("node = ? and worker_id = ?", values))

    def drop_all(self, node: str, worker_ids: Sequence[str]) -> None:
        """Forget several workers of a node, all or none."""

        def drop() -> None:
            table = self._database.table("workers")
            for worker_id in map(storable, worker_ids):
                table.delete_where("node = ? and worker_id = ?", [node, worker_id])

        if worker_ids:
            self._write(drop)

    def forget_node(self, node: str) -> None:
        """Forget a node and its workers."""

        def forget() -> None:
            for table in ("workers", "nodes"):
                self._database.table(table).delete_where("node = ?", [node])

        self._write(forget)

    def remember_node(self, facts: NodeFacts) -> None:
        """Record what worked for a node, seen now."""
        values = {**storable_values(asdict(facts)), "last_seen_at": iso_time(time.time())}
        self._write(lambda: self._database.table("nodes").upsert(values, pk="node"))

    def node_facts(self, node: str) -> NodeFacts | None:
        """What worked for a node the last time."""
        with translated(self.path):
            row = self._connection.execute(f"select {_NODE_COLUMNS} from nodes where node = ?", (node,)).fetchone()  # noqa: S608 - column names are ours
        return NodeFacts(*row) if row else None

    def _workers(self, where: str, values: tuple[Any, ...]) -> list[WorkerRow]:
        query = f"select {_WORKER_COLUMNS} from workers {where} order by node, created_at, worker_id"  # noqa: S608 - column names are ours
        with translated(self.path):
            return [_worker_row(row) for row in self._connection.execute(query, values)]

    @property
    def _database(self) -> Database:
        return registry_file.database(self._connection)

    def _write(self, change: Callable[[], T], *, plain: bool = False) -> T:
        """`change` as one transaction. Where there is no writing, it is made to a copy in memory.

        plain: `change` does without sqlite-utils, which is else imported before the lock is taken, not under it.
        """
        if not plain:
            import sqlite_utils  # noqa: F401
        with translated(self.path):
            try:
                with immediate(self._connection):
                    return change()
            except sqlite3.Error as error:
                if not registry_file.is_unwritable(error):
                    raise
                self._go_on_in_memory(error)
            with immediate(self._connection):
                return change()

    def _go_on_in_memory(self, error: sqlite3.Error) -> None:
        copy = registry_file.copy_in_memory(self.path, BUSY_TIMEOUT_S)
        self._connection.close()
        self._connection = copy
        self._say_unwritable(str(error))

    def _say_unwritable(self, why: str) -> None:
        if self._tell:
            self._tell(f"the registry {self.path} cannot be written ({why}): nothing of this command is remembered")


def _worker_row(values: tuple[Any, ...]) -> WorkerRow:
    """From _WORKER_COLUMNS."""
    own = dict(zip(_WORKER_FIELDS, values, strict=False))
    return WorkerRow(**own, loaded=dict(zip(OPTION_COLUMNS, values[len(own) :], strict=True)))


#: How a use case comes to a registry when it needs one.
OpenRegistry = Callable[[], Registry]
