"""The steps that bring workers.db from each version to the next, kept by sqlite-utils in `_sqlite_migrations`.

Rules
- A step that was released is never edited; a change is another step at the end, and VERSION grows with it.
- `registry` runs them inside one transaction, together with `PRAGMA user_version`.
"""

from __future__ import annotations

from sqlite_utils import Migrations
from sqlite_utils.db import Database

MIGRATIONS = Migrations("rbee")


@MIGRATIONS()
def m001_workers_and_nodes(db: Database) -> None:
    """workers: what hives said of their workers. nodes: what worked for each node the last time."""
    db.table("workers").create(
        {
            "node": str,
            "worker_id": str,
            "model": str,
            "backend": str,
            "device": str,
            "state": str,
            "socket": str,
            "slots": int,
            "slots_free": int,
            "ctx": int,
            "keep_alive_s": float,
            "boot_id": str,
            "pid": int,
            "start_ticks": int,
            "hive_instance": str,
            "payload": str,
            "created_at": str,
            "last_seen_at": str,
        },
        pk=("node", "worker_id"),
    )
    db.table("workers").create_index(["node", "model"])
    db.table("nodes").create(
        {
            "node": str,
            "transport": str,
            "home": str,
            "run_dir": str,
            "python": str,
            "payload": str,
            "hive_socket": str,
            "last_seen_at": str,
        },
        pk="node",
    )


@MIGRATIONS()
def m002_how_workers_are_loaded(db: Database) -> None:
    """kv_type, flash_attention, devices, tensor_split. Workers seen before have none, which is nobody's wish."""
    for column in ("kv_type", "flash_attention", "devices", "tensor_split"):
        db.table("workers").add_column(column, str, not_null_default="")


@MIGRATIONS()
def m003_what_workers_prove_themselves_with(db: Database) -> None:
    """secret. Workers seen before have none, and are found again by their hive."""
    db.table("workers").add_column("secret", str, not_null_default="")


@MIGRATIONS()
def m004_what_wheels_fit_a_node(db: Database) -> None:
    """platform, backend. Of nodes seen before neither is known until they are used again."""
    for column in ("platform", "backend"):
        db.table("nodes").add_column(column, str, not_null_default="")


@MIGRATIONS()
def m005_what_adapters_workers_have(db: Database) -> None:
    """Workers seen before have none: an older rbee knew no adapters."""
    db.table("workers").add_column("lora", str, not_null_default="")


@MIGRATIONS()
def m006_how_workers_pool(db: Database) -> None:
    """Workers seen before do as their files say: an older rbee could not say otherwise."""
    db.table("workers").add_column("pooling", str, not_null_default="auto")
